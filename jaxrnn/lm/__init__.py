"""Language models: vocabulary, training runs that can be resumed, evaluation and sampling."""

from jaxrnn.lm import batches as batches
from jaxrnn.lm.corpus import Text as Text
from jaxrnn.lm.model import Model as Model
from jaxrnn.lm.model import Score as Score
from jaxrnn.lm.model import continuation as continuation
from jaxrnn.lm.model import evaluate as evaluate
from jaxrnn.lm.model import stream as stream
from jaxrnn.lm.model import write as write
from jaxrnn.lm.options import Options as Options
from jaxrnn.lm.run.gradient import GradientCheck as GradientCheck
from jaxrnn.lm.run.gradient import check_gradient as check_gradient
from jaxrnn.lm.run.load import load as load
from jaxrnn.lm.run.load import options_of as options_of
from jaxrnn.lm.run.loop import train as train
from jaxrnn.lm.run.persistence import keep as keep
from jaxrnn.lm.run.persistence import resume as resume
from jaxrnn.lm.run.persistence import start as start
from jaxrnn.lm.run.prepare import prepare as prepare
from jaxrnn.lm.run.state import Block as Block
from jaxrnn.lm.run.state import Run as Run
from jaxrnn.lm.run.state import over_because as over_because
from jaxrnn.lm.run.state import to_model as to_model
from jaxrnn.lm.sampling import beam_search as beam_search
from jaxrnn.lm.sampling import sample as sample
from jaxrnn.lm.vocabulary import Vocabulary as Vocabulary

__all__ = [
    "Block",
    "GradientCheck",
    "Model",
    "Options",
    "Run",
    "Score",
    "Text",
    "Vocabulary",
    "batches",
    "beam_search",
    "check_gradient",
    "continuation",
    "evaluate",
    "keep",
    "load",
    "options_of",
    "over_because",
    "prepare",
    "resume",
    "sample",
    "start",
    "stream",
    "to_model",
    "train",
    "write",
]
