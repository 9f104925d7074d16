"""Tests of the approximate and stochastic rules against the published updates, and their limits.

Each update is written in NumPy for one sequence, directly from its equation: with loops over rows
and time, dense matrices, and sums over all past steps where the rule has a recursion.
θ = [W_xh; W_hh; b_h] is (N, H). The influence M[p, j, i] of θ_pj on unit i is stored as (N·H, H).
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    Case,
    assert_equal,
    chunks,
    gradient,
    gradient_for_draws,
    make_case,
    relative_error,
)

import jaxrnn
from jaxrnn import gradients
from jaxrnn.gradients.rules.ok import reduce_rank


class Row(NamedTuple):
    """The quantities of a one-layer network on one sequence of a batch, which all rules use."""

    s: np.ndarray  # (T, N), the input of the weights: (x_t, h_{t-1}, 1)
    g: np.ndarray  # (T, H), leak φ'(a_t)
    J: np.ndarray  # (T, H, H), ∂h_t[i] / ∂h_{t-1}[k] at [t, k, i]
    d_y: np.ndarray  # (T, O), ∂ℓ_t/∂y_t
    e: np.ndarray  # (T, H), ∂ℓ_t/∂h_t
    before: np.ndarray  # (T, H), h_{t-1}
    after: np.ndarray  # (T, H), h_t
    leak: float
    W_hh: np.ndarray


ACTIVATIONS = {  # φ, φ'
    "tanh": (np.tanh, lambda a: np.cosh(a) ** -2.0),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda a: 1 / (2 * np.cosh(a / 2)) ** 2),
    "identity": (lambda a: a, np.ones_like),
}


def rows_of(case: Case) -> list[Row]:
    """Run the network on each row. The loss is the sum of the cross-entropies."""
    rnn, (cells, readout), h, batch = case
    (W_xh, W_hh, b_h), (W_hy, b_y) = jax.tree.map(np.asarray, (cells[0], readout))
    phi, slope = ACTIVATIONS[rnn.activation]
    inputs = np.asarray(batch.inputs)
    features = np.eye(len(W_xh))[inputs] if inputs.ndim == 2 else inputs
    theta = np.concatenate([W_xh, W_hh] if b_h is None else [W_xh, W_hh, b_h[None]])

    def row(x, h, targets):
        steps = []
        for x_t, target in zip(x, targets, strict=True):
            s = np.concatenate([x_t, h] if b_h is None else [x_t, h, [1.0]])
            g = rnn.leak * slope(s @ theta)
            J = (1 - rnn.leak) * np.eye(len(h)) + W_hh @ np.diag(g)
            before, h = h, (1 - rnn.leak) * h + rnn.leak * phi(s @ theta)
            likelihoods = np.exp(h @ W_hy + (0 if b_y is None else b_y))
            d_y = likelihoods / likelihoods.sum()
            d_y[target] -= 1
            steps.append((s, g, J, d_y, W_hy @ d_y, before, h))
        s, g, J, d_y, e, before, after = map(np.array, zip(*steps, strict=True))
        return Row(s, g, J, d_y, e, before, after, rnn.leak, W_hh)

    return [row(*one) for one in zip(features, np.asarray(h[0]), batch.targets, strict=True)]


def stacked(cell: jaxrnn.Cell) -> np.ndarray:
    """Stack the gradient of a cell, or of many, into one array (..., N, H)."""
    leaves = [cell.W_xh, cell.W_hh] if cell.b_h is None else [*cell[:2], cell.b_h[..., None, :]]
    return np.concatenate(leaves, axis=-2)


def direct(s: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Compute ∂h_t/∂θ with h_{t-1} held fixed, (N·H, H)."""
    return np.kron(s[:, None], np.diag(g))


def in_chunks(algorithm: jaxrnn.GradientAlgorithm, *lengths: int) -> jaxrnn.GradientAlgorithm:
    """Make an algorithm that computes a batch in chunks and sums their gradients."""

    def value_and_grad(params, carry, batch):
        loss, total = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        for chunk in chunks(batch, *lengths):
            (part, carry), grads = algorithm.value_and_grad(params, carry, chunk)
            loss, total = loss + part, jax.tree.map(jnp.add, total, grads)
        return (loss, carry), total

    return jaxrnn.GradientAlgorithm(algorithm.init, value_and_grad)


