"""Run every example in a docstring of the package, in float32 as a user does."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import jaxrnn

NAMES = ["jaxrnn", *(m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXAMPLES = {
    test.name: test
    for name in NAMES
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_docstring_shows(name):
    with jax.enable_x64(False):
        failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(EXAMPLES[name])
    assert tried > 0
    assert failed == 0


def test_the_main_functions_have_examples():
    assert {"jaxrnn.verification.verify.verify", "jaxrnn.verification.verify.check_grad"} <= set(
        EXAMPLES
    )
