"""Tolerances: the largest difference from the exact gradient that rounding alone may cause.

A sum of n terms makes about n rounding errors of at most u, half a unit in the last place, each. If
they are independent, their sum is about u √(n / 3) of the result (Higham 2002, Accuracy and
Stability of Numerical Algorithms, §2.8). How far the gradient changes as a consequence depends on
the network, so it is measured: the gradient is computed again at points that are perturbed by a few
rounding errors. `experiments/planted_bugs.py` tests the constants below: of 1,000 right gradients
in each precision, with weights from tiny to huge, none is reported as wrong, and every planted bug
is found.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.verification.candidate import arrays, map_floats
from jaxrnn.verification.diagnosis.backward_pass import perturbed
from jaxrnn.verification.leaf import EXACT, Leaf, relative_error
from jaxrnn.verification.problem import Problem, forward_by_hand

# Numbers are perturbed by up to ROUNDINGS u, and the gradient's change is multiplied by √n / 2.
# Together this is 8 √n u, about 14 times the u √(n / 3) expected of n independent rounding errors.
ROUNDINGS = 16

# The largest change over PROBES random points counts. If the kink of a relu is within a rounding
# error, one point stays on the same side with probability 1/2, all four with probability 1/16.
PROBES = 4

# The error of float32 is measured at points that are a thousandth away, where the gradient is
# about the same but its rounding errors differ. The tolerance is SAFETY times the largest of these
# errors, a margin like the 14 above.
NEARBY = 1e-3
SAFETY = 10

# A leaf that rounding alone may change by a hundredth of its norm cannot be judged: with such a
# tolerance most bugs would pass.
HOPELESS = 1e-2


def cannot_be_judged(leaf: Leaf) -> bool:
    """Return whether a leaf is not finite, or its tolerance is too large to detect bugs."""
    return leaf.not_finite > 0 or not leaf.tolerance <= HOPELESS


def measured_tolerances(
    problem: Problem, dtype: str, *, perturb_slopes: bool = True
) -> dict[str, float]:
    """Compute how far a right gradient in `dtype` may differ from the exact one, leaf by leaf.

    Two changes of the gradient are measured, relative to the norm of each leaf. The larger of the
    two is allowed.

    - Every number in the arguments, and every slope of an activation, is perturbed by up to 16
      rounding errors; the change of the gradient is multiplied by √n / 2. This covers how a chaotic
      network, a sum that nearly cancels, a saturated tanh or a relu at its kink amplifies rounding.
    - The gradient is computed in float32 instead of float64 at points nearby; the change is
      multiplied by 10 and scaled to the rounding error of `dtype`. This covers rounding inside the
      loss.

    Args:
        problem: the loss and its arguments.
        dtype: the dtype of the computation that is judged, or of the lowest precision in it.
        perturb_slopes: whether to perturb the slopes of the activations too, if the problem is
            that of an RNN.

    Returns:
        The relative error allowed for each leaf by name, and for the "loss"; at least 1e-12.
    """
    rng, u = np.random.default_rng(0), float(jnp.finfo(dtype).eps) / 2
    forward = forward_by_hand(problem) if perturb_slopes else None

    def perturb(leaf, by):
        return np.asarray(leaf) * (1 + by * rng.uniform(-1, 1, np.shape(leaf)))

    def loss_and_grads(args):
        loss, grads = problem.value_and_grad(*args)
        return {"loss": np.asarray(loss)} | arrays(grads)

    exact = loss_and_grads(problem.args)
    change, float32_error = dict.fromkeys(exact, ROUNDINGS * u), dict.fromkeys(exact, 0.0)
    for _ in range(PROBES):
        by_rounding = partial(perturb, by=ROUNDINGS * u)
        for name, leaf in loss_and_grads(map_floats(by_rounding, problem.args)).items():
            change[name] = max(change[name], relative_error(leaf, exact[name]))
        if forward is not None:
            grads = perturbed(forward, lambda s: s + ROUNDINGS * u * rng.uniform(-1, 1, s.shape))
            for name, leaf in arrays(grads).items():
                change[name] = max(change[name], relative_error(leaf, exact[name]))
        nearby = map_floats(partial(perturb, by=NEARBY), problem.args)
        nearby = map_floats(partial(np.asarray, dtype=np.float32), nearby)
        with jax.enable_x64(False):
            in_float32 = loss_and_grads(nearby)
        nearby = map_floats(partial(np.asarray, dtype=np.float64), nearby)
        for name, leaf in loss_and_grads(nearby).items():
            float32_error[name] = max(float32_error[name], relative_error(in_float32[name], leaf))

    def tolerance(name):
        rounding = SAFETY * float32_error[name] * u / float(np.finfo(np.float32).eps / 2)
        if not np.isfinite(rounding):  # too large for float32: it says nothing about float64
            rounding = 0.0 if dtype == "float64" else np.inf
        return float(max(EXACT, np.sqrt(problem.terms) / 2 * change[name], rounding))

    return {name: tolerance(name) for name in exact}
