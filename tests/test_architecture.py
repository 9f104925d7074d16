"""An import only ever points down, experiments use the public API alone, and names are kept."""

import ast
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxrnn"

FLOORS = [
    {"layer", "losses", "text", "costs", "files"},
    {"checks", "corpus"},
    {"network"},
    {"gradients.base", "data", "sample", "tasks", "checkpoint", "exchange"},
    {"folder"},
    {"gradients.forward", "gradients.feedback", "gradients.segments", "gradients.series"},
    {"gradients.*", "train", "walkthrough", "sharding"},
    {"gradients"},
    {"verification.compare", "verification.hand", "verification.program"},
    {
        "verification.answer",
        "verification.differences",
        "verification.lags",
        "verification.bugs",
        "verification.leaf_bugs",
    },
    {"verification.rounding", "verification.diagnosis", "verification.flow"},
    {"verification.judge"},
    {"verification.check"},
    {"verification", "comparison"},
    {"options", "trouble"},
    {"model", "trial"},
    {"run.base"},
    {"run.load", "run.gradient"},
    {"run.prepare"},
    {"run.disk"},
    {"run.loop"},
    {"run"},
    {"display", "machines"},
    {"cli"},
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor_of(module: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if module in rooms:
            return floor
    return next(floor for floor, rooms in enumerate(FLOORS) if f"{module.split('.')[0]}.*" in rooms)


def imports_of(path: Path) -> set[str]:
    """Return the jaxrnn modules that a file imports, by their names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            place = PACKAGE.parent / Path(*name.split("."))
            if name != "jaxrnn" and (place.with_suffix(".py").exists() or place.is_dir()):
                found.add(name.removeprefix("jaxrnn."))
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if name_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_an_import_only_points_down(path):
    level_or_above = {
        other for other in imports_of(path) if floor_of(other) >= floor_of(name_of(path))
    }
    assert not level_or_above, f"{name_of(path)} imports {level_or_above}"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name)
def test_experiments_use_the_public_api_alone(path):
    assert not imports_of(path)


def test_the_contract_names_are_there():
    names = """RNN Params Cell Readout Batch Carry GradientAlgorithm gradients verify sample
    make_train_step TrainState Vocabulary walkthrough sgd adagrad"""
    assert [name for name in names.split() if not hasattr(jaxrnn, name)] == []
    assert jaxrnn.Params._fields == ("cells", "readout")
    assert jaxrnn.Cell._fields == ("W_xh", "W_hh", "b_h")
    assert jaxrnn.Readout._fields == ("W_hy", "b_y")
    assert jaxrnn.Carry._fields == ("h", "memory")
    assert jaxrnn.GradientAlgorithm._fields == ("init", "value_and_grad")
    assert jaxrnn.TrainState._fields == ("params", "opt_state", "carry", "step", "key")
    assert jaxrnn.Batch._fields == ("inputs", "targets", "mask", "lengths")
