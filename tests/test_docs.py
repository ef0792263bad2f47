"""README, docs and the scripts' docstrings: every command parses, every script has a test, pages run as they stand.

Bash itself reads the commands: loops, quotes, variables, line ends and comments are its own, and every program that it
would start is written down in place of being run.
"""

from __future__ import annotations

import ast
import dataclasses
import glob
import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import yaml

import interventions
from reft_math.commands.parser import parse

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("train", "eval", "benchmarks")
SCRIPTS = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]

PACKAGES = ("interventions", "reft_math")
FENCED = r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$'
REST = "…"  # what the reader knows: an option's value, or the other arguments
EXTRAS = ("bitsandbytes", "tensorboard", "trackio", "wandb")  # packages of the project's extras that options ask for
OTHERS = ("uv sync", "uv run pytest", "uv run ruff", "uv run mypy", "uv run --group docs mkdocs", "hf ")
RECORDED = r"""
command_not_found_handle() { printf '%s\x1f' "$@"; printf '\n'; }
PATH=/nowhere
"""

# Running a page leaves out what is not at hand (its commands are parsed all the same) …
ABSENT = (
    *(REST, "user/", "meta-llama/", "google/", "llama3", "gsm8k", "math500", "math10k"),
    *("MODEL", "their/", "delta_vector.pth", "own.csv", "elsewhere.jsonl", "own-solutions", "qwen", "two-sided"),
)
# … and what takes long and has tests of its own.
LONG = (
    *("eval/ablation.py", "eval/norm_sweep.py", "eval/number_probe.py", "eval/faithfulness.py", "eval/harness.py"),
    "--quick",
)
SMALL = {
    **{"train_size": 16, "eval_size": 4, "calibration_size": 4, "validation_size": 8, "test_size": 8, "limit": 4},
    **{"epochs": 1, "max_new_tokens": 12},
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is the text of (``title="…"``), and its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for language, title, body in re.findall(FENCED, text, re.MULTILINE | re.DOTALL):
        yield Block(language, title, body)


def commands(shell: str) -> list[list[str]]:
    """The words of every program that a piece of shell would start."""
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", RECORDED + shell], capture_output=True, text=True, check=True, cwd="/"
    )
    assert not done.stderr, done.stderr
    return [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]


def typed(place: str) -> Iterator[str]:
    """What a page or a script's docstring tells its reader to type: fenced, within a sentence, or indented."""
    if place in SCRIPTS:
        docstring = ast.get_docstring(ast.parse((ROOT / place).read_text(encoding="utf-8"))) or ""
        yield from re.findall(r"^ {4}((?:uv run|torchrun|accelerate) .*)$", docstring, re.MULTILINE)
        return
    yield from (block.text for block in blocks(place) if block.language == "bash")
    prose = re.sub(FENCED, "", (ROOT / place).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`((?:uv run|torchrun|accelerate) [^`]*\.py[^`]*)`", prose)


def split(words: list[str]) -> tuple[list[str], str, list[str]]:
    """Launcher, script and arguments; the script is empty where it is none of ours."""
    is_script = (word.split("/")[0] in FOLDERS and word.endswith(".py") for word in words)
    index = next((index for index, found in enumerate(is_script) if found), len(words))
    arguments = words[index + 1 :]
    if arguments[-1:] == [REST] and not (len(arguments) > 1 and arguments[-2].startswith("--")):
        arguments.pop()
    return words[:index], "".join(words[index : index + 1]), arguments


def write(block: Block) -> None:
    """The file that a block is the text of."""
    path = Path(block.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def options_class(module: ModuleType) -> Any:
    return get_type_hints(module.main)["options"]


def imported(code: str) -> Iterator[str]:
    """What an example takes from this project, by full name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_public_name_has_a_page() -> None:
    """What `interventions` exports, and what examples import: names, or modules that have some. The site's build holds
    that a page's name exists."""
    groups = yaml.safe_load((ROOT / "docs" / "api.yaml").read_text(encoding="utf-8"))
    pages = [name for names in groups.values() for name in names]
    assert len(pages) == len(set(pages))
    exported = {f"interventions.{name}" for name in interventions.__all__}
    code = [block.text for page in PAGES for block in blocks(page) if block.language == "python"]
    modules = {page.rpartition(".")[0] for page in pages}
    assert exported | {name for text in code for name in imported(text)} <= {*pages, *modules}


@pytest.mark.parametrize("place", [*PAGES, *SCRIPTS])
def test_every_command_is_one(
    command: Callable[[str], ModuleType], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that is there with options that it takes, or a known program; and files it names are there."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name in EXTRAS or find_spec(name, *rest))
    monkeypatch.chdir(tmp_path)
    Path("results/prefix-reft/adapter").mkdir(parents=True)  # what the README's first command leaves
    for block in blocks(place):
        if block.title:
            write(block)
    for words in (words for text in typed(place) for words in commands(text)):
        launcher, script, arguments = split(words)
        if not script:
            assert " ".join(words).startswith(OTHERS), words
            continue
        assert script in SCRIPTS, words
        assert [word for word in launcher if "/" in word and not (ROOT / word).is_file()] == []
        parse(options_class(command(script)), None, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_end_where_they_should(page: str) -> None:
    """A fence too many turns what follows inside out; its commands go unread, as those of another language would."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "```" not in re.sub(FENCED, "", text, flags=re.MULTILINE | re.DOTALL)
    assert {block.language for block in blocks(page)} <= {"", "bash", "json", "python", "yaml"}
    assert [block.text for block in blocks(page) if "\n```" in block.text] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"`([\w-]+/[\w/.-]+\.(?:py|ipynb|yaml|md))`", (ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in named if not name.startswith("results/") and not (ROOT / name).is_file()] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_run_by_a_test_beside_its_kind(script: str) -> None:
    tests = (ROOT / "tests" / Path(script).parent).glob("test_*.py")
    assert any(re.search(rf'"{re.escape(script)}[ "]', path.read_text(encoding="utf-8")) for path in tests)


@pytest.mark.slow
def test_pages_run_as_they_stand(
    call: Callable[[str], None], command: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder, on the embedded model, with few problems: files, commands, Python.

    Of commands with the same options, as in loops, the first; how many rows are in a batch makes no other command.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "records").symlink_to(ROOT / "docs" / "records")
    done = set()
    for page in PAGES:
        names: dict[str, Any] = {}
        for block in blocks(page):
            if block.title:
                write(block)
            if block.language == "python":
                code = compile(block.text, page, "exec")
                if not any(name in block.text for name in ABSENT):
                    exec(code, names)
            for words in commands(block.text) if block.language == "bash" else []:
                launcher, script, arguments = split(words)
                options = (word for word in arguments if word.startswith("--") and word != "--batch-size")
                shape = script, *options
                left_out = any(name in word for word in words for name in (*ABSENT, *LONG))
                if script and launcher == ["uv", "run"] and not left_out and shape not in done:
                    done.add(shape)
                    call(small(words, options_class(command(script))))


def small(words: list[str], options: Any) -> str:
    """A command line with few problems, whose output folder may be in use by another example."""
    names = {field.name for field in dataclasses.fields(options)}
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in SMALL.items() if name in names]
    if options.__name__ == "HarnessOptions":
        sizes += ["--limit=4"]  # lm-eval's own
    again = ["--overwrite"] if "overwrite" in names else []
    found = [path for word in words for path in (sorted(glob.glob(word)) or [word])]
    return shlex.join([*found[2:], *sizes, *again])
