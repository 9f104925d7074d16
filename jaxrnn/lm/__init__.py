"""Language models: vocabulary, training runs that can be resumed, evaluation and sampling.

Wherever a text is asked for, a str or a Path is the path of a file, and `Text.from_string(text)` is
a text in memory.

Training:
    Options            the options of a run, with their valid values: see `help(Options)`
    start              begin a run in a folder: text, options -> Run
    resume             continue a run from its newest checkpoint
    prepare            begin a run in memory, without a folder
    keep               give a run in memory a folder
    train              make the steps of a run, an iterator over `Block`
    check_gradient     compare the rule of a run with `jax.grad`, a `GradientCheck`
    claim_of           what the rule of a run claims to be, such as "exact"
    over_because       why a run is over: "steps", "patience" or ""
    Run, Block         a run at some step, and what some of its steps brought

Models:
    load               the best model of a run, or the newest
    to_model           the current model of a `Run`
    options_of         the options of a run
    held_out           the held-out text of a run, as batches
    evaluate           the `Score` of a model on a text
    scores             the same part by part, for a long text
    write              texts that a model samples
    stream             the same piece by piece
    continuation       the most likely continuation of a text
    Model, Score

Ids and batches:
    Text               a text in a file or in memory
    Vocabulary         the symbols of a text: characters, bytes or words
    batches            sources of batches from ids: `stream`, `shuffled`, `eval_set`, …
    sample             sample ids from any network
    beam_search        the most likely ids of any network
"""

from jaxrnn.lm import batches as batches
from jaxrnn.lm.corpus import Text as Text
from jaxrnn.lm.model import Model as Model
from jaxrnn.lm.model import Score as Score
from jaxrnn.lm.model import continuation as continuation
from jaxrnn.lm.model import evaluate as evaluate
from jaxrnn.lm.model import scores as scores
from jaxrnn.lm.model import stream as stream
from jaxrnn.lm.model import write as write
from jaxrnn.lm.options import Options as Options
from jaxrnn.lm.run.gradient import GradientCheck as GradientCheck
from jaxrnn.lm.run.gradient import check_gradient as check_gradient
from jaxrnn.lm.run.gradient import claim_of as claim_of
from jaxrnn.lm.run.load import load as load
from jaxrnn.lm.run.load import options_of as options_of
from jaxrnn.lm.run.loop import train as train
from jaxrnn.lm.run.persistence import held_out as held_out
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
    "claim_of",
    "continuation",
    "evaluate",
    "held_out",
    "keep",
    "load",
    "options_of",
    "over_because",
    "prepare",
    "resume",
    "sample",
    "scores",
    "start",
    "stream",
    "to_model",
    "train",
    "write",
]
