"""Around an lm-eval run: its tasks, found and read beforehand, and its results as tables and records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reft_math.command import write_text
from reft_math.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

RESULT_COLUMNS = ("task", "version", "shots", "filter", "metric", "value", "± standard error", "problems")
_STAMP = "reft_math"  # lm-eval's keys are digests


def load_tasks(names: Sequence[str], include_path: str | None = None) -> tuple[TaskManager, list[Any]]:
    """lm-eval's task manager and, by name, its tasks and groups with their data: no mistake waits for the model.

    Args:
        names: Of tasks, groups and tags.
        include_path: Folder with further task files.

    Raises:
        UserError: lm-eval is not installed, no such folder or task, or its data or code is not within reach.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UserError(f"lm-eval is needed, and {error.name} is not installed: uv sync --extra harness") from None
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path must be a folder with task files (.yaml); {include_path} is none")
    manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--tasks must be names that lm-eval knows, or that --include-path brings; got {', '.join(unknown)}"
        )
    try:
        found = [item for name in names for item in _named(manager, name)]
        manager.load(found)  # refuses a task that comes twice
    except (AssertionError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--tasks must be within reach, data and all; {','.join(names)}: {reason}") from None
    return manager, found


def _named(manager: TaskManager, name: str) -> list[Any]:
    """The group or task of that name, or the tasks of that tag."""
    loaded = manager.load([name])
    groups = loaded["groups"]
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def settle_generation(tasks: Iterable[Task], gen_kwargs: Mapping[str, Any] | None, max_gen_toks: int) -> None:
    """Puts ``gen_kwargs`` into the tasks, and says ``do_sample`` where HFLM would read it from the temperature.

    lm-eval keeps answers for later unless their settings say ``do_sample``: repeated samples would be one sample's
    copies.

    Args:
        tasks: Without groups.
        gen_kwargs: Over the tasks' own.
        max_gen_toks: Where neither says how long answers get.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    for task in tasks:
        if task.get_config("output_type") == "generate_until":
            settings = {**task.get_config("generation_kwargs"), **(gen_kwargs or {})}
            do_sample = normalize_gen_kwargs(settings, max_gen_toks)["do_sample"]
            task.set_config("generation_kwargs", {**settings, "do_sample": do_sample})


def read_gen_kwargs(text: str | None) -> dict[str, Any] | None:
    """``name=value`` pairs with commas between them, as lm-eval reads them.

    Raises:
        UserError: A name without a value, or one that neither ``generate`` nor lm-eval knows.
    """
    from lm_eval.utils import simple_parse_args_string
    from transformers import GenerationConfig

    if text is None:
        return None
    values: dict[str, Any] = simple_parse_args_string(text)
    known = {*GenerationConfig().to_dict(), "until", "max_gen_toks"}
    if wrong := [name for name, value in values.items() if name not in known or value == ""]:
        raise UserError(
            "--gen-kwargs holds settings of generate as name=value, with commas between them, such as"
            f" max_gen_toks=1024,temperature=0.7; got {', '.join(wrong)}"
        )
    return values


def guard_answers(answers: MutableMapping[str, Any], stamp: Mapping[str, Any]) -> None:
    """Marks lm-eval's store of answers as one model's: its keys are prompts and settings, and know of no model.

    Args:
        answers: lm-eval's ``use_cache``.
        stamp: All that an answer hangs on but its request.

    Raises:
        UserError: There are answers of another model, or of nobody knows which.
    """
    found = answers.get(_STAMP)
    if found is None and len(answers) > 0:
        raise UserError("the answers there (use_cache) do not say which model gave them; take another place for them")
    if found is not None and found != stamp:
        others = ", ".join(name for name in {**stamp, **found} if found.get(name) != stamp.get(name))
        raise UserError(f"the answers there (use_cache) are another model's, which differs in {others}; start anew")
    answers[_STAMP] = dict(stamp)


def result_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """lm-eval's results as table rows for `RESULT_COLUMNS`; groups come with their tasks, in lm-eval's order.

    Args:
        results: What ``lm_eval.simple_evaluate`` returns.
    """
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, has_filter, kind = key.partition(",")
            if not has_filter or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            yield [
                task,
                str(results["versions"].get(task, "-")),
                str(results["n-shot"].get(task, "-")),
                kind,
                metric,
                f"{value:.4f}",
                f"{error:.4f}" if isinstance(error, float) else "-",
                str(results["n-samples"].get(task, {}).get("effective", "-")),
            ]


def write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes ``<task>.jsonl``: lm-eval's prompts, answers and scores, a line with an ``id`` a problem and filter."""
    folder.mkdir(exist_ok=True)
    for task, rows in samples.items():
        in_order = sorted(rows, key=lambda row: int(row["doc_id"]))  # several processes' come one after another
        records = [{"id": f"{row['doc_id']}/{row['filter']}", **row} for row in in_order]
        write_text(folder / f"{task}.jsonl", "".join(json.dumps(plain(record)) + "\n" for record in records))


def plain(value: Any) -> Any:
    """``value`` as JSON reads it back; what JSON does not have becomes text, or a number where it is NumPy's."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable))
