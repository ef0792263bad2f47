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

# A package may import itself, those named, and nothing else of the project.
ALLOWED = {
    "reft_math/data": {"reft_math.arithmetic", "reft_math.errors", "reft_math.files", "reft_math.json_text"},
    "reft_math/arithmetic": {"reft_math.data"},
    "reft_math/scoring": {"reft_math.errors", "reft_math.files", "reft_math.json_text"},
    "reft_math/decoding": {"reft_math.data", "reft_math.errors", "reft_math.finite"},
    "reft_math/regression": {"reft_math.errors", "reft_math.scoring"},
    "reft_math/figures": {"reft_math"},
    "reft_math": {"reft_math"},
    "interventions": {"interventions", "reft_math"},
    "train": {"interventions", "reft_math"},
    "eval": {"interventions", "reft_math"},
    "benchmarks": {"interventions", "reft_math"},
}
OWN = ("reft_math", "interventions", "train", "eval", "benchmarks")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    allowed = ALLOWED[package] | {package.replace("/", ".")}
    for path in files:
        own = [module for module in imports_of(path) if is_within(module, set(OWN))]
        assert [module for module in own if not is_within(module, allowed)] == [], path


@pytest.mark.parametrize(
    "package", ["data", "arithmetic", "scoring", "decoding", "regression", "regressor", "training", "probes"]
)
def test_figures_come_last(package: str) -> None:
    """What computes does not know what draws or compares."""
    for path in (ROOT / "reft_math" / package).rglob("*.py"):
        later = {"reft_math.figures", "reft_math.comparison", "interventions"}
        assert [module for module in imports_of(path) if is_within(module, later)] == [], path


def test_only_interventions_knows_pyvene_and_pyreft() -> None:
    for path in (ROOT / "reft_math").rglob("*.py"):
        assert [module for module in imports_of(path) if is_within(module, {"pyvene", "pyreft"})] == [], path


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
    options = "reft_math.training.options, reft_math.training.regression_options, reft_math.evaluation_options"
    modules = f"{options}, reft_math.command"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
