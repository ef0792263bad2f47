from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from reft_math.commands.output_folder import RUN_CONFIG, check_output_dir, claim_output_dir
from reft_math.commands.parser import parse
from reft_math.commands.provenance import provenance, versions
from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.files.atomic import write_json
from reft_math.files.lock import release
from reft_math.files.tables import print_table


@dataclass(frozen=True)
class Options:
    batch_size: int = field(default=16, metadata={"help": "Problems a batch."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak."})
    limit: int | None = field(default=None, metadata={"help": "First problems only."})
    dtype: Literal["auto", "float32"] = field(default="auto", metadata={"help": "Of the weights."})
    layers: tuple[int, ...] = field(default=(1, 2), init=False)
    output_dir: str = field(default="results/x", metadata={"help": "Folder."})
    resume: bool = field(default=False, metadata={"help": "Go on."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew."})
    trace: bool = field(default=True, metadata={"help": "Keep a trace."})

    def __post_init__(self) -> None:
        require(self, "batch_size", lambda value: value >= 1, "at least 1")


def parsed(*arguments: str) -> Options:
    options = parse(Options, "Does it.", arguments)
    assert isinstance(options, Options)
    return options


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("batch-size: 4\nlearning_rate: 1e-3\nlimit: 7\nresume: true\n")
    return path


# --- parse -------------------------------------------------------------------------------------------------------


def test_no_arguments_give_the_defaults() -> None:
    assert parsed() == Options()


def test_arguments_have_the_fields_types() -> None:
    options = parsed("--batch-size", "4", "--learning-rate=1e-3", "--limit", "7", "--dtype", "float32", "--resume")
    assert options == Options(batch_size=4, learning_rate=1e-3, limit=7, dtype="float32", resume=True)
    assert [type(value) for value in (options.batch_size, options.learning_rate, options.limit)] == [int, float, int]


@pytest.mark.parametrize("value", ["-1e-3", "-.5", "-2:2:1", "-1,1"])
@pytest.mark.parametrize("form", ["--grid {}", "--grid={}", "--config {}"])
def test_a_value_may_be_negative(tmp_path: Path, value: str, form: str) -> None:
    @dataclass(frozen=True)
    class Numbers:
        grid: str = ""
        alphas: list[float] = field(default_factory=list)

    (tmp_path / "settings.yaml").write_text(f'grid: "{value}"\nalphas: [-1e-3, -2]\n')
    given = form.format(tmp_path / "settings.yaml" if "config" in form else value).split(" ")
    if "config" not in form:
        given += ["--alphas", "-1e-3", "-2"]
    assert parse(Numbers, None, given) == Numbers(value, [-1e-3, -2.0])


def test_hyphens_and_underscores_are_the_same() -> None:
    assert parsed("--batch_size", "4") == parsed("--batch-size", "4") == Options(batch_size=4)


def test_a_yaml_file_holds_the_same_settings(settings: Path) -> None:
    options = parsed("--config", str(settings))
    assert options == Options(batch_size=4, learning_rate=1e-3, limit=7, resume=True)
    assert parsed(f"--config={settings}") == options


@pytest.mark.parametrize("is_first", [True, False])
def test_the_command_line_wins_over_the_yaml_file(settings: Path, is_first: bool) -> None:
    file, flags = ("--config", str(settings)), ("--batch-size", "16", "--resume", "false")
    options = parsed(*file, *flags) if is_first else parsed(*flags, *file)
    assert options == Options(batch_size=16, learning_rate=1e-3, limit=7, resume=False)


def test_unknown_yaml_keys_are_all_named_with_the_file(settings: Path) -> None:
    settings.write_text("batch-size: 4\nzeta: 1\nbatchsize: 4\n")
    with pytest.raises(UserError, match=r"settings\.yaml: unknown settings batchsize, zeta; did you mean batch_size\?"):
        parsed("--config", str(settings))


@pytest.mark.parametrize("content", ["", "- 4\n", "4\n"])
def test_a_yaml_file_without_names_is_an_error(settings: Path, content: str) -> None:
    settings.write_text(content)
    with pytest.raises(UserError, match="must map setting names to values"):
        parsed("--config", str(settings))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch-size: [4\nlimit: }\n", r"readable YAML file; .*settings\.yaml"),
        ("limit: !!python/object/apply:os.system [exit]\n", "could not determine a constructor"),
        ("limit: &a [*a]\n", "limit must be one value, or a list of such"),
        ("limit: {a: &a [1], b: [*a, *a]}\n", "limit must be one value, or a list of such"),
        ("limit: " + "9" * 5000, "4300 digits"),
        ("limit: 3\0", "unacceptable character"),
    ],
)
def test_a_malformed_yaml_file_is_a_one_line_error(settings: Path, content: str, message: str) -> None:
    settings.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        parsed("--config", str(settings))
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"readable YAML file; .*missing\.yaml"):
        parsed("--config", str(tmp_path / "missing.yaml"))


def test_a_file_that_is_not_text_is_named(settings: Path) -> None:
    settings.write_bytes(b"batch-size: \xff\n")
    with pytest.raises(UserError, match=r"readable YAML file; .*settings\.yaml"):
        parsed("--config", str(settings))


@pytest.mark.parametrize("content", ["dtype: float99\n", "batch-size: 1.5\n"])
def test_a_yaml_value_is_checked_as_on_the_command_line(settings: Path, content: str) -> None:
    settings.write_text(content)
    with pytest.raises(UserError, match=content.partition(":")[0]):
        parsed("--config", str(settings))


def test_a_yaml_value_out_of_range_is_an_error(settings: Path) -> None:
    settings.write_text("batch-size: 0\n")
    with pytest.raises(UserError, match="--batch-size must be at least 1; got 0"):
        parsed("--config", str(settings))


def test_an_abbreviated_flag_is_not_taken_and_ignored(settings: Path) -> None:
    try:
        options = parsed("--conf", str(settings))
    except UserError:
        return
    assert options == parsed("--config", str(settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "4"), "--size"),
        (("--batch-size",), "--batch-size"),
        (("--batch-size", "four"), "four"),
        (("--dtype", "float99"), "float99"),
        (("--batch-size", "0"), "--batch-size must be at least 1; got 0"),
        (("stray",), "stray"),
    ],
)
def test_a_bad_argument_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parsed(*arguments)


