"""What rounding alone may do to a gradient: where the tolerances come from."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.verification.candidate import arrays, is_floats
from jaxrnn.verification.leaf import EXACT, relative_error

PROBES = 4
ROUNDINGS = 16
NEARBY = 1e-3

# Where rounding alone moves a gradient by so much, nobody can tell whether it is right.
HOPELESS = 1e-2


def allowances(
    value_and_grad: Callable[..., tuple[Any, Any]],
    args: tuple[Any, ...],
    dtype: str,
    terms: int,
    perturbed: Callable[[Callable[[np.ndarray], np.ndarray]], Any] | None = None,
) -> dict[str, float]:
    """Measure how far a right gradient in this dtype may lie from the exact one, leaf by leaf.

    Two things are measured, relative to each leaf's norm, and the larger is allowed:

    - How far the gradient moves when every number of the arguments, and every slope of an
      activation, moves by up to 16 roundings, times √n / 2, for a computation of n terms makes
      about √n of them. This finds what a chaotic network, a sum that nearly cancels, a saturated
      tanh or a relu at its kink makes of rounding.
    - Ten times how far autodiff itself is off in float32, at points nearby and in roundings of the
      dtype. This finds what is lost inside the loss.

    Args:
        value_and_grad: args -> (loss, gradient).
        args: where, in float64.
        dtype: of the computation that is judged, or of the narrowest numbers in it.
        terms: n, about how many terms each sum has.
        perturbed: computes the gradient with a function applied to every slope of the backward
            pass.

    Returns:
        The relative error allowed for each leaf, and under "loss" for the loss; at least 1e-12.
    """
    rng, rounding = np.random.default_rng(0), float(jnp.finfo(dtype).eps) / 2

    def moved(leaf, by):
        return leaf * (1 + by * rng.uniform(-1, 1, leaf.shape))

    def named(args):
        loss, grads = value_and_grad(*args)
        return {"loss": np.asarray(loss)} | arrays(grads)

    exact = named(args)
    farthest, inside = dict.fromkeys(exact, ROUNDINGS * rounding), dict.fromkeys(exact, 0.0)
    for _ in range(PROBES):
        for name, leaf in named(_floats(partial(moved, by=ROUNDINGS * rounding), args)).items():
            farthest[name] = max(farthest[name], relative_error(leaf, exact[name]))
        if perturbed is not None:
            grads = perturbed(lambda s: s + ROUNDINGS * rounding * rng.uniform(-1, 1, s.shape))
            for name, leaf in arrays(grads).items():
                farthest[name] = max(farthest[name], relative_error(leaf, exact[name]))
        rounded = _floats(np.float32, _floats(partial(moved, by=NEARBY), args))
        with jax.enable_x64(False):
            in_float32 = named(rounded)
        for name, leaf in named(_floats(np.float64, rounded)).items():
            inside[name] = max(inside[name], relative_error(in_float32[name], leaf))

    def allowed(name):
        lost = 10 * inside[name] * rounding / float(np.finfo(np.float32).eps / 2)
        if not np.isfinite(lost):  # too large for float32, and so no measure of float64
            lost = 0.0 if dtype == "float64" else np.inf
        return float(max(EXACT, np.sqrt(terms) / 2 * farthest[name], lost))

    return {name: allowed(name) for name in exact}


def _floats(change: Callable[[np.ndarray], Any], args: Any) -> Any:
    """Change the floats of a pytree."""
    return jax.tree.map(lambda leaf: change(np.asarray(leaf)) if is_floats(leaf) else leaf, args)