# The first has a leak, features, a bias and two chunks, the second none of them.
NETWORKS = pytest.mark.parametrize(
    ("network", "lengths"),
    [
        ({"leak": 0.3}, (2, 4)),
        ({"activation": "sigmoid", "ids": True, "use_bias": False}, (6,)),
    ],
    ids=["leak-features-bias-chunks", "sigmoid-ids"],
)


# The published updates


def masked_rtrl(row: Row, reach: np.ndarray) -> np.ndarray:
    """RTRL where j may reach i: M_t = M_{t-1} J_t + direct (Williams & Zipser 1989, eq. 9)."""
    N, H = row.s.shape[1], row.g.shape[1]
    M, total = np.zeros((N * H, H)), np.zeros(N * H)
    for s, g, J, e in zip(row.s, row.g, row.J, row.e, strict=True):
        M = (M @ J + direct(s, g)) * np.tile(reach, (N, 1))
        total += M @ e
    return total.reshape(N, H)


def rtrl(row: Row) -> np.ndarray:
    return masked_rtrl(row, np.ones_like(row.W_hh))


def snap(n: int) -> Callable[[Row], np.ndarray]:
    """SnAp-n with a brute-force mask: the k-th power of a pattern counts the paths of length k."""

    def update(row):
        pattern = (row.W_hh != 0).astype(int)
        paths = [np.linalg.matrix_power(pattern, k) for k in range(n)]
        return masked_rtrl(row, np.any(paths, axis=0))

    return update


def rflo(row: Row) -> np.ndarray:
    """RFLO: P_t = Σ_τ (1 - leak)^(t - τ) s_τ g_τ (Murray 2019, eq. 4 with fixed weights)."""
    total = 0
    for t, e in enumerate(row.e):
        decays = (1 - row.leak) ** (t - np.arange(t + 1))
        total = total + np.einsum("t,tp,tj->pj", decays, row.s[: t + 1], row.g[: t + 1]) * e
    return np.asarray(total)


