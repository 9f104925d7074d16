"""Every example in a docstring of the package is run, as a user has it: in float32."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import jaxrnn

NAMES = ["jaxrnn", *(m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FOUND = {
    test.name: test
    for name in NAMES
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
}


@pytest.mark.parametrize("name", FOUND)
def test_an_example_gives_what_it_shows(name):
    with jax.enable_x64(False):
        failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(FOUND[name])
    assert tried > 0
    assert failed == 0


def test_there_are_examples():
    assert {"jaxrnn.verification.verify.verify", "jaxrnn.verification.verify.check_grad"} <= set(
        FOUND
    )
