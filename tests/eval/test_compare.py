from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from math import comb, sqrt
from pathlib import Path
from typing import Any

import pytest

from reft_math.data.fingerprint import rows_sha256
from reft_math.data.problem import Problem
from reft_math.files.records import RecordFile
from reft_math.scoring.evaluate import Scorer, evaluate

TRAINING = {
    "config": {"learning_rate": 0.005, "epochs": 3.0, "k": 10, "full_fraction": 0.0},
    "train_rows": 64,
    "trainable_parameters": 3072,
    "bias_norm": {"achieved": 0.54, "tracking_error": 0.01},
}


def write_run(folder: Path, decoders: Mapping[str, str], results: Mapping[str, Any] = TRAINING) -> Path:
    """A run whose decoders solved the problems marked ``+``, with a stated answer, or ``f``, without."""
    for name, marks in decoders.items():
        RecordFile(folder / "records" / f"{name}.jsonl").append(
            {
                **{"id": f"p{index}", "question": f"q{index}?", "gold": "1"},
                **{"correct": mark != "-", "strict": mark == "+", "flexible": mark != "-"},
                **{"num_tokens": index + (5 if mark == "+" else 2), "finished": mark != "f"},
            }
            for index, mark in enumerate(marks)
        )
    evaluation = {name: {"seconds_per_answer": 0.25} for name in decoders}
    (folder / "results.json").write_text(json.dumps({**results, "evaluation": evaluation}))
    return folder


def write_generations(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the CSV by ``run:decoder``."""
    with (folder / "comparison.csv").open() as file:
        return {f"{row['run']}:{row['decoder']}": row for row in csv.DictReader(file)}


def wilson(correct: int, total: int) -> tuple[float, ...]:
    p, z = correct / total, 1.959963984540054
    half = z * sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return tuple((p + z**2 / (2 * total) + sign * half) / (1 + z**2 / total) for sign in (-1, 1))


def test_the_table_is_what_hand_calculation_gives(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Against the base's 1 of 10, prefix loses that one and wins 8: p = 2·(1 + 9)/2⁹."""
    one = write_run(tmp_path / "one", {"base": "+---------", "prefix": "-+++++++f-"})
    lora = {**TRAINING, "config": {"learning_rate": 1e-3, "epochs": 1.0, "k": None}, "bias_norm": None}
    two = write_run(tmp_path / "two", {"lora": "+++-------"}, lora)
    out = tmp_path / "out"
    call(f"eval/compare.py --runs {one} {two} --output-dir {out}")

    rows = table(out)
    assert list(rows) == ["one:base", "one:prefix", "two:lora"]
    for name, correct, strict in (("one:base", 1, 1), ("one:prefix", 8, 7), ("two:lora", 3, 3)):
        row = rows[name]
        assert (int(row["correct"]), int(row["total"]), int(row["strict"])) == (correct, 10, strict)
        assert (int(row["flexible"]), int(row["cut_off"]), row["seconds"]) == (correct, correct - strict, "0.25")
        assert float(row["tokens"]) == 6.5 + 0.3 * strict  # 0 to 9 and 2, and 3 more where an answer is stated
        assert float(row["accuracy"]) == correct / 10
        assert (float(row["low"]), float(row["high"])) == pytest.approx(wilson(correct, 10))
    prefix, trained = rows["one:prefix"], ("data_num", "epochs", "prefix", "lr", "parameters", "norm", "tracking")
    assert [prefix[name] for name in trained] == ["64", "3.0", "10", "0.005", "3072", "0.54", "0.01"]
    assert [rows["two:lora"][name] for name in trained] == ["64", "1.0", "all", "0.001", "3072", "", ""]
    assert {rows["one:base"][name] for name in (*trained, "p_value", "only_first", "only_this")} == {""}
    assert (prefix["only_first"], prefix["only_this"]) == ("1", "8")
    assert float(prefix["p_value"]) == pytest.approx(2 * (comb(9, 0) + comb(9, 1)) / 2**9)
    assert float(rows["two:lora"]["p_value"]) == pytest.approx(2 / 2**2)
    differences = {name: float(row["difference"]) for name, row in rows.items() if row["difference"]}
    assert differences == {"one:prefix": pytest.approx(1.8), "two:lora": pytest.approx(0.6)}
    assert float(rows["two:lora"]["difference_low"]) == 0 < float(rows["two:lora"]["difference_high"]) < 1.6

    printed = capfd.readouterr().out
    assert "10 problems, answers compared as numbers, p against one:base" in printed
    shown = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines()]
    assert "one prefix 64 3 10 0.005 3,072 0.540 1.0%" in shown
    assert "one prefix 8 10 80.0% 49.0% - 94.3% 7 8 0.039 1 8" in shown
    assert any(line.startswith("one prefix 8.6 (") and line.endswith("1 250 ms") for line in shown)
    results = json.loads((out / "results.json").read_text())
    assert results["against"] == "one:base"
    assert results["config"]["runs"] == [str(one), str(two)]
    assert [row["correct"] for row in results["comparison"]] == [1, 8, 3]
    solved = {
        record["question"]: record["correct"] for record in RecordFile(out / "records/comparison.jsonl").done.values()
    }
    assert len(solved) == 10
    assert solved["q0?"] == {"one:base": True, "one:prefix": False, "two:lora": True}
    for ending in ("png", "svg"):
        assert (out / f"comparison.{ending}").stat().st_size > 1000

    before = (out / "comparison.csv").read_bytes()
    call(f"eval/compare.py --runs {one} {two} --output-dir {out} --resume")
    assert (out / "comparison.csv").read_bytes() == before


