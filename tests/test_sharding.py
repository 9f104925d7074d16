"""Every rule on several devices, each with its rows, computes what it does on one.

The devices are CPU devices, made in a process of their own: their number is fixed before the first
computation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_gradients import RULES

import jaxrnn
from jaxrnn import sharding

DEVICES = 3
RUN = Path(__file__).with_name("on_devices.py")


def test_every_rule_on_many_devices_equals_itself_on_one():
    found = on_devices(DEVICES, "compare")
    assert found["devices"] == DEVICES
    assert set(found["errors"]) >= set(RULES)
    wrong = {name: error for name, error in found["errors"].items() if not error <= 1e-12}
    assert not wrong


def test_a_step_has_one_all_reduce():
    assert on_devices(DEVICES, "reduces") == {"all-reduces": 1}


def on_devices(number, what):
    """Run a function of on_devices.py in a process that has so many devices."""
    environment = {
        "JAX_NUM_CPU_DEVICES": str(number),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    result = subprocess.run(
        [sys.executable, RUN, what],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("batch_size", "nearest"), [(31, "30 or 32"), (1, "of 2,")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch_size, nearest):
    with pytest.raises(ValueError, match=rf"{batch_size} rows does not divide by 2 .*{nearest}"):
        sharding.check_divides(batch_size, 2)


def test_more_devices_than_there_are_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"1 … 1 here, got 64: jax.config.update"):
        jaxrnn.make_mesh(64)
