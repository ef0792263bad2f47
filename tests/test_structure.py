"""What holds of the tree as a whole: which way imports run, script names, and what is light to import."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [path for folder in ("train", "eval", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]

# Rooms by floor. `interventions` is the ground: it imports `reft_math.errors` and nothing else of the project.
FLOORS = (
    "interventions files",
    "commands data",
    "models decoding",
    "scoring engines",
    "training probes",
    "regression experiments",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
OWN = ("reft_math", "interventions", "train", "eval", "benchmarks")
MODULES = [path for top in ("interventions", "reft_math") for path in sorted((ROOT / top).rglob("*.py"))]
# Names that users and saved files import from the ground, fetched from the upper floors once asked for.
FETCHES = {"interventions/__init__.py", "interventions/regression.py"}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """``interventions``, or the room of ``reft_math.room.file.name``."""
    names = module.split(".")
    return names[0] if names[0] == "interventions" else names[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_its_own_room_and_lower_floors(path: Path) -> None:
    place = path.relative_to(ROOT)
    own = [module for module in imports_of(path) if module.split(".")[0] in OWN]
    if str(place) in FETCHES:
        return
    if place.parent.name == "reft_math":
        assert place.name in ("__init__.py", "errors.py"), "a module belongs into a room"
        assert own == []
        return
    room = room_of(".".join(place.with_suffix("").parts))
    for module in own:
        if not module.startswith("reft_math.errors."):
            other = room_of(module)
            assert other == room or FLOOR[other] < FLOOR[room], f"{place} imports {module}"


def test_pyvene_and_pyreft_are_known_to_interventions_and_adapters_only() -> None:
    known = {path for path in MODULES if {"pyvene", "pyreft"} & {name.split(".")[0] for name in imports_of(path)}}
    assert {str(path.relative_to(ROOT).parent) for path in known} <= {"interventions", "reft_math/models"}


def test_files_and_functions_are_short() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_script_bears_the_name_of_an_importable_module(path: Path) -> None:
    """A script's folder comes first on the path: its name would shadow the module for everything it imports."""
    found = importlib.util.find_spec(path.stem)
    assert found is None or found.loader is None  # a folder without __init__.py, such as train/, is nobody's module


@pytest.mark.parametrize("folder", ["train", "eval", "benchmarks"])
def test_script_folders_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_options_are_light_to_import() -> None:
    """``--help`` must not wait for torch or for model code."""
    options = [f"reft_math.commands.options.{name}" for name in ("training", "prefix", "regression", "evaluation")]
    code = f"import sys, {', '.join(options)}, reft_math.commands.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
