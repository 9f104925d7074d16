"""Telling whether a gradient is right."""

from jaxrnn.verification.compare import Leaf as Leaf
from jaxrnn.verification.compare import Report as Report
from jaxrnn.verification.compare import verify as verify
