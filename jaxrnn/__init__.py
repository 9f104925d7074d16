"""jaxrnn: the laboratory for the gradient of a vanilla (Elman) RNN in JAX."""

from jaxrnn import gradients as gradients
from jaxrnn.gradients import Carry as Carry
from jaxrnn.gradients import GradientAlgorithm as GradientAlgorithm
from jaxrnn.network import RNN as RNN
from jaxrnn.network import Batch as Batch
from jaxrnn.layer import Cell as Cell
from jaxrnn.network import Params as Params
from jaxrnn.network import Readout as Readout