def test_a_flag_takes_true_and_false_too_as_in_yaml() -> None:
    assert parsed("--resume", "--trace=false") == parsed("--resume", "true", "--no-trace")
    assert parsed("--trace", "no", "--resume=no") == Options(trace=False)


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_calls_main_with_the_parsed_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Options] = []
    monkeypatch.setattr(sys, "argv", ["it.py", "--batch-size", "4"])
    run(calls.append, Options, None)
    assert calls == [Options(batch_size=4)]


def test_a_runs_settings_are_a_config_of_its_command(tmp_path: Path) -> None:
    settings = parsed("--batch-size", "4", "--limit", "7", "--output-dir", str(tmp_path / "run"))
    folder = claim_output_dir(settings, {"test": {"rows": 7, "sha256": "a"}})
    file = folder / RUN_CONFIG
    written = json.loads(file.read_text())
    del written["layers"]  # no option
    write_json(file, written)
    assert parsed("--config", str(file)) == parsed("--batch-size", "4", "--limit", "7")
    write_json(file, {**written, "command": "OtherOptions"})
    with pytest.raises(UserError, match=r"must be of this command \(Options\); .* is a run's of OtherOptions"):
        parsed("--config", str(file))


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["--batch-size", "0"], ["--config", "missing.yaml"]])
def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    check_one_line(monkeypatch, capsys, arguments)


def test_config_without_a_file_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check_one_line(monkeypatch, capsys, ["--config"])


def check_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    def main(options: Options) -> None:
        raise UserError("k must be at least 1; got 0")

    monkeypatch.setattr(sys, "argv", ["it.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        run(main, Options, "Does it.")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        ([], "run the same command with --resume"),
        (["--resume"], "run the same command again"),
        (["--overwrite"], "run the same command with --resume in place of --overwrite"),
    ],
)
def test_a_full_disk_is_one_line_that_says_how_to_go_on(
    arguments: list[str], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Options) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x/results.json")

    monkeypatch.setattr(sys, "argv", ["it.py", "--output-dir", str(tmp_path / "run"), *arguments])
    with pytest.raises(SystemExit) as stop:
        run(fail, Options, None)
    assert stop.value.code == 2
    line = f"error: x/results.json: No space left on device; mend that; to go on, {way}\n"
    assert capsys.readouterr().err == line


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(options: Options) -> None:
        raise ValueError("not the user's doing")

    monkeypatch.setattr(sys, "argv", ["it.py"])
    with pytest.raises(ValueError, match="not the user's doing"):
        run(main, Options, None)


