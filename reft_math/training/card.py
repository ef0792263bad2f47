"""Writes a model card's notes on a training run, from its ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.data.registry import SOURCES, evaluation_split
from reft_math.errors import UserError
from reft_math.files.strict import read_object
from reft_math.files.tables import markdown
from reft_math.models.card import NO_NOTES, TrainingNotes, facts, parameters_sha256
from reft_math.scoring.lengths import LENGTH_TITLE

_HEADING = "## Training and results"


def notes_beside(folder: Path) -> TrainingNotes:
    """Returns notes on the finished training run that a saved folder belongs to.

    Empty if it belongs to no run, or if its parameters have changed since.
    """
    path = folder.resolve().parent / RESULTS_NAME
    try:
        results = read_object(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); mend or delete it") from None
    if "parameters" in results and results["parameters"] != parameters_sha256(folder):
        return NO_NOTES
    if results.get("evaluation") and "score_tables" not in results:
        return NO_NOTES  # written by a version whose results held no tables
    if "bias_norm" in results:
        return adapter_notes(results)
    return regressor_notes(results) if "regressor" in results and "training" in results else NO_NOTES


def adapter_notes(results: Mapping[str, Any]) -> TrainingNotes:
    """Returns notes from the results of `train/prefix_reft.py` or `train/prefix_rl.py`."""
    norm, evaluation = results["bias_norm"], results["evaluation"]
    calibration, chosen = results["calibration"], None
    if calibration:
        problems = next(iter(calibration.values()))["total"]
        chosen = f"by accuracy on {problems} validation problems, of {', '.join(f'`{gate}`' for gate in calibration)}"
    size = (results.get("relative_size") or {}).get("mean")
    said = {
        **_rows(results),
        **_course(results),
        "norm control": None if norm["controller"] == "none" else norm["controller"],
        "size of the edit": size and f"{size['edit']:.3g} of the norm of what it edits, {size['activation']:.3g}",
        "gate after training": f"`{results['gate']}`",
        "gate chosen": chosen,
    }
    if evaluation is None:  # no decoding with a sharded base
        return TrainingNotes(f"{_HEADING}\n\n{facts(said)}", _metadata(results["dataset"]))
    own = "prefix" if "prefix" in evaluation else "reft"
    total, gate = evaluation[own]["total"], results["gate"]
    title = f"{total} held-out problems, greedy decoding; `{own}` is the adapter under `{gate}`:"
    tables = results["score_tables"]
    costs = [row[:-1] for row in tables[LENGTH_TITLE]]  # a card leaves out the machine's time
    table = markdown({title: tables["evaluation"], "Mean (95 % interval):": costs})
    text = f"{_HEADING}\n\n{facts(said)}\n{table}"
    return TrainingNotes(text, _metadata(results["dataset"], evaluation[own], gate))


def _rows(results: Mapping[str, Any]) -> dict[str, str]:
    config, source = results["config"], f"{results['train_rows']} {{}} of {Path(results['dataset']).name}"
    if "estimator" in config:
        best, steps = results["validation"]["best_step"], len(results["bias_norm"]["trace"]["step"])
        return {
            "data": source.format("answers"),
            "trained on": f"{config['samples']} drawn prefixes of {config['k']} tokens for each, by the reward of the"
            f" base's answer ({config['estimator']})",
            "step": f"{best} of {steps}, the best on validation problems",
        }
    first, share = f"the first {config['k']} tokens of each", config["full_fraction"]
    said = {0: first, 1: "the whole of each"}.get(share, f"{first}; of {share:.0%} of them the whole")
    return {"data": source.format("solutions"), "trained on": said}


def regressor_notes(results: Mapping[str, Any]) -> TrainingNotes:
    """Returns notes from the results of `train/raft.py`."""
    said = {
        "rows": ", ".join(f"{count} {split}" for split, count in results["rows"].items()),
        **_course(results),
        "trained parameters": f"{results['training']['trained_parameters']:,}",
        "RMSE of the training targets' mean": f"{results['rmse_of_training_mean']:.3f}",
    }
    (lines,) = results["score_tables"].values()
    table = markdown({"On the test rows; * is what the loss trains:": lines})
    return TrainingNotes(f"{_HEADING}\n\n{facts(said)}\n{table}")


def _course(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results["config"]
    return {
        "epochs, learning rate, seed": f"{config['epochs']:g}, {config['learning_rate']:g}, {config['seed']}",
        "commit of reft-math": results["commit"],
        "date": results["date"].partition("T")[0],
    }


def _metadata(dataset: str, summary: Mapping[str, Any] | None = None, gate: str = "") -> dict[str, Any]:
    source = SOURCES.get(dataset)
    if source is None or source.hub is None:
        return {}
    if summary is None:
        return {"datasets": [source.hub.id]}
    correct, (low, high) = f"{summary['correct']}/{summary['total']}", summary["interval_95"]
    result = EvalResult(
        task_type="text-generation",
        dataset_type=source.hub.id,
        dataset_name=source.name,
        dataset_config=source.hub.config,
        dataset_split=source.hub.splits.get(evaluation_split(dataset)),
        metric_type="accuracy",
        metric_value=summary["accuracy"],
        metric_name=f"accuracy under {gate}, {correct}, 95 % interval {low:.1%} - {high:.1%}, greedy",
    )
    return {"datasets": [source.hub.id], "eval_results": [result]}
