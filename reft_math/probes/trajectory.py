"""Trajectories: likelihood of texts under the base and the adapter's decoders, and where greedy paths diverge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from interventions.gates import Gate
from interventions.hooked import HookedReftModel
from interventions.pairs import Handoff
from reft_math.commands.resumable import Record, record_rows
from reft_math.decoding.teacher_forcing import ForcedText, text_logits
from reft_math.scoring.statistics import bootstrap_interval, times_drawn

SCORERS = ("base", "always_on", "prefix")
FATES = ("right/right", "right/wrong", "wrong/right", "wrong/wrong")


def score_texts(
    texts: Sequence[ForcedText],
    model: PreTrainedModel,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff,
    pad_token: int,
    records_path: Path,
    name: str,
    batch_size: int,
) -> list[Record]:
    """Computes and records `log_likelihoods` of every text, as in `record_rows`.

    Returns:
        Records ``{id, closing_position, base, always_on, prefix}``.
    """

    def work(batch: Sequence[ForcedText], missing: Sequence[ForcedText]) -> list[Record]:
        # Always the whole batch: with other rows beside it, the last digit of a likelihood might be another.
        found = log_likelihoods(model, interventions, gate, handoff, batch, pad_token)
        by_id = {text.id: record for text, record in zip(batch, found, strict=True)}
        return [by_id[text.id] for text in missing]

    return record_rows(texts, lambda text: len(text.prompt) + len(text.token_ids), work, records_path, name, batch_size)


def log_likelihoods(
    model: PreTrainedModel,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff,
    texts: Sequence[ForcedText],
    pad_token: int,
) -> list[Record]:
    """Returns ``log p(y_t | x, y_<t)`` in nats, for each token of each text, under each of `SCORERS` (`text_logits`).

    Returns:
        By text ``{closing_position, base, always_on, prefix}``, the last three lists of one number per token.
    """
    found = text_logits(model, interventions, gate, handoff, texts, pad_token)
    return [
        {
            "closing_position": logits.closing_position,
            **{scorer: _of_tokens(getattr(logits, scorer), text.token_ids) for scorer in SCORERS},
        }
        for text, logits in zip(texts, found, strict=True)
    ]


def _of_tokens(logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
    """Returns ``log softmax(f_t)[y_t]``, computed in float32 or better, with six digits, which float32 has."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    values = logits.to(dtype).log_softmax(dim=-1).gather(1, chosen)[:, 0]
    return [float(f"{value:.6g}") for value in values.tolist()]


def mean_intervals(values: npt.NDArray[np.float64]) -> list[tuple[float, float | None, float | None]]:
    """Returns the mean of each column over texts, with its 95 % interval, bootstrapped over texts.

    Log-likelihoods have a long tail on one side and end at 0 on the other, which an interval ``m ± ts`` would exceed.

    Args:
        values: ``(text, column)``; NaN for a missing value.

    Returns:
        Mean, low and high end by column; the ends are None for a single value.
    """
    has_value = ~np.isnan(values)
    filled = np.where(has_value, values, 0)

    def means(texts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        times = times_drawn(texts)
        sums, counts = filled.T @ times.T, has_value.T @ times.T
        return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))

    low, high = bootstrap_interval(means, len(values))
    rows = zip(filled.sum(axis=0) / has_value.sum(axis=0), low, high, has_value.sum(axis=0), strict=True)
    return [
        (float(mean), *((float(start), float(end)) if count > 1 else (None, None))) for mean, start, end, count in rows
    ]


