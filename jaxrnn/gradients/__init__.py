"""Every way to compute the gradient of an RNN's loss, behind one type."""

from jaxrnn.gradients.autodiff import autodiff as autodiff
from jaxrnn.gradients.base import Carry as Carry
from jaxrnn.gradients.base import GradientAlgorithm as GradientAlgorithm
from jaxrnn.gradients.base import stateless as stateless
from jaxrnn.gradients.bptt import bptt as bptt
from jaxrnn.gradients.parallel_bptt import parallel_bptt as parallel_bptt
from jaxrnn.gradients.rtrl import rtrl as rtrl
from jaxrnn.gradients.truncated_bptt import truncated_bptt as truncated_bptt
