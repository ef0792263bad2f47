from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reft_math.errors import UserError
from reft_math.experiments.result_folders import find_result_folders


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def write_file(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return write_file


def test_finds_runs_at_any_depth_and_nothing_within_them(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    write("b/deep/run_config.json", '{"command": "LoraOptions", "rank": 8}')
    write("a/run_config.json", '{"command": "HandoffOptions", "limit": null}')
    write("a/results.json", '{"config": {"limit": 5}, "value": NaN}')
    write("a/table.csv", 'name,value\r\n"a, ""b""\nc",1.5\n')
    write("a/figure.svg", "<svg/>")
    write("a/records/inner.csv", "x\n1\n")
    write("c/only.csv", "x\n1\n")
    write("d/model.safetensors", "")
    a, b, c = find_result_folders(tmp_path)
    assert [folder.name for folder in (a, b, c)] == ["a", "b/deep", "c"]
    assert (a.config, b.config, c.config) == ({"limit": 5}, {"command": "LoraOptions", "rank": 8}, {})
    assert a.tables == {"table.csv": [["name", "value"], ['a, "b"\nc', "1.5"]]}
    assert a.figures == [tmp_path / "a" / "figure.svg"]
    assert [folder.results is None for folder in (a, b, c)] == [False, True, True]


def test_a_run_by_itself_bears_its_folders_name(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    write("run/results.json", "{}")
    (folder,) = find_result_folders(tmp_path / "run")
    assert folder.name == "run"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x/results.json", b'{"half": ', r"x/results\.json cannot be read \(Expecting value"),
        ("x/run_config.json", b"\xff", r"x/run_config\.json cannot be read"),
        ("x/results.json", b"[1]", r"x/results\.json cannot be read \(must hold a JSON object; it holds list"),
        ("x/table.csv", b"a\n\xff\n", r"x/table\.csv cannot be read"),
        ("x/notes.txt", b"", "must hold output folders of commands, .* holds none"),
        ("x/figure.png", b"", "must hold output folders of commands, .* holds none"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_result_folders(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--results must be a folder that can be read; .*gone: No such file"):
        find_result_folders(tmp_path / "gone")


@pytest.mark.parametrize("name", ["results.json", "table.csv", "figure.svg"])
def test_what_a_link_leads_to_outside_is_not_published(
    tmp_path: Path, write: Callable[[str, str], None], name: str
) -> None:
    """Within the folder a link may lead where it likes."""
    write("secret", "{}")
    write("results/a/run_config.json", "{}")
    write("results/a/inside", "{}")
    link = tmp_path / "results" / "a" / name
    link.symlink_to(tmp_path / "results" / "a" / "inside")
    assert len(find_result_folders(tmp_path / "results")) == 1
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=rf"must hold its own files; .*a/{name} is a link out of it"):
        find_result_folders(tmp_path / "results")