def test_any_decoder_may_be_what_the_others_are_tested_against(call: Callable[[str], None], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"base": "+---", "prefix": "-+++"})
    call(f"eval/compare.py --runs {run} --against {run}/:prefix --output-dir {tmp_path}/out")
    rows = table(tmp_path / "out")
    assert rows["run:prefix"]["p_value"] == ""
    assert (rows["run:base"]["only_first"], rows["run:base"]["only_this"]) == ("3", "1")


@pytest.mark.parametrize("is_numeric", [True, False])
def test_our_own_completions_from_elsewhere_get_our_own_scores(
    call: Callable[[str], None], tmp_path: Path, is_numeric: bool
) -> None:
    """Questions in another order and with other white space, golds as solutions and in another spelling."""
    completions = {
        "1,250": "#### 1,250",
        "-3": "It is -3, said 4.",
        "7": "",
        "8": "The answer is 8.",
        "9": r"\boxed{9.0}",
    }
    if not is_numeric:
        completions |= {r"\frac{1}{2}": r"So $\boxed{0.5}$.", r"x^2+1": r"$1 + x^2$", r"\sqrt{3}": r"$\sqrt{2}$"}
    answers = {f"What is {gold}?": completion for gold, completion in completions.items()}
    problems = [Problem(f"p{gold}", f"What is {gold}?", gold.replace(",", "")) for gold in completions]

    def complete(questions: list[str], _: int | None) -> list[dict[str, Any]]:
        return [{"completion": answers[question], "num_tokens": 1, "finished": True} for question in questions]

    with Scorer(is_numeric) as score:
        path = tmp_path / "run" / "records" / "base.jsonl"
        own = evaluate(problems, complete, score, path, "own", batch_size=4)
    (tmp_path / "run" / "results.json").write_text('{"evaluation": {"base": {}}}')
    rows = [
        {
            "question": f" What  is\n{gold}?",
            "gold": rf"Thus $\boxed{{{gold.replace('{1}{2}', '12')}}}$." if index % 2 else f"So it is.\n#### {gold}",
            "completion": completion,
        }
        for index, (gold, completion) in enumerate(completions.items())
    ]
    made = write_generations(tmp_path / "made.jsonl", rows[::-1])
    call(f"eval/compare.py --runs {tmp_path}/run {made} --output-dir {tmp_path}/out")

    first, second = table(tmp_path / "out").values()
    correct = [record["correct"] for record in own]
    assert 0 < sum(correct) < len(correct)
    assert int(first["correct"]) == int(second["correct"]) == sum(correct)
    assert first["strict"] == second["strict"] == (str(sum(record["strict"] for record in own)) if is_numeric else "")
    assert (second["p_value"], second["only_first"], second["only_this"]) == ("1.0", "0", "0")
    scores = RecordFile(tmp_path / "out" / "records" / "elsewhere-0-made.jsonl").done.values()
    detail = "last_number" if is_numeric else "prediction"
    assert {row["completion"]: row[detail] for row in scores} == {row["completion"]: row[detail] for row in own}


def test_completions_made_elsewhere_are_compared_without_a_run_of_ours(
    call: Callable[[str], None], tmp_path: Path
) -> None:
    """Both files are called after their folders, as their names are the same."""
    rows = [{"question": f"q{index}", "gold": index, "completion": f"It is {index}."} for index in range(4)]
    for name, completion in (("x", "0"), ("y", "1")):
        (tmp_path / name).mkdir()
        write_generations(tmp_path / name / "made.jsonl", [{**rows[0], "completion": completion}, *rows[1:]])
    call(f"eval/compare.py --runs {tmp_path}/x/made.jsonl {tmp_path}/y/made.jsonl --output-dir {tmp_path}/out")
    rows_by_name = table(tmp_path / "out")
    assert list(rows_by_name) == [f"{tmp_path}/{name}/made.jsonl:elsewhere" for name in ("x", "y")]
    assert [row["correct"] for row in rows_by_name.values()] == ["4", "3"]
    assert [row["strict"] for row in rows_by_name.values()] == ["0", "0"]  # no answer is stated


