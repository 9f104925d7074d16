"""jaxrnn: the laboratory for the gradient of a vanilla (Elman) RNN in JAX."""

from jaxrnn import data as data
from jaxrnn import gradients as gradients
from jaxrnn.gradients import Carry as Carry
from jaxrnn.gradients import GradientAlgorithm as GradientAlgorithm
from jaxrnn.layer import Cell as Cell
from jaxrnn.network import RNN as RNN
from jaxrnn.network import Batch as Batch
from jaxrnn.network import Params as Params
from jaxrnn.network import Readout as Readout
from jaxrnn.sample import sample as sample
from jaxrnn.text import Vocabulary as Vocabulary
from jaxrnn.train import Metrics as Metrics
from jaxrnn.train import TrainState as TrainState
from jaxrnn.train import adagrad as adagrad
from jaxrnn.train import evaluate as evaluate
from jaxrnn.train import init_train_state as init_train_state
from jaxrnn.train import make_train_loop as make_train_loop
from jaxrnn.train import make_train_step as make_train_step
from jaxrnn.train import sgd as sgd
from jaxrnn.verification import check_grad as check_grad
from jaxrnn.verification import complex_step as complex_step
from jaxrnn.verification import finite_difference as finite_difference
from jaxrnn.verification import gradient_flow as gradient_flow
from jaxrnn.verification import verify as verify
from jaxrnn.walkthrough import Walkthrough as Walkthrough
from jaxrnn.walkthrough import walkthrough as walkthrough
