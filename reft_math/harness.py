"""Around an lm-eval run: its tasks, found and read beforehand, and its results as tables and records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reft_math.errors import UserError
from reft_math.files import write_text

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

RESULT_COLUMNS = ("task", "version", "shots", "filter", "metric", "value", "± standard error", "problems")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's names for one thing
_STAMP = "reft_math"  # lm-eval's keys are digests


def load_tasks(names: Sequence[str], include_path: str | None = None) -> tuple[TaskManager, list[Any]]:
    """lm-eval's task manager and, by name, its tasks and groups with their data: no mistake waits for the model.

    Args:
        names: Of tasks, groups and tags.
        include_path: Folder with further task files.

    Raises:
        UserError: lm-eval is not installed, no such folder or task, or its data or code is not within reach.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UserError(f"lm-eval is needed, and {error.name} is not installed: uv sync --extra harness") from None
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path must be a folder with task files (.yaml); {include_path} is none")
    if include_path is not None:
        _check_files(Path(include_path))
    manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--tasks must be names that lm-eval knows, or that --include-path brings; got {', '.join(unknown)}"
        )
    try:
        found = [item for name in names for item in _named(manager, name)]
        manager.load(found)  # refuses a task that comes twice
    except (
        *(AssertionError, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError),
        *(DatasetsError, TemplateError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--tasks must be within reach, data and all; {','.join(names)}: {reason}") from None
    for task in manager.load(found)["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"--tasks must not run code that a model wrote; {task.task_name} does")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"--tasks must be of text; {task.task_name} shows images or sounds")
    return manager, found


def _check_files(folder: Path) -> None:
    """lm-eval passes over a task file that it cannot read; then its own task of that name would be taken, or none."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.glob("**/*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except (OSError, ValueError, yaml.YAMLError) as error:  # a text in another encoding is a ValueError
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--include-path must hold readable task files; {path}: {reason}") from None


def _named(manager: TaskManager, name: str) -> list[Any]:
    """The group or task of that name, or the tasks of that tag."""
    loaded = manager.load([name])
    groups = loaded["groups"]
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def settle_generation(
    tasks: Iterable[Task],
    gen_kwargs: Mapping[str, Any] | None,
    max_gen_toks: int,
    max_length: int,
    takes_beams: bool,
) -> None:
    """Puts ``gen_kwargs`` into the tasks, and says ``do_sample`` where HFLM would read it from the temperature.

    lm-eval keeps answers for later unless their settings say ``do_sample``: repeated samples would be one sample's
    copies.

    Args:
        tasks: Without groups.
        gen_kwargs: Over the tasks' own.
        max_gen_toks: Where neither says how long answers get.
        max_length: Of prompt and answer together.
        takes_beams: Whether decoding does.

    Raises:
        UserError: Settings that decoding here does not take.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    for task in tasks:
        if task.get_config("output_type") != "generate_until":
            continue
        settings = {**task.get_config("generation_kwargs"), **(gen_kwargs or {})}
        _check_settings(settings, f"{task.config.task}'s generation_kwargs")
        read = normalize_gen_kwargs(settings, max_gen_toks)
        if not 0 < read["max_gen_toks"] < max_length:
            raise UserError(
                f"max_gen_toks must be 1 or more and leave room for a prompt in the model's {max_length} tokens;"
                f" {task.config.task} has {read['max_gen_toks']}: pass another in --gen-kwargs"
            )
        if read["do_sample"] and not read.get("temperature"):
            raise UserError(f"{task.config.task} samples: it needs a temperature, --gen-kwargs temperature=0.7")
        if not takes_beams and settings.get("num_beams", 1) != 1:
            raise UserError(
                f"a gate goes with greedy decoding and sampling; {task.config.task} has num_beams="
                f"{settings['num_beams']}: pass --gen-kwargs num_beams=1, or --gate off"
            )
        task.set_config("generation_kwargs", {**settings, "do_sample": read["do_sample"]})


def read_gen_kwargs(text: str | None) -> dict[str, Any] | None:
    """``name=value`` pairs with commas between them, as lm-eval reads them.

    Raises:
        UserError: A name without a value, or a setting that decoding here does not take.
    """
    from lm_eval.utils import simple_parse_args_string

    if text is None:
        return None
    values: dict[str, Any] = simple_parse_args_string(text)
    _check_settings(values, "--gen-kwargs")
    return values


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Names that ``generate`` or lm-eval knows, with values that are no text: only ``until`` is."""
    from transformers import GenerationConfig

    known = {*GenerationConfig().to_dict(), *_LENGTHS} - {"stop_strings", "num_return_sequences"}
    kinds = {**dict.fromkeys(_LENGTHS, int), "do_sample": bool}
    wrong = [
        name
        for name, value in settings.items()
        if (value == "" if name == "until" else name not in known or isinstance(value, str))
        or not isinstance(value, kinds.get(name, object))
    ]
    if wrong:
        raise UserError(
            f"{where} holds settings of generate as name=value, with commas between them, such as"
            f" max_gen_toks=1024,temperature=0.7, and until for strings to stop at; got {', '.join(wrong)}"
        )


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