def root_of_ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Compute √(‖a‖ / ‖b‖), or 1 where a is zero."""
    return np.sqrt(np.linalg.norm(a) / np.linalg.norm(b)) if a.any() else 1.0


def uoro(row: Row, signs: np.ndarray) -> np.ndarray:
    """UORO: M_t = θ̃_t ⊗ h̃_t (Tallec & Ollivier 2017, eqs. 13 to 17)."""
    N, H = row.s.shape[1], row.g.shape[1]
    h, theta, total = np.zeros(H), np.zeros(N * H), np.zeros(N * H)
    for s, g, J, e, nu in zip(row.s, row.g, row.J, row.e, signs, strict=True):
        h, immediate = J.T @ h, direct(s, g) @ nu
        rho_0, rho_1 = root_of_ratio(theta, h), root_of_ratio(immediate, nu)
        h = rho_0 * h + rho_1 * nu
        theta = theta / rho_0 + immediate / rho_1
        total += np.outer(theta, h) @ e
    return total.reshape(N, H)


def kf_rtrl(row: Row, signs: np.ndarray) -> np.ndarray:
    """KF-RTRL: M_t = u_t ⊗ A_t, scaled by Frobenius norms (Mujika et al. 2018, §3.2)."""
    N, H = row.s.shape[1], row.g.shape[1]
    u, A, total = np.zeros(N), np.zeros((H, H)), np.zeros(N * H)
    for s, g, J, e, (c_1, c_2) in zip(row.s, row.g, row.J, row.e, signs, strict=True):
        A, D = A @ J, np.diag(g)
        p_1, p_2 = root_of_ratio(A, u), root_of_ratio(D, s)
        u = c_1 * p_1 * u + c_2 * p_2 * s
        A = c_1 / p_1 * A + c_2 / p_2 * D
        total += np.kron(u[:, None], A) @ e
    return total.reshape(N, H)


def dni(row: Row) -> np.ndarray:
    """DNI, one step at a time, with the learning rate 0.3 (Jaderberg et al. 2017, §2.1)."""
    A, total = np.zeros((len(row.W_hh) + 1, len(row.W_hh))), 0
    for s, g, J, e, *states in zip(row.s, row.g, row.J, row.e, row.before, row.after, strict=True):
        before, after = (np.array([*h, 1]) for h in states)
        credit = e + after @ A
        total = total + np.outer(s, g * credit)
        A = A + 0.3 * np.outer(before, J @ credit - before @ A) / np.square(before).sum()
    return np.asarray(total)


def kernl(learning_rate: float, decay: float) -> Callable[[Row, np.ndarray], np.ndarray]:
    """KeRNL (Roth et al. 2019, alg. 1), with infinitesimal ξ and rates relative to the slopes.

    Every trace is a sum over the steps τ ≤ t, each with the weight Π κ at t.
    """

    def update(row, xi):
        H = row.g.shape[1]
        S, gamma, total, kappas = np.eye(H), np.full(H, -np.log(decay)), 0, []
        for t, e in enumerate(row.e):
            kappas.append(np.exp(-gamma))
            past = range(t + 1)
            weights = np.array([np.prod([*kappas[tau + 1 :], np.ones(H)], axis=0) for tau in past])
            E = np.einsum("tp,tj->pj", row.s[: t + 1], weights * row.g[: t + 1])
            omega = (weights * xi[: t + 1]).sum(0)
            Gamma = -sum((t - tau) * weights[tau] * xi[tau] for tau in past)  # ∂Ω/∂γ
            d = np.zeros(H)
            for tau in past:
                change = xi[tau]
                for J in row.J[tau + 1 : t + 1]:
                    change = change @ J
                d += change
            # The gradients of ½ ‖Ω S - d‖² by S and by γ
            error = omega @ S - d
            d_S, d_gamma = np.outer(omega, error), np.einsum("i,j,ji->j", error, Gamma, S)
            steepest = np.max(np.square(Gamma) * np.square(S).sum(1))
            rate = learning_rate / (np.square(omega).sum() + steepest)
            S, gamma = S - rate * d_S, np.maximum(gamma - rate * d_gamma, 0)  # κ ≤ 1
            total = total + E * (S @ e)
        return np.asarray(total)

    return update


DETERMINISTIC = {
    "rtrl": (gradients.rtrl, rtrl),
    "snap(1)": (lambda rnn: gradients.snap(rnn, 1), snap(1)),
    "snap(2)": (lambda rnn: gradients.snap(rnn, 2), snap(2)),
    "snap(3)": (lambda rnn: gradients.snap(rnn, 3), snap(3)),
    "rflo": (gradients.rflo, rflo),
    "dni": (lambda rnn: gradients.dni(rnn, 0.3), dni),
}

STOCHASTIC = {  # with the number of random numbers that a step of four units draws
    "uoro": (gradients.uoro, uoro, 4),
    "kf_rtrl": (gradients.kf_rtrl, kf_rtrl, 2),
    "kernl": (partial(gradients.kernl, learning_rate=0.2, decay=0.9), kernl(0.2, 0.9), 4),
    "kernl(decay=1)": (partial(gradients.kernl, learning_rate=0.2, decay=1.0), kernl(0.2, 1.0), 4),
}


def sparse(H: int) -> np.ndarray:
    """Draw a W_hh of which 30 % are not zero. Some units are connected to themselves, some not."""
    draw = np.random.default_rng(3)
    W_hh = draw.normal(size=(H, H)) * (draw.uniform(size=(H, H)) < 0.3)
    assert 0 < np.count_nonzero(np.diag(W_hh)) < H
    return W_hh


def with_recurrent(case: Case, W_hh: Any) -> Case:
    """Replace the recurrent weights of a one-layer case."""
    (cell,) = case.params.cells
    cell = cell._replace(W_hh=jnp.asarray(W_hh, cell.W_hh.dtype))
    return case._replace(params=case.params._replace(cells=(cell,)))


@pytest.mark.parametrize("rule", DETERMINISTIC)
@NETWORKS
def test_a_deterministic_rule_is_its_published_update(rule, network, lengths):
    case = make_case(**{**network, "H": 7})
    case = with_recurrent(case, sparse(7))
    build, update = DETERMINISTIC[rule]
    grads = gradient(in_chunks(build(case.rnn), *lengths), case)[1]
    assert_equal(stacked(grads.cells[0]), sum(map(update, rows_of(case))))


def test_the_masks_differ_in_the_sparse_network():
    (row, *_) = rows_of(with_recurrent(make_case(H=7), sparse(7)))
    for fewer, more in ((snap(1), snap(2)), (snap(2), snap(3)), (snap(3), rtrl)):
        assert relative_error(fewer(row), more(row)) > 1e-3


@pytest.mark.parametrize("rule", STOCHASTIC)
@NETWORKS
def test_a_stochastic_rule_is_its_published_update(rule, network, lengths):
    case = make_case(**network)
    build, update, numbers = STOCHASTIC[rule]
    table = np.random.default_rng(5).normal(size=(3, 6, numbers))
    table = table if "kernl" in rule else np.sign(table)
    cut = lambda rnn, noise: in_chunks(build(rnn, noise=noise), *lengths)  # noqa: E731
    grads = gradient_for_draws(cut, case, jnp.asarray(table))
    expected = [sum(update(row, draw) for row in rows_of(case)) for draw in table]
    assert_equal(stacked(grads.cells[0]), np.array(expected))


@NETWORKS
def test_rflo_with_random_feedback_is_its_published_update(network, lengths):
    case = make_case(**network)
    algorithm = in_chunks(gradients.rflo(case.rnn, "random"), *lengths)
    (_, carry), grads = gradient(algorithm, case)
    matrix = np.asarray(carry.memory.matrix.value)
    rows = [row._replace(e=row.d_y @ matrix) for row in rows_of(case)]
    assert_equal(stacked(grads.cells[0]), sum(map(rflo, rows)))


# Optimal Kronecker sums are compared as sets, since the signs of singular vectors are arbitrary


def reductions(X: np.ndarray, rank: int) -> list[np.ndarray]:
    """Return all equally likely outcomes of reducing a matrix of rank `rank` + 1 to `rank`.

    Benzing et al. 2019, thm. 1: with m the first for which (rank - m) d_{m+1} ≤ σ = Σ_{i>m} d_i,
    the part beyond m becomes σ / (rank - m) times P C (1 - z zᵀ) C Qᵀ. C holds random signs, and
    z_i² = 1 - (rank - m) d_i / σ, so that the diagonal is d.
    """
    P, d, Q = np.linalg.svd(X, full_matrices=False)
    P, d, Q = P[:, : rank + 1], d[: rank + 1] * (d[: rank + 1] > 1e-13 * d[0]), Q[: rank + 1]
    m = next(m for m in range(rank) if (rank - m) * d[m] <= d[m:].sum())
    unchanged, sigma = P[:, :m] * d[:m] @ Q[:m], d[m:].sum()
    z = np.sqrt(np.maximum(0, 1 - (rank - m) * d[m:] / (sigma or 1)))
    rotated = sigma / (rank - m) * (np.eye(rank + 1 - m) - np.outer(z, z))
    signs = product((-1, 1), repeat=rank + 1)
    return [unchanged + P[:, m:] @ (rotated * np.outer(c[m:], c[m:])) @ Q[m:] for c in signs]


def ok(row: Row, rank: int) -> np.ndarray:
    """Compute the gradients of all outcomes, with the estimate of M as an (N, H²) matrix."""
    N, H = row.s.shape[1], row.g.shape[1]
    outcomes = [(np.zeros((N * H, H)), np.zeros(N * H))]
    for s, g, J, e in zip(row.s, row.g, row.J, row.e, strict=True):
        outcomes = [
            (X.reshape(N * H, H), total + X.reshape(N * H, H) @ e)
            for M, total in outcomes
            for X in reductions((M @ J + direct(s, g)).reshape(N, H * H), rank)
        ]
    return np.array([total.reshape(N, H) for _, total in outcomes])


def all_signs(T: int, numbers: int) -> jnp.ndarray:
    """Return every pattern of signs that T steps can draw."""
    return jnp.array(list(product((-1.0, 1.0), repeat=T * numbers))).reshape(-1, T, numbers)


def in_order(outcomes: np.ndarray) -> np.ndarray:
    """Sort outcomes by their projection on a random direction, which differs where they differ."""
    flat = outcomes.reshape(len(outcomes), -1)
    return flat[np.argsort(flat @ np.random.default_rng(0).normal(size=flat.shape[1]))]


@pytest.mark.parametrize(("rank", "lengths"), [(1, (1, 2)), (2, (3,))])
def test_ok_has_the_outcomes_of_the_optimal_reduction(rank, lengths):
    case = make_case(B=1, T=3, I=3, H=2, leak=0.7)
    table = all_signs(3, rank + 1)
    cut = lambda rnn, noise: in_chunks(gradients.ok(rnn, rank, noise=noise), *lengths)  # noqa: E731
    grads = gradient_for_draws(cut, case, jnp.asarray(table))
    (row,) = rows_of(case)
    outcomes, expected = stacked(grads.cells[0]), ok(row, rank)
    assert_equal(in_order(outcomes), in_order(expected))
    assert_equal(outcomes.mean(0), expected.mean(0))
    assert_equal(np.square(outcomes).mean(0), np.square(expected).mean(0))
    assert outcomes.std(0).max() > 1e-3


reduce_for_all_signs = jax.jit(jax.vmap(reduce_rank, (None, None, 0)))
SPECTRA = [(2, 1), (3, 2.9, 2.8), (5, 1, 0.9), (4, 3.8, 3.5, 3), (9, 2, 1.9, 1.5), (4, 3, 1, 0.9)]


@pytest.mark.parametrize("d", SPECTRA, ids=str)
def test_a_reduction_is_unbiased_and_has_the_least_possible_variance(d):
    """The least variance is that of Benzing et al. 2019, thm. 1, for the singular values d."""
    n, d, draw = len(d), np.array(d), np.random.default_rng(0)
    P, Q = (np.linalg.qr(draw.normal(size=(size, n)))[0] for size in (5, 6))
    mix = draw.normal(size=(n, n))  # the same sum of products that are not orthogonal
    u, v = mix @ P.T, np.linalg.inv(mix).T @ (d[:, None] * Q.T)
    left, right = reduce_for_all_signs(u, v, all_signs(1, n)[:, 0])
    assert left.shape == (2**n, n - 1, 5)
    assert right.shape == (2**n, n - 1, 6)
    outcomes = np.einsum("skp,skq->spq", left, right)
    assert_equal(outcomes.mean(0), u.T @ v)
    assert (np.linalg.matrix_rank(outcomes) == n - 1).all()
    r = n - 1
    least = min(
        d[m:].sum() ** 2 / (r - m) - np.square(d[m:]).sum()
        for m in range(r)
        if (r - m) * d[m] <= d[m:].sum()
    )
    variance = np.square(outcomes).sum((1, 2)).mean() - np.square(d).sum()
    assert_equal(variance, least)


@pytest.mark.parametrize("d", [(2, 0), (3, 1, 0), (3, 0, 0), (0, 0, 0)], ids=str)
def test_a_sum_that_has_the_lower_rank_already_is_not_changed(d):
    n, draw = len(d), np.random.default_rng(0)
    u, v = draw.normal(size=(n, 5)), draw.normal(size=(n, 6)) * np.array(d)[:, None]
    outcomes = reduce_for_all_signs(u, v, all_signs(1, n)[:, 0])
    for left, right in zip(*outcomes, strict=True):
        assert_equal(left.T @ right, u.T @ v)


# Limits: snap


def cycle(H: int) -> np.ndarray:
    """Connect each unit to the next only, so that the longest path between two units is H - 1."""
    return np.roll(np.diag(np.linspace(0.5, 0.9, H)), 1, axis=1)


def test_snap_equals_rtrl_with_as_many_steps_as_units_and_not_with_fewer():
    case = with_recurrent(make_case(), cycle(4))
    expected = gradient(gradients.rtrl(case.rnn), case)[1]
    for n in (4, 9):
        assert_equal(gradient(gradients.snap(case.rnn, n), case)[1], expected)
    assert relative_error(gradient(gradients.snap(case.rnn, 3), case)[1], expected) > 1e-3


@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_snap_of_one_step_is_rtrl_where_no_unit_feeds_another(leak):
    case = with_recurrent(make_case(leak=leak), np.diag([0.9, -0.7, 0.5, 0.3]))
    expected = gradient(gradients.rtrl(case.rnn), case)[1]
    assert_equal(gradient(gradients.snap(case.rnn, 1), case)[1], expected)


def test_snap_keeps_the_mask_of_the_weights_that_init_saw():
    sparse_case, case = with_recurrent(make_case(), cycle(4)), make_case()
    algorithm = gradients.snap(case.rnn, 2)
    init = lambda params, h, key=None: algorithm.init(sparse_case.params, h)  # noqa: E731
    grads = gradient(jaxrnn.GradientAlgorithm(init, algorithm.value_and_grad), case)[1]
    mask = (np.eye(4) + cycle(4)) > 0
    expected = sum(masked_rtrl(row, mask) for row in rows_of(case))
    assert_equal(stacked(grads.cells[0]), expected)


# Limits: rflo


def test_rflo_without_a_leak_is_the_one_hop_gradient():
    case = make_case()
    expected = gradient(gradients.truncated_bptt(case.rnn, 0), case)[1]
    assert_equal(gradient(gradients.rflo(case.rnn), case)[1], expected)


def test_rflo_is_exact_without_recurrent_connections():
    case = with_recurrent(make_case(leak=0.3), np.zeros((4, 4)))
    grads = gradient(gradients.rflo(case.rnn), case)[1]
    assert_equal(grads, gradient(gradients.rtrl(case.rnn), case)[1])
    assert_equal(grads, gradient(gradients.autodiff(case.rnn), case)[1])


def rflo_with_feedback(rnn: jaxrnn.RNN, matrix: jax.Array) -> jaxrnn.GradientAlgorithm:
    """Make `rflo` with this matrix in place of the random one."""
    algorithm = gradients.rflo(rnn, "random")

    def init(params, h, key=None):
        carry = algorithm.init(params, h, key=key)
        return carry._replace(memory=carry.memory._replace(matrix=gradients.Lasting(matrix)))

    return jaxrnn.GradientAlgorithm(init, algorithm.value_and_grad)


def test_rflo_with_the_readouts_transpose_for_feedback_is_rflo_with_the_readout():
    case = make_case(leak=0.3, num_layers=2)
    grads = gradient(rflo_with_feedback(case.rnn, case.params.readout.W_hy.T), case)[1]
    assert_equal(grads, gradient(gradients.rflo(case.rnn), case)[1])


def test_the_gradient_is_linear_in_the_feedback_and_that_of_the_readout_exact():
    case = make_case(leak=0.3)
    one, other = jax.random.normal(jax.random.key(4), (2, 2, 4), jnp.float64)
    by_one, by_other, by_both = (
        gradient(rflo_with_feedback(case.rnn, matrix), case)[1]
        for matrix in (one, other, 2 * one - 3 * other)
    )
    expected = jax.tree.map(lambda a, b: 2 * a - 3 * b, by_one.cells, by_other.cells)
    assert_equal(by_both.cells, expected)
    assert relative_error(by_one.cells, by_other.cells) > 1e-1
    exact = gradient(gradients.autodiff(case.rnn), case)[1].readout
    for grads in (by_one, by_other, by_both):
        assert_equal(grads.readout, exact)


# Limits: kernl


def test_kernl_that_does_not_learn_and_decays_by_the_leak_is_rflo():
    case = make_case(leak=0.3, num_layers=2)
    grads = gradient(gradients.kernl(case.rnn, learning_rate=0.0, decay=0.7), case)[1]
    assert_equal(grads, gradient(gradients.rflo(case.rnn), case)[1])


def test_kernl_that_does_not_learn_is_exact_where_all_units_decay_equally():
    case = with_recurrent(make_case(activation="identity"), 0.6 * np.eye(4))
    grads = gradient(gradients.kernl(case.rnn, learning_rate=0.0, decay=0.6), case)[1]
    assert_equal(grads, gradient(gradients.autodiff(case.rnn), case)[1])


def test_kernl_learns_how_fast_each_unit_decays_and_that_none_feeds_another():
    """Gradient descent from random changes, at a fixed key, only approaches its limit.

    The tolerance 0.02 is more than twice the error after 4000 steps. Initially, κ is wrong by 0.35.
    """
    w = np.array([0.3, 0.5, 0.7, 0.85])
    case = with_recurrent(make_case(T=4000, activation="identity"), np.diag(w))
    carry = gradient(gradients.kernl(case.rnn, learning_rate=0.3), case)[0][1]
    kernel = carry.memory[0].influence.kernel.value
    np.testing.assert_allclose(np.exp(-kernel.gamma), np.tile(w, (3, 1)), rtol=0, atol=0.02)
    np.testing.assert_allclose(kernel.S, np.tile(np.eye(4), (3, 1, 1)), rtol=0, atol=0.02)


# Limits: dni


def test_dni_that_does_not_learn_is_the_one_hop_gradient():
    case = make_case(leak=0.3)
    grads = gradient(gradients.dni(case.rnn, learning_rate=0.0), case)[1]
    assert_equal(grads, gradient(gradients.truncated_bptt(case.rnn, 0), case)[1])


def test_dni_is_bptt_and_does_not_change_where_its_forecast_is_exact():
    """In a linear network h_{t+1} = h_t W and e_t = h_t Q, so c_t = h_t W (Q + A) Wᵀ = h_t A.

    W halves a state, so the credit from beyond the last of 60 steps is negligible.
    """
    case = make_case(T=60, activation="identity", use_bias=False, loss_function="squared_error")
    case = with_recurrent(case, 0.5 * case.params.cells[0].W_hh)
    case = case._replace(batch=jax.tree.map(jnp.zeros_like, case.batch))
    W, W_hy = case.params.cells[0].W_hh, case.params.readout.W_hy
    Q, A = 2 * W_hy @ W_hy.T, jnp.zeros((4, 4))
    for _ in range(60):
        A = W @ (Q + A) @ W.T
    forecast = jnp.tile(jnp.pad(A, ((0, 1), (0, 0))), (3, 1, 1))

    algorithm = gradients.dni(case.rnn, learning_rate=0.3)
    carry = algorithm.init(case.params, case.h)
    assert carry.memory[0].value.shape == forecast.shape
    carry = carry._replace(memory=(gradients.Lasting(forecast),))
    value_and_grad = jax.jit(algorithm.value_and_grad)
    (_, carry), grads = value_and_grad(case.params, carry, case.batch)
    assert_equal(grads, gradient(gradients.autodiff(case.rnn), case)[1])
    assert_equal(carry.memory[0].value, forecast)


# Limits: ok


@pytest.mark.parametrize("rank", [6, 8])
def test_ok_with_as_many_products_as_steps_is_rtrl(rank):
    case = make_case()
    grads = gradient(gradients.ok(case.rnn, rank), case)[1]
    assert_equal(grads, gradient(gradients.rtrl(case.rnn), case)[1])


def last_influences(build, case: Case, table: jax.Array) -> np.ndarray:
    """Return the estimate of M_T for every draw and row, (draws, B, N, H²)."""

    def with_influence(rnn, noise):
        algorithm = build(rnn, noise=noise)

        def value_and_memory(params, carry, batch):
            (loss, carry), _ = algorithm.value_and_grad(params, carry, batch)
            return (loss, carry), carry.memory[0].influence

        return jaxrnn.GradientAlgorithm(algorithm.init, value_and_memory)

    u, A = map(np.asarray, gradient_for_draws(with_influence, case, table))
    draws, B, N = len(table), *case.h.shape[1:2], u.shape[-1]
    u, A = u.reshape(draws, B, -1, N), A.reshape(draws, B, -1, A.shape[-1] ** 2)
    return np.einsum("dbkp,dbki->dbpi", u, A)


def test_ok_has_less_variance_than_kf_rtrl_at_the_first_approximation():
    """Both are exact at the first step. At the second, both reduce the same two products to one."""
    case, table = make_case(T=2, leak=0.7), all_signs(2, 2)
    by_ok = last_influences(gradients.ok, case, table)
    by_kf = last_influences(gradients.kf_rtrl, case, table)
    assert_equal(by_ok.mean(0), by_kf.mean(0))
    less, more = (by.var(0).sum((1, 2)) for by in (by_ok, by_kf))
    assert (less > 0).all()
    assert (less < more).all()


# Rows


@pytest.mark.parametrize("rule", ["rtrl", "snap(1)", "rflo", "dni"])
def test_the_gradient_of_a_batch_is_the_sum_of_its_rows(rule):
    case = make_case(leak=0.3, mask=True)
    algorithm = DETERMINISTIC[rule][0](case.rnn)

    def of_row(h, batch):
        h, batch = h[:, None], jax.tree.map(lambda leaf: leaf[None], batch)
        return algorithm.value_and_grad(case.params, algorithm.init(case.params, h), batch)[1]

    rows = [
        jax.jit(of_row)(case.h[:, b], jax.tree.map(lambda leaf, b=b: leaf[b], case.batch))
        for b in range(3)
    ]
    assert_equal(gradient(algorithm, case)[1], jax.tree.map(lambda *parts: sum(parts), *rows))
