"""The house: every part imports only from those below it, and importing loratk costs next to nothing."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loratk

HOUSE = Path(loratk.__file__).parent
FLOORS = [
    *("errors", "hookspecs", "plugins", "kernels", "autograd", "nn", "io", "exchange"),
    *("lora", "algebra", "data", "train", "testing", "convert", "describe", "picture", "verify", "demo", "cli"),
]


def parts():
    """The modules and packages right inside loratk, but its public face (`__init__`, `__main__`)."""
    return {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__", "__main__"}


def imported(path):
    """The parts of loratk that a file imports, also inside functions, but not for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"]
    hidden = {id(inner) for node in typing for inner in ast.walk(node)}
    package = ["loratk", *path.relative_to(HOUSE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in hidden:
            base = package[: len(package) - node.level + 1] if node.level else []
            target = [*base, *(node.module.split(".") if node.module else [])]
            if target[0] == "loratk":
                yield from target[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("loratk."))


def test_every_part_has_a_floor():
    assert parts() == set(FLOORS)


@pytest.mark.parametrize("part", FLOORS)
def test_imports_point_down(part):
    home = HOUSE / part
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    above = set(FLOORS[FLOORS.index(part) + 1 :])
    assert files
    assert [(str(path.relative_to(HOUSE)), name) for path in files for name in imported(path) if name in above] == []


def test_every_package_is_installed():
    setup = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {".".join(["loratk", *path.parent.relative_to(HOUSE).parts]) for path in HOUSE.rglob("__init__.py")}
    plugins = {f"loratk_plugins.{path.parent.name}" for path in (HOUSE.parent / "plugins").glob("*/__init__.py")}
    assert set(setup["packages"]) == packages | plugins
    assert set(setup["package-dir"]) == {"loratk", *plugins}


def test_the_house_does_not_know_its_plugins():
    knowing = [path.name for path in HOUSE.rglob("*.py") if "loratk_plugins" in path.read_text(encoding="utf-8")]
    assert knowing == []


def test_importing_loratk_loads_neither_numba_nor_the_parts():
    heavy = "('numba', 'numpy', 'h5py', 'pluggy', 'rich')"
    code = f"import sys, loratk; print(sorted(m for m in sys.modules if m.split('.')[0] in {heavy} or m.startswith('loratk.')))"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert got.strip() == "[]"


def test_the_public_names_are_all_there():
    assert [name for name in loratk.__all__ if not hasattr(loratk, name)] == []
    assert set(loratk._WHERE) | {"__version__"} == set(loratk.__all__)
