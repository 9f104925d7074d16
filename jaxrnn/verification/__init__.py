"""Telling whether a gradient is right, and if not, what is wrong with it."""

from jaxrnn.verification.check import check_grad as check_grad
from jaxrnn.verification.check import verify as verify
from jaxrnn.verification.compare import Finding as Finding
from jaxrnn.verification.compare import LagProfile as LagProfile
from jaxrnn.verification.compare import Leaf as Leaf
from jaxrnn.verification.compare import Report as Report
from jaxrnn.verification.differences import Reference as Reference
from jaxrnn.verification.differences import complex_step as complex_step
from jaxrnn.verification.differences import finite_difference as finite_difference
from jaxrnn.verification.flow import GradientFlow as GradientFlow
from jaxrnn.verification.flow import gradient_flow as gradient_flow
