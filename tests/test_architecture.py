"""The structure of the package: imports point one way, and every public name has one meaning."""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxrnn"

# A room imports rooms of the lines above its own, and none of its own line.
ORDER = [
    {"tree"},
    {"network"},
    {"gradients"},
    {"analysis"},
    {"verification"},
    {"training"},
    {"tasks", "exchange"},
    {"lm"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Return the modules of jaxrnn that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = full & MODULES.keys()
            found |= modules | ({node.module} & MODULES.keys() if modules < full else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_one_way():
    assert {path.stem for path in PACKAGE.iterdir() if path.name[0] != "_"} - {"py"} == set(HEIGHT)
    assert len(HEIGHT) <= 14
    for module, path in MODULES.items():
        if module == "jaxrnn":
            continue
        for other in imports_of(path) - {"jaxrnn"}:
            here, there = room_of(module), room_of(other)
            assert here == there or HEIGHT[there] < HEIGHT[here], f"{module} imports {other}"


def test_no_module_imports_itself_through_others():
    arrows = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    while leaves := {module for module, others in arrows.items() if not others & arrows.keys()}:
        arrows = {module: others for module, others in arrows.items() if module not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name
)
def test_experiments_use_the_public_names_alone(path):
    assert imports_of(path) <= {"jaxrnn"}


@pytest.mark.parametrize("module", [jaxrnn, jaxrnn.gradients, jaxrnn.lm], ids=lambda m: m.__name__)
def test_what_a_public_module_shows_is_what_it_lists(module: ModuleType):
    submodules = {name for _, name, _ in pkgutil.iter_modules(module.__path__)}
    shown = {name for name in vars(module) if name[:2] != "__"} - {
        "jaxtyping"
    }  # of conftest's hook
    assert shown - (submodules - set(module.__all__)) == set(module.__all__) - {"__version__"}
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"jaxrnn", "jaxrnn.cli.__main__"}))
def test_no_module_is_hidden_behind_something_else_of_its_name(module):
    parent, _, name = module.rpartition(".")
    imported = importlib.import_module(module)
    assert getattr(importlib.import_module(parent), name) is imported


def test_the_contract_names_are_there():
    assert jaxrnn.Params._fields == ("cells", "readout")
    assert jaxrnn.Cell._fields == ("W_xh", "W_hh", "b_h")
    assert jaxrnn.Readout._fields == ("W_hy", "b_y")
    assert jaxrnn.Carry._fields == ("h", "memory")
    assert jaxrnn.GradientAlgorithm._fields == ("init", "value_and_grad")
    assert jaxrnn.Batch._fields == ("inputs", "targets", "mask", "lengths")