# --- claim_output_dir --------------------------------------------------------------------------------------------


def options_for(folder: Path, **changes: Any) -> Options:
    return Options(**{"output_dir": str(folder), **changes})


@pytest.fixture
def used(tmp_path: Path) -> Path:
    folder = claim_output_dir(options_for(tmp_path / "used"))
    release()
    (folder / "records.jsonl").write_text("{}\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("exists", [True, False])
def test_a_fresh_folder_is_made_and_holds_the_settings(tmp_path: Path, exists: bool, flags: dict[str, bool]) -> None:
    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)
    assert claim_output_dir(options_for(folder, batch_size=4, **flags)) == folder
    assert os.listdir(folder) == [RUN_CONFIG]
    assert json.loads((folder / RUN_CONFIG).read_text()) == {
        "command": "Options",
        "batch_size": 4,
        "learning_rate": 2e-4,
        "limit": None,
        "dtype": "auto",
        "layers": [1, 2],
        "trace": True,
    }


def test_a_folder_in_use_is_refused_and_every_way_out_named(used: Path) -> None:
    before = content(used)
    with pytest.raises(UserError, match=r"in use; pass --resume .*, --overwrite .*, or another --output-dir"):
        claim_output_dir(options_for(used))
    assert content(used) == before


def test_resume_goes_on_with_the_same_settings(used: Path) -> None:
    before = content(used)
    assert claim_output_dir(options_for(used, resume=True)) == used
    assert content(used) == before


def test_resume_from_another_path_to_the_folder_is_the_same_run(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(used.parent)
    assert claim_output_dir(options_for(Path("used"), resume=True)) == Path("used")


def test_resume_with_other_settings_names_the_first_that_differs(used: Path) -> None:
    before = content(used)
    with pytest.raises(UserError, match="limit was None and is 5"):
        claim_output_dir(options_for(used, resume=True, limit=5))
    assert content(used) == before


def test_resume_of_a_run_with_fewer_or_more_settings_names_them(used: Path) -> None:
    path = used / RUN_CONFIG
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "rank": 4}))
    with pytest.raises(UserError, match="rank was 4 and is None"):
        claim_output_dir(options_for(used, resume=True))
    del settings["dtype"]
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="dtype was None and is 'auto'"):
        claim_output_dir(options_for(used, resume=True))


def test_resume_over_other_rows_is_refused_and_names_the_split(tmp_path: Path) -> None:
    rows = {"train": {"sha256": "a"}, "test": {"sha256": "b"}}
    folder = claim_output_dir(options_for(tmp_path / "run"), rows)
    before = content(folder)
    assert claim_output_dir(options_for(folder, resume=True), rows) == folder
    with pytest.raises(UserError, match="those of test have changed since: put them back") as caught:
        claim_output_dir(options_for(folder, resume=True), {**rows, "test": {"sha256": "c"}})
    assert "train" not in str(caught.value)
    assert content(folder) == before


def test_a_run_that_did_not_note_its_rows_is_gone_on_with(used: Path) -> None:
    claim_output_dir(options_for(used, resume=True), {"test": {"sha256": "b"}})
    with pytest.raises(UserError, match="have changed since"):
        claim_output_dir(options_for(used, resume=True), {"test": {"sha256": "c"}})


@pytest.mark.parametrize("broken", [None, "{"])
def test_resume_where_there_is_no_run_is_refused(used: Path, broken: str | None) -> None:
    if broken is None:
        (used / RUN_CONFIG).unlink()
    else:
        (used / RUN_CONFIG).write_text(broken)
    before = content(used)
    with pytest.raises(UserError, match=f"no readable {RUN_CONFIG}"):
        claim_output_dir(options_for(used, resume=True))
    assert content(used) == before


def test_overwrite_deletes_a_runs_folder(used: Path) -> None:
    (used / "adapter").mkdir()
    (used / "adapter" / "weights").write_text("old")
    assert claim_output_dir(options_for(used, overwrite=True, batch_size=4)) == used
    assert os.listdir(used) == [RUN_CONFIG]
    assert json.loads((used / RUN_CONFIG).read_text())["batch_size"] == 4


@pytest.mark.parametrize("file", ["thesis.txt", "config.json"])
def test_overwrite_of_a_folder_that_is_no_run_deletes_nothing(tmp_path: Path, file: str) -> None:
    """A checkpoint of transformers holds a config.json too."""
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"holds no {RUN_CONFIG} of one"):
        claim_output_dir(options_for(tmp_path, overwrite=True))
    assert content(tmp_path) == {file: b"{}"}