def test_a_run_of_an_older_version_is_scored_by_this_one_and_that_is_said(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its verdict was the last number's, whatever was stated before it."""
    run = write_run(tmp_path / "run", {"base": "--", "prefix": "+-"})
    path = run / "records" / "base.jsonl"
    lines = path.read_text().splitlines()
    completions = (r"\boxed{1} in 4 weeks", "2")
    rows = [{**json.loads(line), "completion": text} for line, text in zip(lines, completions, strict=True)]
    write_generations(path, rows)
    call(f"eval/compare.py --runs {run} --output-dir {tmp_path}/out")
    assert [(row["correct"], row["strict"]) for row in table(tmp_path / "out").values()] == [("1", "1"), ("1", "1")]
    assert (
        "note: run:base: 1 of 2 recorded verdicts are another version's; the table is of the recorded completions,"
        " scored by this one\n"
    ) in capfd.readouterr().out
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows)


def with_template(template: str, total: int) -> dict[str, Any]:
    """Results as this version writes them: of the problems that `write_run` makes."""
    rows = rows_sha256((f"q{index}?", "1") for index in range(total))
    return {**TRAINING, "template": template, "fingerprints": {"test": {"rows": total, "sha256": rows}}}


def test_different_prompts_are_compared_only_if_that_is_meant(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "one", {"base": "+-"}, with_template("chat/1", 2))
    two = write_run(tmp_path / "two", {"base": "++"}, with_template("plain/1", 2))
    line = f"eval/compare.py --runs {one} {two} --output-dir {tmp_path}/out"
    with pytest.raises(SystemExit) as stopped:
        call(line)
    assert stopped.value.code == 2
    assert capfd.readouterr().err == (
        "error: a paired test needs the same prompt template; one:base has chat/1, two:base has plain/1:"
        " pass --any-template to compare them all the same\n"
    )
    assert not (tmp_path / "out").exists()
    call(f"{line} --any-template")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["templates"] == {"one": "chat/1", "two": "plain/1"}
    assert results["fingerprints"] == with_template("", 2)["fingerprints"]
    assert "note" not in capfd.readouterr().out


def test_what_an_old_run_does_not_say_is_said(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = write_run(tmp_path / "new", {"base": "+-"}, with_template("chat/1", 2))
    old = write_run(tmp_path / "old", {"base": "++", "prefix": "++"})
    made = write_generations(
        tmp_path / "made.jsonl", [{"question": f"q{index}?", "gold": 1, "completion": "1"} for index in range(2)]
    )
    call(f"eval/compare.py --runs {new} {old} {made} --output-dir {tmp_path}/out")
    notes = [line for line in capfd.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: old, made.jsonl: the prompt template is not known, and not compared",
        "note: old: made by a version that kept no digest of the problems; paired by their questions",
    ]


def test_records_of_other_problems_than_the_results_are_refused(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"base": "+-"}, with_template("chat/1", 2))
    path = run / "records" / "base.jsonl"
    path.write_text(path.read_text().replace("q1?", "q2?"))
    with pytest.raises(SystemExit):
        call(f"eval/compare.py --runs {run} --output-dir {tmp_path}/out")
    error = capfd.readouterr().err
    assert f"their results.json was made of; {run} (base) holds others: evaluate again" in error
    assert error.count("\n") == 1


def test_shared_only_leaves_out_what_one_of_them_lacks(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "long", {"base": "++--+"})
    write_run(tmp_path / "short", {"base": "+--"})
    made = [{"question": f"q{index}?", "gold": 1, "completion": "1"} for index in (1, 2, 7)]
    write_generations(tmp_path / "made.jsonl", made)
    folders = f"{tmp_path}/long {tmp_path}/short {tmp_path}/made.jsonl"
    call(f"eval/compare.py --runs {folders} --shared-only --output-dir {tmp_path}/out")
    counts = [(row["correct"], row["total"]) for row in table(tmp_path / "out").values()]
    assert counts == [("1", "2"), ("0", "2"), ("2", "2")]
    assert "2 problems that all runs share" in capfd.readouterr().out


