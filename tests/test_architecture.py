"""Tests of the package's structure: imports go in one direction, public names are unambiguous."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import jaxrnn
from jaxrnn import tasks
from jaxrnn.gradients.table import options_of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxrnn"

# Each module or subpackage of jaxrnn imports only from the lines above its own.
ORDER = [
    {"tree", "atomic", "plotting"},
    {"network"},
    {"gradients"},
    {"analysis"},
    {"verification"},
    {"training"},
    {"tasks", "exchange"},
    {"lm"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Return the modules of jaxrnn that a file imports."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = full & MODULES.keys()
            imported |= modules | ({node.module} & MODULES.keys() if modules < full else set())
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names} & MODULES.keys()
    return imported


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_one_way():
    assert {path.stem for path in PACKAGE.iterdir() if path.name[0] != "_"} - {"py"} == set(LEVEL)
    assert len(LEVEL) <= 14
    for module, path in MODULES.items():
        if module == "jaxrnn":
            continue
        for other in imports_of(path) - {"jaxrnn"}:
            source, target = part_of(module), part_of(other)
            assert source == target or LEVEL[target] < LEVEL[source], f"{module} imports {other}"


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert not graph, f"circular imports among {sorted(graph)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name
)
def test_experiments_import_only_public_names(path):
    assert imports_of(path) <= {"jaxrnn", *(f"jaxrnn.{name}" for name in jaxrnn.__all__)}


@pytest.mark.parametrize("module", [jaxrnn, jaxrnn.gradients, jaxrnn.lm], ids=lambda m: m.__name__)
def test_the_public_names_of_a_module_are_those_in_its_all(module: ModuleType):
    submodules = {name for _, name, _ in pkgutil.iter_modules(module.__path__)}
    public = {name for name in vars(module) if name[:2] != "__"} - {
        "jaxtyping"
    }  # added by the import hook in conftest.py
    assert public - (submodules - set(module.__all__)) == set(module.__all__) - {"__version__"}
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"jaxrnn", "jaxrnn.cli.__main__"}))
def test_no_other_object_of_a_package_has_the_name_of_a_module(module):
    parent, _, name = module.rpartition(".")
    imported = importlib.import_module(module)
    assert getattr(importlib.import_module(parent), name) is imported


def test_random_keys_are_passed_by_keyword():
    """The only exception is `rnn.init(key)`."""
    functions = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (jaxrnn, jaxrnn.gradients, jaxrnn.lm)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    rnn = jaxrnn.RNN(5, 4, 2)
    for name, rule in jaxrnn.gradients.RULES.items():
        options = {"window": 2} if name == "truncated_bptt" else {}
        functions[f"{name}.init"] = rule.build(rnn, **options).init
    for task in (
        tasks.copy(2),
        tasks.adding(),
        tasks.delayed_add(),
        tasks.text(np.zeros(9, int), 2),
    ):
        functions[f"{task.draw.__qualname__} of a task"] = task.draw
    for name, function in functions.items():
        if "key" in (parameters := inspect.signature(function).parameters):
            assert parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY, name


def test_the_public_types_have_the_documented_fields():
    assert jaxrnn.Params._fields == ("cells", "readout")
    assert jaxrnn.Cell._fields == ("W_xh", "W_hh", "b_h")
    assert jaxrnn.Readout._fields == ("W_hy", "b_y")
    assert jaxrnn.Carry._fields == ("h", "memory")
    assert jaxrnn.GradientAlgorithm._fields == ("init", "value_and_grad")
    assert jaxrnn.Batch._fields == ("inputs", "targets", "mask", "lengths")
    assert jaxrnn.TrainState._fields == ("params", "opt_state", "carry", "step")


# Tables of contents


@pytest.mark.parametrize("module", [jaxrnn, jaxrnn.gradients, jaxrnn.lm])
def test_the_docstring_of_a_package_names_all_that_is_public(module):
    words = set(re.findall(r"\w+", module.__doc__ or ""))
    assert set(module.__all__) - {"__version__"} <= words


def test_the_help_of_the_gradients_shows_each_rule_with_its_options():
    for name, rule in jaxrnn.gradients.RULES.items():
        options = "".join(
            f", {option}={json.dumps(value)}" for option, value in options_of(rule).items()
        )
        assert f"    {name}(rnn{options})" in (jaxrnn.gradients.__doc__ or "")
