"""jaxrnn: the laboratory for the gradient of a vanilla (Elman) RNN in JAX.

The network:
    RNN                the network: sizes, activation, leak, loss and initialisers
    Params             its parameters: a tuple of `Cell` and a `Readout`
    save, load         parameters to and from a file
    Batch              inputs, targets, mask and lengths
    Source             batches by number, which know whether they follow on from each other
    chunks             cut a batch along time, for online rules
    Cell, Readout

Gradients:
    gradients          every published rule as a `GradientAlgorithm`
    GradientAlgorithm  a rule: `init` and `value_and_grad`
    Carry              what a rule passes from chunk to chunk
    reset              start some rows of a carry anew
    memory_limit       raise or lower the memory that a rule may take

Verification:
    verify             compare a gradient of an RNN with a reference, and name its bugs
    verify_claim       check a rule for what it claims: exact, truncated, unbiased, approximate
    check_grad         as `verify`, for any function of a pytree
    finite_difference  a reference that only evaluates the loss
    complex_step       the same by a complex step
    Report             what `verify` returns
    ClaimReport        what `verify_claim` returns for a rule that is not exact
    Finding, Leaf, LagProfile, Reference

Analysis:
    compare            bias, variance and cost of several rules, side by side
    cost_analysis      operations and memory of a compiled function
    gradient_flow      how far back in time the gradient reaches
    walkthrough        every number of one forward and backward pass
    Comparison, Cost, GradientFlow, Walkthrough

Training:
    init_train_state   the state before the first step
    make_train_step    one update, by any rule and Optax optimiser
    make_train_loop    many updates in one jitted call
    evaluate           the mean loss over batches
    clipped_sgd        gradient descent after an element-wise clip
    clipped_adagrad    Adagrad after an element-wise clip
    sharded            run a rule on several devices
    make_mesh          the devices that share a batch
    TrainState, Metrics

Around it:
    tasks              synthetic tasks with known answers
    exchange           parameters to and from PyTorch, Flax and min-char-rnn
    lm                 language models of a text: data, runs, sampling
    plotting           the style of all plots, with colours for colour-blind people
"""

from importlib.metadata import version

from jaxrnn import exchange as exchange
from jaxrnn import gradients as gradients
from jaxrnn import lm as lm
from jaxrnn import plotting as plotting
from jaxrnn import tasks as tasks
from jaxrnn.analysis.compare import Comparison as Comparison
from jaxrnn.analysis.compare import compare as compare
from jaxrnn.analysis.cost import Cost as Cost
from jaxrnn.analysis.cost import cost_analysis as cost_analysis
from jaxrnn.analysis.gradient_flow import GradientFlow as GradientFlow
from jaxrnn.analysis.gradient_flow import gradient_flow as gradient_flow
from jaxrnn.analysis.walkthrough import Walkthrough as Walkthrough
from jaxrnn.analysis.walkthrough import walkthrough as walkthrough
from jaxrnn.gradients.engine.algorithm import Carry as Carry
from jaxrnn.gradients.engine.algorithm import GradientAlgorithm as GradientAlgorithm
from jaxrnn.gradients.engine.algorithm import reset as reset
from jaxrnn.network.batch import Batch as Batch
from jaxrnn.network.checks import memory_limit as memory_limit
from jaxrnn.network.file import load as load
from jaxrnn.network.file import save as save
from jaxrnn.network.layer import Cell as Cell
from jaxrnn.network.rnn import RNN as RNN
from jaxrnn.network.stack import Params as Params
from jaxrnn.network.stack import Readout as Readout
from jaxrnn.training.evaluation import evaluate as evaluate
from jaxrnn.training.sharding import make_mesh as make_mesh
from jaxrnn.training.sharding import sharded as sharded
from jaxrnn.training.source import Source as Source
from jaxrnn.training.source import chunks as chunks
from jaxrnn.training.step import Metrics as Metrics
from jaxrnn.training.step import TrainState as TrainState
from jaxrnn.training.step import init_train_state as init_train_state
from jaxrnn.training.step import make_train_loop as make_train_loop
from jaxrnn.training.step import make_train_step as make_train_step
from jaxrnn.training.transforms import clipped_adagrad as clipped_adagrad
from jaxrnn.training.transforms import clipped_sgd as clipped_sgd
from jaxrnn.verification.claims import ClaimReport as ClaimReport
from jaxrnn.verification.claims import verify_claim as verify_claim
from jaxrnn.verification.leaf import Leaf as Leaf
from jaxrnn.verification.references import Reference as Reference
from jaxrnn.verification.references import complex_step as complex_step
from jaxrnn.verification.references import finite_difference as finite_difference
from jaxrnn.verification.report import Finding as Finding
from jaxrnn.verification.report import LagProfile as LagProfile
from jaxrnn.verification.report import Report as Report
from jaxrnn.verification.verify import check_grad as check_grad
from jaxrnn.verification.verify import verify as verify

__version__ = version("jaxrnn")
del version

__all__ = [
    "RNN",
    "Batch",
    "Carry",
    "Cell",
    "ClaimReport",
    "Comparison",
    "Cost",
    "Finding",
    "GradientAlgorithm",
    "GradientFlow",
    "LagProfile",
    "Leaf",
    "Metrics",
    "Params",
    "Readout",
    "Reference",
    "Report",
    "Source",
    "TrainState",
    "Walkthrough",
    "__version__",
    "check_grad",
    "chunks",
    "clipped_adagrad",
    "clipped_sgd",
    "compare",
    "complex_step",
    "cost_analysis",
    "evaluate",
    "exchange",
    "finite_difference",
    "gradient_flow",
    "gradients",
    "init_train_state",
    "lm",
    "load",
    "make_mesh",
    "make_train_loop",
    "make_train_step",
    "memory_limit",
    "plotting",
    "reset",
    "save",
    "sharded",
    "tasks",
    "verify",
    "verify_claim",
    "walkthrough",
]


def __dir__() -> list[str]:
    return __all__
