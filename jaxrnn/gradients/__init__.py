"""Every way to compute the gradient of an RNN's loss, behind one type."""

from typing import Literal

from jaxrnn.gradients.autodiff import autodiff as autodiff
from jaxrnn.gradients.base import Carry as Carry
from jaxrnn.gradients.base import GradientAlgorithm as GradientAlgorithm
from jaxrnn.gradients.base import reset as reset
from jaxrnn.gradients.base import stateless as stateless
from jaxrnn.gradients.bptt import bptt as bptt
from jaxrnn.gradients.checkpointed_bptt import checkpointed_bptt as checkpointed_bptt
from jaxrnn.gradients.dni import dni as dni
from jaxrnn.gradients.kernl import kernl as kernl
from jaxrnn.gradients.kf_rtrl import kf_rtrl as kf_rtrl
from jaxrnn.gradients.ok import ok as ok
from jaxrnn.gradients.parallel_bptt import parallel_bptt as parallel_bptt
from jaxrnn.gradients.rflo import rflo as rflo
from jaxrnn.gradients.rtrl import rtrl as rtrl
from jaxrnn.gradients.snap import snap as snap
from jaxrnn.gradients.truncated_bptt import truncated_bptt as truncated_bptt
from jaxrnn.gradients.uoro import uoro as uoro

Claim = Literal["exact", "truncated", "unbiased", "approximate"]
"""What a rule says of its gradient of one chunk from a fresh carry: that it is the exact one, that
of a graph which is cut after some steps, exact in the mean over random numbers, or near to it."""

CLAIMS: dict[str, tuple[Claim, Claim]] = {  # of one layer and of a stack, whatever its arguments
    "autodiff": ("exact", "exact"),
    "bptt": ("exact", "exact"),
    "checkpointed_bptt": ("exact", "exact"),
    "parallel_bptt": ("exact", "exact"),
    "truncated_bptt": ("truncated", "truncated"),
    "rtrl": ("exact", "approximate"),
    "kf_rtrl": ("unbiased", "approximate"),
    "ok": ("unbiased", "approximate"),
    "uoro": ("unbiased", "approximate"),
    "dni": ("approximate", "approximate"),
    "kernl": ("approximate", "approximate"),
    "rflo": ("approximate", "approximate"),
    "snap": ("approximate", "approximate"),
}
