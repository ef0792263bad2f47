"""An evaluation over two processes, either of which may die, or the launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lm_eval.tasks
import psutil
import pytest
from ranks import ROOT, World

from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.files.records import RecordFile

LINE = "eval/arithmetic.py --limit 30 --batch-size 2 --samples 2 --temperature 0.8 --seed 5"


# lm-eval's own task files, some ten thousand, take seconds to list.
WITHOUT_DEFAULTS = """
import functools, runpy, sys
import lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TASKS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {problems}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{prompt}"
doc_to_target: "{{{{answer}}}}"
{settings}
metric_list: [{{metric: {metric}}}]
"""


def torchrun(line: str) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, *line.split()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def recorded(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "records").glob("*.jsonl"))


def wait_for_rows(folder: Path, rows: int, is_running: Callable[[], bool]) -> None:
    while recorded(folder) < rows:
        assert is_running()
        time.sleep(0.01)


@pytest.mark.slow
def test_whichever_process_dies_no_row_is_lost_or_counted_twice(
    call: Callable[[str], None], world: Callable[..., World], tmp_path: Path
) -> None:
    """Killed twice and resumed, the samples are those of a run in peace by one process, and each is there once.

    ``torchrun`` is killed, and its workers end by themselves; then one worker, and the other is taken down with it.
    """
    folder = tmp_path / "killed"
    line = f"{LINE} --output-dir {folder}"
    run = torchrun(line)
    wait_for_rows(folder, 10, lambda: run.poll() is None)
    workers = psutil.Process(run.pid).children()
    assert len(workers) == 2
    run.kill()
    run.wait()
    assert not psutil.wait_procs(workers, timeout=10)[1]
    before = recorded(folder)
    assert 10 <= before < 50
    assert list((folder / "records").glob("*.shard-*")), "the rows of the stopped run are in its shards"
    second = world(2, f"{line} --resume")
    wait_for_rows(folder, before + 10, second.is_running)
    second.ranks[1].kill()
    assert second.wait() != 0
    assert recorded(folder) < 60
    last = world(2, f"{line} --resume")
    assert last.wait() == 0, last.errors()

    call(f"{LINE} --output-dir {tmp_path}/alone")
    alone, killed = (RecordFile(tmp_path / run / "records" / "base.jsonl").done for run in ("alone", "killed"))
    assert len(killed) == 60
    assert killed == alone
    assert not list((folder / "records").glob("*.shard-*"))
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("alone", "killed")]
    alone, killed = (result["evaluation"]["base"] for result in results)
    assert alone.pop("seconds_per_answer") > 0
    assert killed.pop("seconds_per_answer") is None, "some rows were done before"
    assert alone == killed
    assert alone["samples"] == 2


@pytest.mark.slow
def test_lm_eval_goes_on_where_one_process_has_all_its_answers(
    call: Callable[[str], None], world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whole texts are scored in windows, as many as a text takes: no process may wait for another's."""
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": each.question, "answer": each.answer} for each in arithmetic_problems("test", 5)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = "generation_kwargs: {until: [], do_sample: false, max_gen_toks: 40}"
    for name, kind, prompt, metric, more in (
        ("sums", "generate_until", "{{question}}", "exact_match", settings),
        ("texts", "loglikelihood_rolling", "", "word_perplexity", ""),
    ):
        task = TASKS.format(name=name, kind=kind, prompt=prompt, metric=metric, settings=more, problems=problems)
        (tmp_path / f"{name}.yaml").write_text(
            task.replace("{{answer}}", "{{question}}" if not prompt else "{{answer}}")
        )
    (tmp_path / "quick.py").write_text(WITHOUT_DEFAULTS)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    line = f"eval/harness.py --tasks sums,texts --include_path {tmp_path} --limit 5 --batch_size 2"
    line += f" --output_path {tmp_path}/WHERE/results.json --use_cache {tmp_path}/WHERE/answers"
    two_processes = f"{tmp_path}/quick.py {line.replace('WHERE', 'two')}"
    assert world(2, two_processes).wait() == 0
    (tmp_path / "two" / "answers_rank1.db").unlink()
    assert world(2, two_processes).wait() == 0
    call(line.replace("WHERE", "one"))
    two, one = (json.loads(max((tmp_path / run).glob("results_*.json")).read_text()) for run in ("two", "one"))
    assert two["n-samples"] == one["n-samples"] == {name: {"original": 5, "effective": 5} for name in ("sums", "texts")}
    for name, metrics in one["results"].items():
        assert two["results"][name] == {
            key: pytest.approx(value) if isinstance(value, float) else value for key, value in metrics.items()
        }
