"""Records a regressor's predictions row by row, and summarises their errors."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import claim, leave_process_group
from reft_math.commands.provenance import provenance
from reft_math.commands.resumable import Record, record_rows
from reft_math.data.fingerprint import regression_fingerprint
from reft_math.data.regression_rows import RegressionRow, check_split, drawn, load_split
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table
from reft_math.models.base import end_token_ids
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.build import load_base, load_regressor
from reft_math.regression.config import RegressorConfig, default_grid
from reft_math.regression.metrics import regression_metrics
from reft_math.regression.regressor import Regressor
from reft_math.regression.sampling import write_numbers

EVALUATION_COLUMNS = (
    "predictor",
    "RMSE",
    "95 % interval",
    "Pearson",
    "95 % interval",
    "Spearman",
    "95 % interval",
    "no number",
)


@dataclass(frozen=True)
class SampledAnswers:
    """Settings of written answers, for the predictors that read them.

    Attributes:
        samples: Answers drawn for each prompt, for RAIL by samples; 0 draws none.
        temperature: Sampling temperature.
        default: Value of an answer that is not a number.
        seed: Seed of the samples.
    """

    samples: int = 0
    temperature: float = 1.0
    default: float = 0.0
    seed: int = 0


def evaluate_regressor(
    regressor: Regressor,
    rows: Sequence[RegressionRow],
    records_path: Path,
    name: str,
    batch_size: int,
    writing: SampledAnswers,
) -> list[Record]:
    """Predicts every row that has no record yet by every predictor, through `record_rows`.

    A record has ``target``, ``predictions`` by name, the grid's ``entropy``, its ``probabilities`` (None for many
    numbers), and the model's answers: ``written``, greedily, and ``samples``. Read as numbers they are two further
    predictors: ``decoded``, and ``rail_sampled``, the mean over the samples. Heads write nothing, nor do models with
    bidirectional prompts, which generation does not support.

    Args:
        regressor: Set to evaluation mode.
        rows: Rows to predict.
        records_path, name, batch_size: See `record_rows`. A batch is sampled as a whole, so that a resumed run draws
            the same samples as an undisturbed one.
        writing: Settings of written answers.

    Returns:
        One record per row, in their order.
    """
    regressor.eval()
    writes = regressor.head is None and not regressor.regressor_config.bidirectional
    collator = RegressionCollator(int(regressor.tokenizer.pad_token_id))
    device = regressor.model.device

    def work(batch: Sequence[RegressionRow], missing: Sequence[RegressionRow]) -> list[Record]:
        asked = batch if writes and writing.samples else missing
        inputs = collator(encode_rows(asked, regressor.tokenizer, regressor.template))
        ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
        columns = {key: numbers.tolist() for key, numbers in regressor.predictors(ids, mask).items()}
        # Before sampling, which would fail on NaN probabilities.
        predicted = [
            _record(row, {key: numbers[place] for key, numbers in columns.items()}) for place, row in enumerate(asked)
        ]
        texts = _written(regressor, ids, mask, writing, f"{writing.seed}/{batch[0].id}") if writes else {}
        found = {
            row.id: predicted[place] | {key: written[place] for key, written in texts.items()}
            for place, row in enumerate(asked)
        }
        return [_with_numbers_read(found[row.id], regressor, writing.default) for row in missing]

    return record_rows(rows, lambda row: len(row.text), work, records_path, name, batch_size)


def _record(row: RegressionRow, numbers: dict[str, Any]) -> Record:
    probabilities = numbers.pop("probabilities", None)
    if not all(map(math.isfinite, numbers.values())):
        raise UserError(
            f"predictions must be finite; those for row {row.id} are NaN or infinite: check the weights, or try"
            " --dtype float32"
        )
    entropy = numbers.pop("entropy", None)
    told = {"predictions": numbers, "entropy": entropy, "probabilities": probabilities}
    return {"text": row.text, "target": row.target, **told}


def _written(
    regressor: Regressor, input_ids: torch.Tensor, attention_mask: torch.Tensor, writing: SampledAnswers, key: str
) -> dict[str, list[Any]]:
    """Returns the model's text after each prompt: greedy, and samples if requested."""
    tokenizer = regressor.tokenizer
    ends = end_token_ids(regressor.model, tokenizer, regressor.template)
    longest = max(map(len, regressor.grid.token_ids))

    def write(**settings: Any) -> list[list[str]]:
        with regressor.intervening(input_ids.shape[1]):
            return write_numbers(
                regressor.model, tokenizer, input_ids, attention_mask, ends, max_new_tokens=longest + 4, **settings
            )

    found: dict[str, list[Any]] = {"written": [texts[0] for texts in write()]}
    if writing.samples:
        with torch.random.fork_rng(devices=[input_ids.device] if input_ids.is_cuda else []):
            torch.manual_seed(zlib.crc32(key.encode()))
            found["samples"] = write(samples=writing.samples, temperature=writing.temperature)
    return found