@pytest.mark.parametrize("cut", ["", " --first-turn"])
def test_further_turns_are_counted_and_cut_where_asked_for(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], cut: str
) -> None:
    """The questions of a data set that asks one twice are met in its order."""
    rows = [(f"What is {n}+1?", str(n + 1)) for n in range(10)] + [("What is 0+1?", "1")]
    said = [f"Question: {question}\nAnswer: {gold}\n\nQuestion: What is 50+1?\nAnswer: 51" for question, gold in rows]
    said[9:] = ["10", "2"]
    ours = [(f"mawps/test/{n}", *row) for n, row in enumerate(rows)]
    RecordFile(tmp_path / "run/records/base.jsonl").append(
        {"id": name, "question": question, "gold": gold, "correct": name.endswith("10"), "strict": False}
        for name, question, gold in ours[::-1]
    )
    (tmp_path / "run/results.json").write_text('{"evaluation": {"base": {}}}')
    made = write_generations(
        tmp_path / "made.jsonl",
        [{"question": row[0], "gold": row[1], "completion": text} for row, text in zip(rows, said, strict=True)],
    )
    call(f"eval/compare.py --runs {tmp_path}/run {made} --output-dir {tmp_path}/out{cut}")
    found = table(tmp_path / "out")["made.jsonl:elsewhere"]
    assert (found["correct"], found["total"]) == (("10" if cut else "1"), "11")
    assert (found["only_first"], found["only_this"]) == ("1", "10" if cut else "1")
    assert json.loads((tmp_path / "out/results.json").read_text())["turns"] == {
        "made.jsonl:elsewhere": {"echoes": 9, "run_on": 9, "total": 11}
    }
    note = "note: made.jsonl:elsewhere: of 11 completions 9 repeat their prompt and 9 go on with further turns: "
    what = "only the first answer is scored" if cut else "all of it is scored; --first-turn scores the first answer"
    assert note + what in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--runs must be at least one output folder or file"),
        ("--runs {folder}/one {folder}/one/", "--runs must be different runs"),
        ("--runs {folder}/nothing", "--runs names a path, and nothing is there"),
        ("--runs {folder}/gates", "a comparison needs an evaluation;"),
        ("--runs {folder}/lost", "records/base.jsonl holds none: is it there"),
        (
            "--runs {folder}/sampled",
            "a paired test needs one completion a problem; {folder}/sampled (base) holds samples",
        ),
        ("--runs {folder}/made.csv", "come in a .jsonl or .json file; got {folder}/made.csv"),
        ("--runs {folder}/one --against {folder}/one:lora", "has no decoder 'lora'; it has base"),
        ("--runs {folder}/one --against {folder}/other:base", "--against must be RUN:DECODER with one of --runs"),
        ("--runs {folder}/one {folder}/other", "other:base has 3, one:base 2, of which 2 are the same"),
        ("--runs {folder}/one {folder}/none.jsonl --shared-only", "and 0 are shared by all: questions must be as in"),
        ("--runs {folder}/one {folder}/gold.jsonl", "to 'q1?' one:base has '1', gold.jsonl:elsewhere '2'"),
        ("--runs {folder}/one {folder}/good.jsonl --scoring math", "one:base has numeric, --scoring math: leave one"),
        ("--runs {folder}/one {folder}/math", "math:base has math, one:base numeric: leave one"),
        ("--runs {folder}/half.jsonl --scoring numeric", "half.jsonl, line 1: numeric scoring needs a number as"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str], tmp_path: Path, arguments: str, message: str
) -> None:
    for name, marks in (
        ("one", "+-"),
        ("other", "+--"),
        ("sampled", "+-"),
        ("gates", "+-"),
        ("lost", "+-"),
        ("math", "++"),
    ):
        write_run(tmp_path / name, {"base": marks})
    (tmp_path / "gates" / "results.json").write_text('{"gates": {}}')
    (tmp_path / "lost" / "records" / "base.jsonl").unlink()
    for name, old, new in (("sampled", '"id"', '"problem": "p", "id"'), ("math", '"strict"', '"timed_out"')):
        path = tmp_path / name / "records" / "base.jsonl"
        path.write_text(path.read_text().replace(old, new))
    (tmp_path / "made.csv").write_text("question,gold,completion\n")
    for name, golds in (
        ("good", {"q0?": 1, "q1?": 1}),
        ("gold", {"q0?": 1, "q1?": 2}),
        ("none", {"q9?": 1}),
        ("half", {"q": r"\frac12"}),
    ):
        rows = [{"question": question, "gold": gold, "completion": "1"} for question, gold in golds.items()]
        write_generations(tmp_path / f"{name}.jsonl", rows)
    line = f"eval/compare.py {arguments.format(folder=tmp_path)} --output-dir {tmp_path}/out"
    assert refused(line, message.format(folder=tmp_path)).count("\n") == 1
    assert not (tmp_path / "out").exists()
