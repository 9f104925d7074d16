"""A whole run: text to batches, training, evaluation, and what is kept of it on disk.

Nothing is printed here; the command prints. `start` and `resume` make a `Run`, and `train` takes it
forward block by block. A run is what its text and options say, and nothing else: however it is
interrupted and cut into blocks, its parameters come out the same to the last bit on the same
machine with the same versions.
"""

from jaxrnn.run.base import Block as Block
from jaxrnn.run.base import Run as Run
from jaxrnn.run.base import model as model
from jaxrnn.run.base import over_because as over_because
from jaxrnn.run.disk import keep as keep
from jaxrnn.run.disk import resume as resume
from jaxrnn.run.disk import start as start
from jaxrnn.run.gradient import GradientCheck as GradientCheck
from jaxrnn.run.gradient import check_gradient as check_gradient
from jaxrnn.run.load import load as load
from jaxrnn.run.load import options_of as options_of
from jaxrnn.run.loop import train as train
from jaxrnn.run.prepare import prepare as prepare
