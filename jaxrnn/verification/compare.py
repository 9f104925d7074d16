"""Comparing a gradient with a reference, leaf by leaf, in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.gradients import GradientAlgorithm, autodiff
from jaxrnn.network import RNN, Batch, Params, by_name

# Rounding, and no more: the largest relative error of an exact gradient in float64.
EXACT = 1e-12


class Leaf(NamedTuple):
    """How one leaf of the candidate's gradient g compares with the reference's r.

    Attributes:
        name: where it lies in `Params`.
        error: ‖g - r‖ / ‖r‖, or ‖g‖ where r is zero.
        cosine: of the angle between g and r; 1 is the same direction, nan if either is zero.
        scale: the s that brings s r nearest to g.
        worst: the index of the element that is furthest off.
        candidate: g there.
        reference: r there.
        not_finite: how many elements of g are infinite or not a number.
    """

    name: str
    error: float
    cosine: float
    scale: float
    worst: tuple[int, ...]
    candidate: float
    reference: float
    not_finite: int


class Report(NamedTuple):
    """What `verify` found.

    Attributes:
        candidate_loss: the candidate's loss.
        reference_loss: the loss of `rnn.loss`.
        leaves: one comparison for each leaf.
        tolerance: the largest relative error that passes.
        diagnosis: what is wrong, in words; empty when nothing is.
    """

    candidate_loss: float
    reference_loss: float
    leaves: tuple[Leaf, ...]
    tolerance: float
    diagnosis: str

    @property
    def ok(self) -> bool:
        """Whether the gradient is right."""
        return not self.diagnosis

    @property
    def worst(self) -> Leaf:
        """The leaf with the largest error."""
        return max(self.leaves, key=lambda leaf: np.nan_to_num(leaf.error, nan=np.inf))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return self._asdict() | {"ok": self.ok, "leaves": [leaf._asdict() for leaf in self.leaves]}

    def __str__(self) -> str:
        """Draw the table."""
        header = f"{'leaf':<18} {'error':>9} {'cosine':>10} {'scale':>10}  worst element"
        rows = [
            f"{leaf.name:<18} {leaf.error:9.1e} {leaf.cosine:10.6f} {leaf.scale:10.6f}  "
            f"{list(leaf.worst)}: {leaf.candidate:.6g}, reference {leaf.reference:.6g}"
            for leaf in self.leaves
        ]
        losses = f"loss {self.candidate_loss:.12g}, reference {self.reference_loss:.12g}"
        verdict = self.diagnosis or f"right: every error is at most {self.tolerance:.0e}"
        return "\n".join([header, *rows, losses, verdict])


Candidate = GradientAlgorithm | Callable[[Params, Batch], tuple[Any, Params]]


def verify(candidate: Candidate, rnn: RNN, params: Params, batch: Batch) -> Report:
    """Compare a gradient with `jax.grad` of `rnn.loss`, in float64, from h = 0.

    Args:
        candidate: a `GradientAlgorithm`, or a function (params, batch) -> (loss, grads) in JAX or
            NumPy.
        rnn: the network whose loss is meant.
        params: where to compare, in any dtype.
        batch: on what to compare.

    Raises:
        ValueError: if the gradient does not have the structure and shapes of params.
    """
    with jax.enable_x64(True):
        params, batch = jax.tree.map(_in_float64, (params, batch))
        h = rnn.initial_state(len(batch.inputs), jnp.float64)

        def value_and_grad(algorithm):
            carry = algorithm.init(params, h, key=jax.random.key(0))
            (loss, _), grads = jax.jit(algorithm.value_and_grad)(params, carry, batch)
            return loss, grads

        reference_loss, reference = value_and_grad(autodiff(rnn))
        if isinstance(candidate, GradientAlgorithm):
            candidate_loss, grads = value_and_grad(candidate)
        else:
            candidate_loss, grads = candidate(params, batch)
    return _compare(float(candidate_loss), grads, float(reference_loss), reference)


def _in_float64(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _compare(loss: float, grads: Params, reference_loss: float, reference: Params) -> Report:
    if jax.tree.structure(grads) != jax.tree.structure(reference):
        raise ValueError(
            f"the gradient must have the structure of params, {jax.tree.structure(reference)}, "
            f"but has {jax.tree.structure(grads)}"
        )
    leaves = tuple(
        _compare_leaf(name, np.asarray(g), np.asarray(r))
        for g, (name, r) in zip(jax.tree.leaves(grads), by_name(reference).items(), strict=True)
    )
    wrong = [leaf.name for leaf in leaves if not leaf.error <= EXACT]
    if not all(np.isfinite(leaf).all() for leaf in (reference_loss, *jax.tree.leaves(reference))):
        diagnosis = "cannot tell: the loss or gradient of the reference is itself not finite"
    elif not abs(loss - reference_loss) <= EXACT * abs(reference_loss):
        diagnosis = "wrong: the losses differ, and so the gradients cannot agree"
    elif wrong:
        diagnosis = f"wrong: {', '.join(wrong)}"
    else:
        diagnosis = ""
    return Report(loss, reference_loss, leaves, EXACT, diagnosis)


def _compare_leaf(name: str, g: np.ndarray, r: np.ndarray) -> Leaf:
    if g.shape != r.shape:
        raise ValueError(f"the gradient of {name} has shape {g.shape}, but {name} has {r.shape}")
    with np.errstate(all="ignore"):  # what is not finite shows in the figures
        unit = np.abs(r).max() or 1.0  # so that no square overflows
        scaled_g, scaled_r = g / unit, r / unit
        g_norm, r_norm = np.linalg.norm(scaled_g), np.linalg.norm(scaled_r)
        inner = np.vdot(scaled_r, scaled_g)
        difference = np.abs(scaled_g - scaled_r)
        worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), g.shape)
        return Leaf(
            name=name,
            error=float(np.linalg.norm(difference) / (r_norm if r_norm > 0 else 1.0)),
            cosine=float(inner / (g_norm * r_norm)),
            scale=float(inner / r_norm**2),
            worst=tuple(map(int, worst)),
            candidate=float(g[worst]),
            reference=float(r[worst]),
            not_finite=int(np.sum(~np.isfinite(g))),
        )