def _with_numbers_read(record: Record, regressor: Regressor, default: float) -> Record:
    """Adds the predictors that read written answers, and the share of answers that are not numbers."""
    for name, key in (("decoded", "written"), ("rail_sampled", "samples")):
        if key in record:
            texts = [record[key]] if name == "decoded" else record[key]
            numbers = [regressor.parse(text) for text in texts]
            read = [default if number is None else number for number in numbers]
            record["predictions"][name] = math.fsum(read) / len(read)
            record.setdefault("no_number", {})[name] = numbers.count(None) / len(numbers)
    return record


def summarise(records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """Returns ``predictors``, metrics with intervals, and ``entropy``, mean and quartiles over rows, in nats."""
    targets = [record["target"] for record in records]
    names = list(records[0]["predictions"])
    entropies = [record["entropy"] for record in records if record["entropy"] is not None]
    return {
        "total": len(records),
        "predictors": {
            name: {
                **regression_metrics([record["predictions"][name] for record in records], targets, seed),
                "no_number": _mean([record.get("no_number", {}).get(name) for record in records]),
            }
            for name in names
        },
        "entropy": {
            "mean": float(np.mean(entropies)),
            "quartiles": [float(quartile) for quartile in np.percentile(entropies, [25, 50, 75])],
        }
        if entropies
        else None,
    }


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def table_rows(summaries: Mapping[str, Mapping[str, Any]], marked: str = "") -> list[list[str]]:
    """Returns rows under `EVALUATION_COLUMNS`, one for each predictor of each summary.

    Args:
        summaries: Summaries by name.
        marked: The ``name/predictor`` to mark with a star.
    """
    rows = []
    for name, summary in summaries.items():
        for predictor, found in summary["predictors"].items():
            title = f"{name}, {predictor}" + (" *" if f"{name}/{predictor}" == marked else "")
            cells = [cell for metric in ("rmse", "pearson", "spearman") for cell in _cells(found[metric])]
            share = found.get("no_number")
            rows.append([title, *cells, "-" if share is None else f"{share:.1%}"])
    return rows


def _cells(estimate: Mapping[str, Any]) -> list[str]:
    if estimate["value"] is None:
        return ["-", "-"]
    low, high = estimate["interval_95"]
    return [f"{estimate['value']:.3f}", f"{low:.3f} - {high:.3f}"]


def run_regression_evaluation(options: Any) -> None:
    """Evaluates a base or a regressor over its grid, with the options of ``eval/regression.py``."""
    if options.data is not None:
        check_split(options.data, "train")
    if options.regressor is None:
        options = dataclasses.replace(options, data=options.data or "original1")
        config = RegressorConfig(
            grid=options.grid or default_grid(str(options.data)),
            template=options.template or "auto",
            prompt=options.prompt or "ours",
            base_model=options.model or "arithmetic",
            base_revision=options.revision,
        )
        name, regressor = "base", load_base(config, options)
    else:
        name, regressor = "tuned", load_regressor(options.regressor, options.revision, options)
        options = dataclasses.replace(options, data=options.data or regressor.regressor_config.data)
        if options.data is None:
            raise UserError(f"{options.regressor} does not say what it was trained on; pass --data")
    config = regressor.regressor_config
    rows = drawn(load_split(str(options.data), options.split, options.data_dir, config.prompt), options.limit)
    fingerprints = {str(options.split): regression_fingerprint(rows)}
    folder = claim(options, fingerprints)
    writing = SampledAnswers(options.samples, options.temperature, options.default, options.seed)
    evaluation = {}
    while True:
        path = folder / "records" / f"{name}.jsonl"
        evaluation[name] = summarise(evaluate_regressor(regressor, rows, path, name, options.batch_size, writing))
        if name == "base" or not options.base:
            break
        del regressor  # two whole models may not fit
        name, regressor = "base", load_base(config, options)
    leave_process_group()
    results = {"regressor": dataclasses.asdict(config), "predictor": config.predictor, "evaluation": evaluation}
    marked = "" if options.regressor is None else f"tuned/{config.predictor}"
    lines = table_rows(evaluation, marked)
    results["score_tables"] = {"evaluation" + (", * was trained" if marked else ""): [EVALUATION_COLUMNS, *lines]}
    write_json(folder / RESULTS_NAME, {**provenance(options), "fingerprints": fingerprints, **results})
    title = f"{options.data}, {len(rows)} {options.split} rows" + ("; * is what was trained" if marked else "")
    print_table(title, EVALUATION_COLUMNS, lines)
    for name, summary in evaluation.items():
        if summary["entropy"] is not None:
            print(f"entropy over the grid, mean over rows, {name}: {summary['entropy']['mean']:.2f} nats")
    print(f"results: {folder / RESULTS_NAME}")
