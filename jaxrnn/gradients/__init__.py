"""Every way to compute the gradient of an RNN's loss, behind one type."""

from jaxrnn.gradients.engine.algorithm import Carry as Carry
from jaxrnn.gradients.engine.algorithm import GradientAlgorithm as GradientAlgorithm
from jaxrnn.gradients.engine.algorithm import reset as reset
from jaxrnn.gradients.engine.algorithm import stateless as stateless
from jaxrnn.gradients.engine.influence import influence_rule as influence_rule
from jaxrnn.gradients.engine.lift import backward_rule as backward_rule
from jaxrnn.gradients.rules.autodiff import autodiff as autodiff
from jaxrnn.gradients.rules.bptt import bptt as bptt
from jaxrnn.gradients.rules.checkpointed_bptt import checkpointed_bptt as checkpointed_bptt
from jaxrnn.gradients.rules.dni import dni as dni
from jaxrnn.gradients.rules.kernl import kernl as kernl
from jaxrnn.gradients.rules.kf_rtrl import kf_rtrl as kf_rtrl
from jaxrnn.gradients.rules.ok import ok as ok
from jaxrnn.gradients.rules.parallel_bptt import parallel_bptt as parallel_bptt
from jaxrnn.gradients.rules.rflo import rflo as rflo
from jaxrnn.gradients.rules.rtrl import rtrl as rtrl
from jaxrnn.gradients.rules.snap import snap as snap
from jaxrnn.gradients.rules.truncated_bptt import truncated_bptt as truncated_bptt
from jaxrnn.gradients.rules.uoro import uoro as uoro
from jaxrnn.gradients.table import RULES as RULES
from jaxrnn.gradients.table import Claim as Claim
from jaxrnn.gradients.table import Rule as Rule
from jaxrnn.gradients.table import build as build
from jaxrnn.gradients.table import parse as parse

__all__ = [
    "RULES",
    "Carry",
    "Claim",
    "GradientAlgorithm",
    "Rule",
    "autodiff",
    "backward_rule",
    "bptt",
    "build",
    "checkpointed_bptt",
    "dni",
    "influence_rule",
    "kernl",
    "kf_rtrl",
    "ok",
    "parallel_bptt",
    "parse",
    "reset",
    "rflo",
    "rtrl",
    "snap",
    "stateless",
    "truncated_bptt",
    "uoro",
]