def position_table(scored: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Returns mean log-likelihoods, in nats, with 95 % intervals, by kind of text, scorer and position of the token.

    Args:
        scored: The records of `score_texts` by kind of text.

    Returns:
        Rows ``{text, scorer, position, rows, mean, low, high}``; ``rows`` counts texts of that length or more.
    """
    table = []
    for text, records in scored.items():
        lengths = np.array([len(record["base"]) for record in records])
        for scorer in SCORERS:
            values = np.full((len(records), lengths.max()), np.nan)
            for row, record in zip(values, records, strict=True):
                row[: len(record[scorer])] = record[scorer]
            for position, (mean, low, high) in enumerate(mean_intervals(values)):
                about = {"text": text, "scorer": scorer, "position": position, "rows": int((lengths > position).sum())}
                table.append({**about, "mean": mean, "low": low, "high": high})
    return table


def total_table(scored: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Returns ``log p(y | x)``, summed over tokens, mean over texts, in nats, by kind of text and scorer.

    Args:
        scored: As in `position_table`.

    Returns:
        Rows ``{text, scorer, texts, tokens, total, low, high, per_token, less_base, less_base_low, less_base_high}``;
        ``less_base`` is the mean difference from the base's total of the same text.
    """
    table = []
    for text, records in scored.items():
        tokens = sum(len(record["base"]) for record in records)
        totals = np.array([[sum(record[scorer]) for scorer in SCORERS] for record in records])
        of_totals, of_differences = (mean_intervals(values) for values in (totals, totals - totals[:, :1]))
        for scorer, total, difference in zip(SCORERS, of_totals, of_differences, strict=True):
            row = {"text": text, "scorer": scorer, "texts": len(records), "tokens": tokens}
            row |= zip(("total", "low", "high"), total, strict=True)
            row["per_token"] = total[0] * len(records) / tokens
            row |= zip(("less_base", "less_base_low", "less_base_high"), difference, strict=True)
            table.append(row)
    return table


def parting(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Returns the position of the first token that differs; None if the two are identical."""
    pairs = enumerate(zip_longest(first, second))
    return next((position for position, (one, other) in pairs if one != other), None)


def parting_table(answers: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Counts pairs of answers to a problem that diverge at each position, by their outcomes.

    Args:
        answers: Records with ``token_ids`` and ``correct``, of the same problems, by decoder.

    Returns:
        Rows ``{first, second, position}`` and a count for each of `FATES`, the first decoder's before the stroke;
        ``position`` is None for identical answers.
    """
    table = []
    for first, second in combinations(answers, 2):
        counts: dict[int | None, dict[str, int]] = {}
        for one, other in zip(answers[first], answers[second], strict=True):
            fate = "/".join("right" if record["correct"] else "wrong" for record in (one, other))
            counts.setdefault(parting(one["token_ids"], other["token_ids"]), dict.fromkeys(FATES, 0))[fate] += 1
        for position in sorted(counts, key=lambda position: (position is None, position)):
            table.append({"first": first, "second": second, "position": position, **counts[position]})
    return table


def fate_table(partings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cross-tabulates each pair of decoders: sums `parting_table` over positions, with identical pairs separate.

    Returns:
        Rows ``{first, second, paths, pairs, median_position}`` and a count for each of `FATES`; ``paths`` is ``part``
        or ``same``.
    """
    table = []
    for first, second in dict.fromkeys((row["first"], row["second"]) for row in partings):
        ours = [row for row in partings if (row["first"], row["second"]) == (first, second)]
        for paths in ("part", "same"):
            rows = [row for row in ours if (row["position"] is None) == (paths == "same")]
            fates = {fate: sum(row[fate] for row in rows) for fate in FATES}
            positions = [row["position"] for row in rows for fate in FATES for _ in range(row[fate])]
            median = sorted(positions)[(len(positions) - 1) // 2] if paths == "part" and positions else None
            about = {"first": first, "second": second, "paths": paths, "pairs": sum(fates.values())}
            table.append({**about, "median_position": median, **fates})
    return table


def total_lines(totals: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the cells of `total_table`, the header first."""
    lines = [["text", "likelihood under", "texts", "tokens", "total", "per token", "less the base's"]]
    for row in totals:
        total, less_base = (
            _with_interval(*(row[name] for name in names))
            for names in (("total", "low", "high"), ("less_base", "less_base_low", "less_base_high"))
        )
        counts = [str(row["texts"]), str(row["tokens"])]
        lines.append([row["text"], row["scorer"], *counts, total, f"{row['per_token']:.3f}", less_base])
    return lines


def fate_lines(fates: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the cells of `fate_table`, the header first."""
    lines = [["first", "second", "paths", "pairs", "part at (median)", *FATES]]
    for row in fates:
        median = "-" if row["median_position"] is None else str(row["median_position"])
        counts = [str(row[fate]) for fate in FATES]
        lines.append([row["first"], row["second"], row["paths"], str(row["pairs"]), median, *counts])
    return lines


def _with_interval(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.2f}" if low is None else f"{mean:.2f} ({low:.2f} to {high:.2f})"
