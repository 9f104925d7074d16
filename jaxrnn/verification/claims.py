"""Check a gradient rule against its own claim: exact, truncated, unbiased or approximate.

With the gradient g of a rule, the exact gradient r and the error e = g - r of each of N draws,

    ‖E e‖² ≈ U = mean of ⟨e_i, e_j⟩ over i ≠ j        sd(U)² ≈ 2 mean of ⟨e_i, e_j⟩² / N (N - 1)

U is an unbiased estimate of the squared bias, so an unbiased rule has U of the size of sd(U).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn.analysis.compare import draw_gradients, draws_numbers, estimate, vectors
from jaxrnn.analysis.lags import split_by_lag
from jaxrnn.gradients import Claim, GradientAlgorithm
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name, copied, html_table, length, plain, text_table
from jaxrnn.verification.leaf import EXACT
from jaxrnn.verification.report import Report
from jaxrnn.verification.verify import verify

LIMIT = 8.0  # the largest U / sd(U) of a rule that counts as unbiased


class LeafEstimate(NamedTuple):
    """The bias and the cosine of one leaf of the gradient, or of the whole gradient.

    Attributes:
        name: the name of the leaf, or "all".
        bias: ‖mean of g - r‖ / ‖r‖.
        expected: the bias that the noise of the draws alone gives an unbiased rule, √(variance/N).
        visible: the smallest bias that the draws show to be one.
        cosine: the mean cosine between g and r.
        unbiased: whether the mean agrees with r within its standard error.
    """

    name: str
    bias: float
    expected: float
    visible: float
    cosine: float
    unbiased: bool


class ClaimReport(NamedTuple):
    """The result of comparing a rule that is not exact with its claim.

    Attributes:
        claim: "unbiased" or "approximate".
        draws: the number of gradients; 1 for a rule without random numbers.
        loss: the loss of the rule.
        reference_loss: the exact loss.
        leaves: the estimate for each leaf, and for the whole gradient as the last.
    """

    claim: Claim
    draws: int
    loss: float
    reference_loss: float
    leaves: tuple[LeafEstimate, ...]

    @property
    def ok(self) -> bool:
        """Whether the loss is right and the gradient is finite and what the rule claims."""
        return self.diagnosis.startswith("right")

    def __bool__(self) -> bool:
        """Return `ok`."""
        return self.ok

    @property
    def diagnosis(self) -> str:
        """One line that begins with "right" or "wrong"."""
        if not abs(self.loss - self.reference_loss) <= EXACT * abs(self.reference_loss):
            return (
                f"wrong: loss: the losses differ, {self.loss:.8g} where the reference has "
                f"{self.reference_loss:.8g}"
            )
        if not all(math.isfinite(leaf.bias) for leaf in self.leaves):
            return f"wrong: not finite in {', '.join(self.wrong_leaves)}"
        whole = self.leaves[-1]
        if self.claim == "approximate":
            return (
                f"right for an approximate rule, which promises no more than the loss: its cosine "
                f"to the exact gradient is {whole.cosine:.4f} here"
            )
        if self.wrong_leaves:
            return (
                f"wrong: biased in {', '.join(self.wrong_leaves)}: the mean over {self.draws:,} "
                f"draws differs from the exact gradient by more than its standard error explains"
            )
        return (
            f"right for an unbiased rule: the mean over {self.draws:,} draws is the exact gradient "
            f"within its standard error; a bias above {whole.visible:.2g} would have been seen"
        )

    @property
    def wrong_leaves(self) -> list[str]:
        """The names of the leaves that are not finite or, if there are none, that are biased."""
        bad = [leaf.name for leaf in self.leaves if not math.isfinite(leaf.bias)]
        if bad or self.claim == "approximate":
            return bad
        return [leaf.name for leaf in self.leaves if not leaf.unbiased]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON; numbers that are not finite become None."""
        return plain(self) | {"ok": self.ok, "diagnosis": self.diagnosis}

    def __str__(self) -> str:
        """Return a table of the leaves, and the diagnosis."""
        return "\n".join([*text_table(*self.table()), self.diagnosis])

    def _repr_html_(self) -> str:
        """Return the table and the diagnosis for a notebook."""
        return html_table(*self.table(), [self.diagnosis])

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the titles of the table and a row for each leaf, and for all."""
        rows = []
        for leaf in self.leaves:
            noise = f"{leaf.expected:.2g}" if self.draws > 1 else "-"
            rows.append((leaf.name, f"{leaf.bias:.2g}", noise, f"{leaf.cosine:.4f}"))
        return ("leaf", "mean off by", "by noise alone", "cosine"), rows

    def remarks(self) -> list[str]:
        """Return the lines between the table and the diagnosis, of which there are none."""
        return []


def verify_claim(
    algorithm: GradientAlgorithm,
    rnn: RNN,
    params: Params,
    batch: Batch,
    *,
    claim: Claim,
    window: int | None = None,
    h: Float[AnyArray, "L B H"] | None = None,
    draws: int = 1024,
    seed: int = 0,
) -> Report | ClaimReport:
    """Check a rule against what it claims about its gradient, in float64.

    An exact rule is compared with `jax.grad`, a truncated one with the sum of the exact gradient's
    parts at the lags 0 … window, each to 1e-12. Of an unbiased rule, the mean over many draws is
    compared with the exact gradient. An approximate rule must have the right loss and a finite
    gradient, and its cosine to the exact gradient is measured.

    Args:
        algorithm: the rule.
        rnn: the network.
        params: the parameters.
        batch: inputs (B, T) or (B, T, I), targets, optionally mask and lengths.
        claim: "exact", "truncated", "unbiased" or "approximate".
        window: for "truncated", the recurrent steps that an error goes back.
        h: the state before the first step, (num_layers, B, H); zeros by default.
        draws: how many gradients to draw from a rule with random numbers, at least 2.
        seed: the random seed of the draws.

    Returns:
        The report of `verify` for exact and truncated rules, or for a gradient whose structure is
        wrong; otherwise a `ClaimReport`. Both have `ok` and `diagnosis`.

    Raises:
        ValueError: if an argument is out of range, or the arrays do not fit the network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> params, rule = rnn.init(jax.random.key(0)), jaxrnn.gradients.rflo(rnn)
    >>> verify_claim(rule, rnn, params, batch, claim="approximate").ok
    True
    >>> verify_claim(rule, rnn, params, batch, claim="exact").ok
    False
    """
    checks.one_of("claim", claim, ("exact", "truncated", "unbiased", "approximate"))
    checks.whole("draws", draws, 2)
    check_is_batch(batch)
    compare = partial(verify, algorithm, rnn, params, batch, h=h)
    if claim == "exact":
        return compare()
    if claim == "truncated":
        if window is None:
            raise ValueError("a truncated rule is compared at its window: give window=…")
        title = f"the exact gradient's parts at the lags 0 … {window}, in float64"
        return compare(reference=_truncated(rnn, h, window))._replace(reference=title)
    params, h, batch = copied((params, h, batch))
    with jax.enable_x64(True):
        params, batch, start = jax.tree.map(
            _wide, (params, batch, rnn.initial_state(len(batch.inputs)) if h is None else h)
        )
        batch, start = check_batch(rnn, params, batch, start)
        try:
            (shape, _), leaves = jax.eval_shape(
                lambda: algorithm.value_and_grad(
                    params, algorithm.init(params, start, key=jax.random.key(0)), batch
                )
            )
            fits = shape[0].shape == () if isinstance(shape, tuple) else shape.shape == ()
            fits &= jax.tree.map(jnp.shape, leaves) == jax.tree.map(jnp.shape, params)
        except Exception:  # a rule of the user's own may raise anything: `verify` says where
            fits = False
        if not fits:
            return compare()
        return _estimates(algorithm, rnn, params, batch, start, claim, draws, seed)


def _wide(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    return array.astype("float64") if jnp.issubdtype(array.dtype, jnp.floating) else array


def _truncated(rnn: RNN, h: Any, window: int) -> Any:
    """Return a function (params, batch) -> (loss, gradient at the lags up to `window`)."""

    def value_and_grad(params, batch):
        start = rnn.initial_state(len(batch.inputs)) if h is None else jnp.asarray(h)
        checked, start = check_batch(rnn, params, batch, start)
        loss, grads = jax.value_and_grad(lambda params: rnn.loss(params, start, checked)[0])(params)
        lags = min(window + 1, batch.inputs.shape[1])
        parts = split_by_lag(rnn, params, start, checked, lags).parts
        cells = jax.tree.map(lambda part: part.sum(0), parts)
        return loss, grads._replace(cells=cells)

    return value_and_grad


def _estimates(
    algorithm: GradientAlgorithm,
    rnn: RNN,
    params: Params,
    batch: Batch,
    h: Array,
    claim: Claim,
    draws: int,
    seed: int,
) -> ClaimReport:
    """Draw gradients, and compare their mean and their cosines with the exact gradient."""
    keys = jax.random.split(jax.random.key(seed), draws)
    keys = keys if draws_numbers(algorithm, params, h, keys) else keys[:1]
    losses, grads = draw_gradients(algorithm, params, h, batch, keys)
    loss, exact = jax.jit(jax.value_and_grad(lambda p: rnn.loss(p, h, batch)[0]))(params)
    g = vectors(grads)
    r = {name: np.asarray(leaf).ravel() for name, leaf in by_name(exact).items()}
    leaves = [_estimate(name, g[name], r[name]) for name in r]
    leaves.append(
        _estimate("all", np.concatenate([g[n] for n in r], 1), np.concatenate(list(r.values())))
    )
    worst = losses[jnp.argmax(jnp.abs(losses - loss))]
    return ClaimReport(claim, len(losses), float(worst), float(loss), tuple(leaves))


def _estimate(
    name: str, g: Float[np.ndarray, "N size"], r: Float[np.ndarray, " size"]
) -> LeafEstimate:
    """Compare N draws of a leaf with the exact one."""
    if not np.isfinite(g).all():
        return LeafEstimate(name, math.nan, math.nan, math.nan, math.nan, False)
    found, count = estimate(g, r), len(g)
    if count == 1:
        return LeafEstimate(name, found.bias, 0.0, EXACT, found.cosine, found.bias <= EXACT)
    errors = (g - r) / (length(r) or 1.0)
    products = errors @ errors.T
    pairs = products[~np.eye(count, dtype=bool)]
    spread = math.sqrt(2 * float(np.mean(pairs**2)) / (count * (count - 1)))
    unbiased = found.bias <= EXACT or float(pairs.mean()) <= LIMIT * spread
    visible = max(EXACT, math.sqrt(LIMIT * spread))
    return LeafEstimate(name, found.bias, found.standard_error, visible, found.cosine, unbiased)
