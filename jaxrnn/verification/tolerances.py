"""Tolerances: how far rounding alone may move a gradient from the exact one.

A sum of n terms makes about n roundings, each of at most half a unit in the last place, u. As
independent errors they add up to about u √(n / 3) of the sum (Higham 2002, Accuracy and Stability
of Numerical Algorithms, §2.8). How much of that reaches the gradient depends on the network, so it
is measured: the gradient is computed again at points that are moved by some roundings. The
constants below are tested by `experiments/planted_bugs.py`: of 1,000 right gradients in each
precision, with weights from tiny to huge, none is accused, and every planted bug is found.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.verification.candidate import arrays, is_floats
from jaxrnn.verification.diagnosis.backward_pass import perturbed
from jaxrnn.verification.leaf import EXACT, Leaf, relative_error
from jaxrnn.verification.problem import Problem, forward_by_hand

# Numbers are moved by up to ROUNDINGS u, and the movement is multiplied by √n / 2: together 8 √n u,
# some 14 times the u √(n / 3) to be expected of n independent roundings.
ROUNDINGS = 16

# The largest movement of PROBES random points counts. At a relu whose kink is within a rounding one
# point stays on the same side with probability 1/2, all four with probability 1/16.
PROBES = 4

# The error of float32 is measured at points that are a thousandth away: the gradient is about the
# same there, and its rounding errors are others. The tolerance is SAFETY times the largest of them,
# a margin like the 14 above.
NEARBY = 1e-3
SAFETY = 10

# A leaf that rounding alone may move by a hundredth of its size cannot be judged: such a tolerance
# would let most bugs pass.
HOPELESS = 1e-2


def cannot_be_judged(leaf: Leaf) -> bool:
    """Return whether a leaf is not finite, or its tolerance too large to mean anything."""
    return leaf.not_finite > 0 or not leaf.tolerance <= HOPELESS


def measured_tolerances(
    problem: Problem, dtype: str, *, perturb_slopes: bool = True
) -> dict[str, float]:
    """Measure how far a right gradient in `dtype` may lie from the exact one, leaf by leaf.

    Two movements of the gradient are measured, relative to the norm of each leaf, and the larger is
    allowed:

    - by up to 16 roundings of every number of the arguments, and of every slope of an activation,
      times √n / 2. This covers what a chaotic network, a sum that nearly cancels, a saturated tanh
      or a relu at its kink makes of rounding.
    - by computing in float32 instead of float64, at points nearby, times 10 and converted to
      roundings of `dtype`. This covers what is lost inside the loss.

    Args:
        problem: the loss and the point.
        dtype: of the computation that is judged, or of the narrowest numbers in it.
        perturb_slopes: whether to perturb the slopes of the activations too, where the problem is
            that of an RNN.

    Returns:
        The relative error allowed for each leaf, and under "loss" for the loss; at least 1e-12.
    """
    rng, u = np.random.default_rng(0), float(jnp.finfo(dtype).eps) / 2
    forward = forward_by_hand(problem) if perturb_slopes else None

    def moved(leaf, by):
        return leaf * (1 + by * rng.uniform(-1, 1, leaf.shape))

    def named(args):
        loss, grads = problem.value_and_grad(*args)
        return {"loss": np.asarray(loss)} | arrays(grads)

    exact = named(problem.args)
    farthest, in_loss = dict.fromkeys(exact, ROUNDINGS * u), dict.fromkeys(exact, 0.0)
    for _ in range(PROBES):
        by_a_few = partial(moved, by=ROUNDINGS * u)
        for name, leaf in named(_map_floats(by_a_few, problem.args)).items():
            farthest[name] = max(farthest[name], relative_error(leaf, exact[name]))
        if forward is not None:
            grads = perturbed(forward, lambda s: s + ROUNDINGS * u * rng.uniform(-1, 1, s.shape))
            for name, leaf in arrays(grads).items():
                farthest[name] = max(farthest[name], relative_error(leaf, exact[name]))
        nearby = _map_floats(np.float32, _map_floats(partial(moved, by=NEARBY), problem.args))
        with jax.enable_x64(False):
            in_float32 = named(nearby)
        for name, leaf in named(_map_floats(np.float64, nearby)).items():
            in_loss[name] = max(in_loss[name], relative_error(in_float32[name], leaf))

    def allowed(name):
        lost = SAFETY * in_loss[name] * u / float(np.finfo(np.float32).eps / 2)
        if not np.isfinite(lost):  # too large for float32, which then is no measure of float64
            lost = 0.0 if dtype == "float64" else np.inf
        return float(max(EXACT, np.sqrt(problem.terms) / 2 * farthest[name], lost))

    return {name: allowed(name) for name in exact}


def _map_floats(change: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """Change the floating-point leaves of a pytree."""
    return jax.tree.map(lambda leaf: change(np.asarray(leaf)) if is_floats(leaf) else leaf, tree)