def test_overwrite_does_not_take_the_ground_from_under_a_run(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(used)
    monkeypatch.chdir(used)
    for folder in (Path(), used, used.parent):
        with pytest.raises(UserError, match="holds the working folder: choose one within it"):
            claim_output_dir(options_for(folder, overwrite=True))
    with pytest.raises(UserError, match="is a mount point"):
        claim_output_dir(options_for(Path("/"), overwrite=True))
    assert content(used) == before


def test_resume_and_overwrite_exclude_each_other(used: Path) -> None:
    before = content(used)
    with pytest.raises(UserError, match="exclude each other"):
        claim_output_dir(options_for(used, resume=True, overwrite=True))
    assert content(used) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path, flags: dict[str, bool]) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"must be a folder that can be written to; .*file is a file"):
        claim_output_dir(options_for(path, **flags))
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="output-dir"):
        claim_output_dir(options_for(tmp_path / "file" / "run"))


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_folder_that_may_not_be_written_to_is_an_error_before_any_work(
    tmp_path: Path, used: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
) -> None:
    """Root may write everywhere, so that the system's answer is put in its mouth."""
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path not in (path, *path.parents))
    for folder, place in ((used, used), (tmp_path / "not" / "yet", tmp_path)):
        with pytest.raises(UserError, match=f"that can be written to; {place} may not be written to: choose another"):
            check_output_dir(options_for(folder, **flags))
    assert os.listdir(tmp_path) == ["used"]


def test_a_claim_killed_at_any_call_can_be_repeated(used: Path, killed_at_every_call: Any) -> None:
    """With --overwrite as with --resume, whichever the user takes."""
    shutil.copytree(used, before := used.with_name("before"))
    for again in ({"resume": True}, {"overwrite": True}):
        for _ in killed_at_every_call(lambda: claim_output_dir(options_for(used, overwrite=True))):
            claim_output_dir(options_for(used, **again))
            assert json.loads((used / RUN_CONFIG).read_text())["command"] == "Options"
            shutil.rmtree(used)
            shutil.copytree(before, used)


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_what_another_process_is_at_work_in_is_refused_and_stays(
    used: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reft_math.commands.output_folder.hold", lambda held: held != used)
    before = content(used)
    with pytest.raises(UserError, match=r"a process that is still at work holds .*used: wait for its end"):
        claim_output_dir(options_for(used, **{way: True}))
    assert content(used) == before


@pytest.mark.parametrize("folder", ["used", "new/run"])
def test_without_power_a_claim_is_not_lost(folder: str, used: Path, lost_without_power: Any) -> None:
    options = options_for(used.parent / folder, overwrite=True)
    assert lost_without_power(lambda: (claim_output_dir(options), release()), used.parent) == []


# --- provenance and tables --------------------------------------------------------------------------------------------


def test_provenance_is_json_with_the_command_and_the_resolved_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval/it.py", "--output-dir", "my results"])
    found = json.loads(json.dumps(provenance(Options(output_dir="my results"))))
    assert found["command"] == "python eval/it.py --output-dir 'my results'"
    assert found["config"]["output_dir"] == "my results"
    assert found["config"]["batch_size"] == 16
    assert found["machine"]["cpu_cores"] == os.cpu_count()


def test_versions_name_python_and_what_results_depend_on() -> None:
    import torch
    import transformers

    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["transformers"] == transformers.__version__
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_wide_table_keeps_one_line_a_row_and_all_of_its_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a narrow terminal and in a log file."""
    monkeypatch.setenv("COLUMNS", "40")
    print_table("GSM8K", ["", "correct", "95 % interval"], [["base " + "x" * 60, "3", "1 - 2"], ["b", "10", "0 - 1"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "GSM8K"
    (base,) = (line for line in lines if "x" * 60 in line)
    assert "1 - 2" in base


def test_a_table_shows_a_strangers_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in it is rich's markup, an emoji's name, a line break or a word to the terminal."""
    print_table("a\x1b[2J", ["", "b"], [["[red]x[/blue]", ":smile:"], ["\x1b]0;owned\x07", "y\nz"]])
    out = capsys.readouterr().out
    for shown in ("a\\x1b[2J", "[red]x[/blue]", ":smile:", "\\x1b]0;owned\\x07", "y\\nz"):
        assert shown in out
    assert "\x1b" not in out
