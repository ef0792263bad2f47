"""Makes table rows from records: probes, pushes, breaking points, changes. A row is a dictionary, as in a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interventions.activations import Array
from reft_math.probes.number import Direction, breaking_interval, breaking_point, is_beyond, ratio_interval
from reft_math.scoring.statistics import wilson_interval

TableRow = dict[str, Any]
Answer = float | None

_BINS = 60
_QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}


@dataclass(frozen=True)
class Push:
    """A push ``h ← h + α · n_l · u_l`` at some layers.

    Attributes:
        where: Name of the layers.
        layers: Numbers of the layers.
        direction: Kind of ``u_l``.
        alpha: ``α``, in units of the layer's mean residual norm ``n_l``; with its sign.
    """

    where: str
    layers: tuple[int, ...]
    direction: Direction
    alpha: float

    @property
    def id(self) -> str:
        return f"{self.where}/{self.direction}/{self.alpha:+}" if self.alpha else "unpushed"


def form_row(form: str, answers: Sequence[Answer], truths: Sequence[int]) -> TableRow:
    """Counts the right sums in a prompt form."""
    correct = sum(answer == truth for answer, truth in zip(answers, truths, strict=True))
    low, high = wilson_interval(correct, len(truths))
    return {
        "form": form,
        "sums": len(truths),
        "correct": correct,
        "accuracy": correct / len(truths),
        "low": low,
        "high": high,
    }


def push_row(
    push: Push, answers: Sequence[Answer], truths: Sequence[int], draws: int, norms: Array, shift: float
) -> TableRow:
    """Counts wrong sums under a push: above, below, or no number at all.

    Args:
        push: The push.
        answers, truths: ``(sum,)``; None for an answer without a number.
        draws: Number of directions; sum i uses draw ``i mod draws``.
        norms: ``n: (layer,)`` of all layers.
        shift: ``Σ_l n_l w_lᵀu_l`` over the pushed layers, the probes' change of reading per unit of α.
    """
    is_wrong = wrong_sums(answers, truths)
    signs = [np.sign(answer - truth) for answer, truth in zip(answers, truths, strict=True) if answer is not None]
    low, high = wilson_interval(int(is_wrong.sum()), len(truths))
    by_draw = [float(is_wrong[draw::draws].mean()) for draw in range(draws)]
    return {
        "where": push.where,
        "direction": push.direction,
        "alpha": push.alpha,
        "alpha_raw": push.alpha * float(norms[list(push.layers)].mean()),
        "reading_shift": push.alpha * shift,
        "sums": len(truths),
        "wrong": int(is_wrong.sum()),
        "above": signs.count(1),
        "below": signs.count(-1),
        "no_number": len(truths) - len(signs),
        "error_rate": float(is_wrong.mean()),
        "low": low,
        "high": high,
        "draws": draws,
        "lowest_draw": min(by_draw),
        "highest_draw": max(by_draw),
    }


def wrong_sums(answers: Sequence[Answer], truths: Sequence[int]) -> Array:
    """Returns a mask that is true for answers other than the sum."""
    return np.array([answer != truth for answer, truth in zip(answers, truths, strict=True)])


def threshold_rows(pushes: Sequence[Push], wrong: Mapping[str, Array], norms: Array) -> list[TableRow]:
    """Returns breaking points of every curve, for both signs.

    Args:
        pushes: Pushes, without the unpushed one.
        wrong: Wrong sums, ``(sum,)``, by the push's id, including ``unpushed``.
        norms: ``(layer,)``.
    """
    rows = []
    unpushed = wrong["unpushed"]
    for where, direction in dict.fromkeys((push.where, push.direction) for push in pushes):
        curve = [push for push in pushes if (push.where, push.direction) == (where, direction)]
        norm = float(norms[list(curve[0].layers)].mean())
        for sign, name in ((-1, "-"), (1, "+")):
            branch = sorted((push for push in curve if push.alpha * sign > 0), key=lambda push: abs(push.alpha))
            alphas = np.array([abs(push.alpha) for push in branch])
            is_wrong = np.stack([wrong[push.id] for push in branch])
            point = breaking_point(alphas, is_wrong.sum(axis=1), int(unpushed.sum()), len(unpushed))
            low, high = breaking_interval(alphas, is_wrong, unpushed)
            row = {"where": where, "direction": direction, "sign": name, "threshold": point, "low": low, "high": high}
            rows.append({**row, "threshold_raw": None if point is None else point * norm, "largest": alphas.max()})
    return rows


@dataclass(frozen=True)
class Changes:
    """An adapter's changes while it drew tokens, at every layer.

    Attributes:
        projections: ``u_lᵀΔ_l / n_l``, an array ``(token, layer)`` per solution, for tokens drawn with interventions.
        sizes: ``‖Δ_l‖ / n_l``, in the same form.
        lengths: Number of tokens of each solution, with those drawn without interventions.
    """

    projections: list[Array]
    sizes: list[Array]
    lengths: list[int]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], norms: Array) -> Changes:
        """Scales records with ``projections`` and ``sizes`` in the model's own units."""

        def scaled(name: str) -> list[Array]:
            return [np.asarray(record[name], dtype=np.float64).reshape(-1, len(norms)) / norms for record in records]

        return cls(scaled("projections"), scaled("sizes"), [record["num_tokens"] for record in records])


