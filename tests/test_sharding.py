"""Tests that every rule computes the same on several devices, each with its rows, as on one.

The devices are the two CPU devices that conftest.py configures.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, gradient, make_case
from jax import lax
from jax.sharding import PartitionSpec
from rule_table import KINDS, RULES, algorithm_of, every_kind_of_rule

import jaxrnn
from jaxrnn.gradients.engine.algorithm import batch_axes
from jaxrnn.training import sharding

MASKED = {"ids": True, "mask": True, "reduction": "mean"}
STACKED = {"num_layers": 2, "leak": 0.7, "loss_function": "squared_error"}
CASES = [
    pytest.param(name, MASKED, marks=[pytest.mark.slow] * (name not in KINDS)) for name in RULES
] + [pytest.param(name, STACKED, marks=pytest.mark.slow) for name in ("bptt", "uoro")]


@pytest.mark.parametrize(("rule", "network"), CASES, ids=str)
def test_every_rule_computes_the_same_on_two_devices_as_on_one(rule, network):
    """The batch has lengths, and two chunks, so that the carry between them is tested too."""
    mesh = jaxrnn.make_mesh()
    assert mesh.size == 2
    case = make_case(B=2 * mesh.size, **network)
    alone = through_chunks(algorithm_of(rule, case.rnn), case)
    together = through_chunks(jaxrnn.sharded(RULES[rule].build, case.rnn, mesh), case)
    assert_equal(together, alone)


def through_chunks(algorithm, case):
    step, results = jax.jit(algorithm.value_and_grad), []
    carry = algorithm.init(case.params, case.h, key=jax.random.key(7))
    for chunk in jaxrnn.chunks(case.batch, 3):
        batch = chunk._replace(lengths=np.array([3, 1, 0, 2]))
        (loss, carry), grads = step(case.params, carry, batch)
        results.append((loss, grads))
    return jax.device_get((results, carry.h, key_data(carry.memory)))


def key_data(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def test_a_step_has_one_all_reduce():
    case = make_case(B=6, ids=True, reduction="mean")
    algorithm = jaxrnn.sharded(jaxrnn.gradients.bptt, case.rnn)
    carry = algorithm.init(case.params, case.h)
    program = jax.jit(algorithm.value_and_grad).lower(case.params, carry, case.batch).compile()
    assert len(re.findall(r"all-reduce(-start)?\(", program.as_text() or "")) == 1


@every_kind_of_rule
def test_in_the_callers_shard_map_a_gradient_is_summed_over_the_devices(rule):
    """`jax.grad` sums it too for replicated parameters under the default `check_vma=True`."""
    case = make_case(B=4, num_layers=2)
    algorithm, rows = algorithm_of(rule, case.rnn), PartitionSpec("rows")
    carry = algorithm.init(case.params, case.h, key=jax.random.key(7))
    axes = batch_axes(algorithm, case.params, case.h)
    carry_specs = jax.tree.map(
        lambda axis: PartitionSpec() if axis < 0 else PartitionSpec(*[None] * axis, "rows"), axes
    )

    def local(params, carry, batch):
        (loss, carry), grads = algorithm.value_and_grad(params, carry, batch)
        return (lax.psum(loss, "rows"), carry), grads

    replicated = PartitionSpec()
    on_devices = jax.shard_map(
        local,
        mesh=jaxrnn.make_mesh(),
        in_specs=(replicated, carry_specs, rows),
        out_specs=((replicated, carry_specs), replicated),
    )
    (loss, after), grads = jax.jit(on_devices)(case.params, carry, case.batch)
    (expected_loss, expected_after), expected = gradient(algorithm, case)
    actual = jax.device_get((loss, after.h, grads))
    assert_equal(actual, jax.device_get((expected_loss, expected_after.h, expected)))


@pytest.mark.parametrize("replicated", [True, False])
def test_unroll_in_the_callers_shard_map_is_that_of_one_device(replicated):
    """The state may also be replicated, such as zeros that are made in the function."""
    rnn, params, h, batch = make_case(B=4)
    rows = PartitionSpec("rows")

    def local(cell, inputs, h):
        h = jnp.zeros((len(inputs), 4)) if replicated else h
        return jax.grad(lambda cell: jnp.square(rnn.unroll(cell, inputs, h)[0]).sum())(cell)

    on_devices = jax.shard_map(
        local,
        mesh=jaxrnn.make_mesh(),
        in_specs=(PartitionSpec(), rows, rows),
        out_specs=PartitionSpec(),
    )
    at = (params.cells[0], batch.inputs, h[0])
    assert_equal(jax.device_get(jax.jit(on_devices)(*at)), jax.device_get(local(*at)))


@pytest.mark.parametrize(("batch_size", "nearest"), [(31, "30 or 32"), (1, "of 2,")])
def test_a_batch_size_that_does_not_divide_is_refused_and_the_nearest_are_named(
    batch_size, nearest
):
    with pytest.raises(ValueError, match=rf"{batch_size} rows does not divide by 2 .*{nearest}"):
        sharding.check_divides(batch_size, 2)


def test_more_devices_than_exist_are_refused_and_the_remedy_is_named():
    with pytest.raises(ValueError, match=r"1 … 2 here, got 64: jax.config.update"):
        jaxrnn.make_mesh(64)