def share_rows(source: str, changes: Changes, negative: float | None, positive: float | None) -> list[TableRow]:
    """Returns the share of changes beyond the breaking point of their sign, by layer and over all layers.

    Args:
        source: The adapter's name.
        changes: Its changes.
        negative, positive: Breaking points as ``|α|``.

    Returns:
        ``beyond``, their number, ``share`` among the changes of tokens drawn with interventions and ``share_of_all``
        among those of all tokens: None if sums break on neither side. ``low`` and ``high``, the share's interval
        over resampled solutions: None for a share of 0. ``size``, the mean of ``‖Δ‖/n``, and ``along``, the part of
        ``Σ‖Δ‖²`` along the probe, which is 1/width for random directions.
    """
    beyond = np.stack([is_beyond(rows, negative, positive).sum(axis=0) for rows in changes.projections])
    tokens = np.array([len(rows) for rows in changes.projections])
    projections, sizes = np.concatenate(changes.projections), np.concatenate(changes.sizes)
    breaks = negative is not None or positive is not None
    num_layers = beyond.shape[1]
    rows = []
    for layer, members in [*((str(layer), [layer]) for layer in range(num_layers)), ("all", list(range(num_layers)))]:
        counts, wholes = beyond[:, members].sum(axis=1), tokens * len(members)
        # A bootstrap of zeros has no width, although the share is not known exactly.
        low, high = ratio_interval(counts[tokens > 0], wholes[tokens > 0]) if counts.any() else (None, None)
        squared = (sizes[:, members] ** 2).sum()
        rows.append(
            {
                "source": source,
                "layer": layer,
                "solutions": len(tokens),
                "changes": int(wholes.sum()),
                "beyond": int(counts.sum()) if breaks else None,
                "share": counts.sum() / wholes.sum() if breaks and wholes.any() else None,
                "low": low,
                "high": high,
                "share_of_all": counts.sum() / (sum(changes.lengths) * len(members)) if breaks else None,
                "size": sizes[:, members].mean() if len(sizes) else None,
                "along": (projections[:, members] ** 2).sum() / squared if squared else None,
            }
        )
    return rows


def histogram_rows(changes: Mapping[str, Changes]) -> Iterator[TableRow]:
    """Yields counts of projections by layer in bins that all sources share."""
    reach = max((np.abs(rows).max() for item in changes.values() for rows in item.projections if len(rows)), default=0)
    edges = np.linspace(-reach, reach, _BINS + 1) if reach else np.array([-0.5, 0.5]) / _BINS
    for source, item in changes.items():
        projections = np.concatenate(item.projections)
        for layer, column in enumerate(projections.T):
            counts, _ = np.histogram(column, edges)
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                yield {"source": source, "layer": layer, "from": low, "to": high, "changes": int(count)}


def position_rows(source: str, changes: Changes, slopes: Array) -> list[TableRow]:
    """Returns ``Σ_l u_lᵀΔ_l / n_l`` by position in the solution; 0 where the base draws.

    Args:
        source: The adapter's name.
        changes: Its changes.
        slopes: ``n_l ‖w_l‖: (layer,)``, the reading's change per unit of α at each layer, for ``reading_shift``.
    """
    longest = max(changes.lengths)
    sums, shifts = np.full((2, len(changes.lengths), longest), np.nan)
    for index, (rows, length) in enumerate(zip(changes.projections, changes.lengths, strict=True)):
        for table, values in ((sums, rows.sum(axis=1)), (shifts, rows @ slopes)):
            table[index, :length] = 0
            table[index, : len(values)] = values
    found = []
    for position in range(longest):
        there = ~np.isnan(sums[:, position])
        values = sums[there, position]
        quantiles = dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())), strict=True))
        row = {"source": source, "position": position, "solutions": int(there.sum()), "mean": values.mean()}
        found.append({**row, **quantiles, "reading_shift": shifts[there, position].mean()})
    return found
