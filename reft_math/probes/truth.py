"""Truth probes on a model: fits them on the base's hidden states and reads them under an adapter's interventions.

Everything is recorded when it is measured, and a stopped run resumes from its records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from interventions.activations import Array, check_states, pad_right, read_states
from interventions.gates import Gate, KLGate, kl_divergence, parse_gate
from interventions.hooked import HookedReftModel
from interventions.pairs import Handoff
from interventions.positions import intervention_mask
from interventions.sites import num_layers
from reft_math.commands.progress import progress
from reft_math.commands.resumable import Record, record_rows
from reft_math.decoding.teacher_forcing import closing
from reft_math.probes.faithfulness import fit_truth_probe, part_names
from reft_math.probes.files import load_probes, save_probes
from reft_math.probes.number import Probe
from reft_math.probes.number_measures import ActingAdapter
from reft_math.probes.statements import StatementPair, StatementText

_TARGET = "truth"


@dataclass(frozen=True)
class Layer:
    """A layer's name in records and files."""

    number: int

    @property
    def id(self) -> str:
        return f"layer-{self.number}"

    def path(self, folder: Path) -> Path:
        """Returns the file of its probes."""
        return folder / "probes" / f"{self.id}.safetensors"


def fit_layers(
    model: PreTrainedModel, pairs: Sequence[StatementPair], folder: Path, batch_size: int
) -> list[list[Probe]]:
    """Fits probes of every layer's residual stream and heads on the base's hidden states.

    Args:
        model: The base.
        pairs: Pairs to fit on.
        folder: Folder for ``probes/`` and ``records/probes.jsonl``.
        batch_size: Texts per batch.

    Returns:
        Probes by layer, in the order of `part_names`.
    """
    rows = [text.token_ids for pair in pairs for text in pair.texts]
    is_true = np.tile([True, False], len(pairs))
    questions = np.repeat([pair.problem for pair in pairs], 2)

    @cache
    def states() -> tuple[Array, Array]:
        starts = progress(range(0, len(rows), batch_size), name="reading", unit="batch")
        read = [read_states(model, rows[start : start + batch_size]) for start in starts]
        stream, heads = zip(*read, strict=True)
        for part in (found := (np.concatenate(stream), np.concatenate(heads))):
            check_states(part, questions.tolist())
        return found

    def work(_: Any, missing: Sequence[Layer]) -> list[Record]:
        return [fit(layer) for layer in missing]

    def fit(layer: Layer) -> Record:
        """Fits probes and writes them to their file before the record that says they exist."""
        parts = _parts(*states(), layer.number)
        probes = [fit_truth_probe(hidden, is_true, questions) for hidden in parts]
        names = part_names(len(parts) - 1)
        save_probes(layer.path(folder), {(name, _TARGET): probe for name, probe in zip(names, probes, strict=True)})
        penalties = {name: probe.penalty for name, probe in zip(names, probes, strict=True)}
        return {"layer": layer.number, "pairs": len(pairs), "penalties": penalties}

    layers = [Layer(number) for number in range(num_layers(model))]
    found = record_rows(layers, lambda _: 0, work, folder / "records" / "probes.jsonl", "probes", 1)
    return [
        [load_probes(layer.path(folder))[name, _TARGET] for name in record["penalties"]]
        for layer, record in zip(layers, found, strict=True)
    ]


def score_pairs(
    model: PreTrainedModel,
    source: ActingAdapter | None,
    handoff: Handoff,
    pairs: Sequence[StatementPair],
    probes: Sequence[Sequence[Probe]],
    path: Path,
    name: str,
    batch_size: int,
) -> list[Record]:
    """Scores true and false texts by probes of the hidden states of a source's decoder after it has written them.

    Args:
        model: The base.
        source: The adapter and its gate; None for the base alone.
        handoff: Cache to continue from after the gate.
        pairs: Pairs to score.
        probes: The base's probes, by layer, in the order of `part_names`.
        path: File of the records.
        name: Text of the progress bar.
        batch_size: Texts per batch.

    Returns:
        For each pair ``problem``, ``position``, ``open`` (whether the gate is open after the true text and after the
        false one) and ``true`` and ``false``, log-odds ``(layer, part)``.
    """

    def work(batch: Sequence[StatementPair], missing: Sequence[StatementPair]) -> list[Record]:
        # Always the whole batch: with other rows beside it, the last digit of a state might be another.
        texts = [text for pair in batch for text in pair.texts]
        is_open, acts = [False] * len(texts), None
        if source is not None:
            acts, is_open = where_acting(source.reft_model, parse_gate(source.gate), handoff, texts)
        rows = [text.token_ids for text in texts]
        stream, heads = read_states(model, rows, None if source is None else source.reft_model, acts)
        for part in (stream, heads):
            check_states(part, [pair.problem for pair in batch for _ in pair.texts])
        odds = np.stack(
            [
                np.stack([probe.read(part) for probe, part in zip(row, _parts(stream, heads, layer), strict=True)], 1)
                for layer, row in enumerate(probes)
            ],
            axis=1,
        )
        found = {
            pair.id: {
                "problem": pair.problem,
                "position": pair.position,
                "open": is_open[2 * index : 2 * index + 2],
                "true": _rounded(odds[2 * index]),
                "false": _rounded(odds[2 * index + 1]),
            }
            for index, pair in enumerate(batch)
        }
        return [found[pair.id] for pair in missing]

    return record_rows(pairs, lambda pair: len(pair.true), work, path, name, max(1, batch_size // 2))


def _parts(stream: Array, heads: Array, layer: int) -> list[Array]:
    """Returns a layer's hidden states, ``(text, width)`` each, in the order of `part_names`."""
    return [stream[:, layer], *heads[:, layer].swapaxes(0, 1)]


def _rounded(rows: Array) -> list[list[float]]:
    """Rounds to six digits, which float32 has."""
    return [[float(f"{value:.6g}") for value in row] for row in rows.tolist()]


@torch.no_grad()
def where_acting(
    reft_model: HookedReftModel, gate: Gate, handoff: Handoff, texts: Sequence[StatementText]
) -> tuple[torch.Tensor, list[bool]]:
    """Returns where interventions have acted on the states that decoding under a gate reads after writing a text.

    The gate's rule runs along the text, whoever wrote it, up to the next token: with ``C_t`` of this text the gate is
    open for that token, or has closed at it or before. While it is open the interventions act at the adapter's
    positions. Once it is closed, with ``handoff="base"`` they act nowhere: the base has read prompt and text itself.
    With ``"keep"`` they have acted on the tokens read until the gate closed, but not on the base, which draws the token
    at which a divergence closes it.

    Args:
        reft_model: The base with interventions.
        gate: A gate that draws the first tokens from the intervened model.
        handoff: Cache to continue from after the gate.
        texts: A batch of texts.

    Returns:
        Boolean ``(text, position)``, and for each text whether the gate is open for the next token.
    """
    gate = gate.on(reft_model.model.dtype)
    inputs = _inputs(texts, reft_model.model.device)
    columns = torch.arange(inputs.shape[1], device=inputs.device)
    starts = torch.tensor([len(text.prompt) for text in texts], device=inputs.device)
    answer_columns = columns[None] - starts[:, None]
    acts = intervention_mask(answer_columns >= 0, reft_model.positions)
    divergences = (
        _divergences(reft_model, gate, inputs, acts, texts)
        if isinstance(gate, KLGate)
        else [torch.zeros(len(text.answer) + 1) for text in texts]  # other gates do not need it
    )
    is_open = []
    for row, (text, kl) in enumerate(zip(texts, divergences, strict=True)):
        position, steps = closing(gate, kl)
        is_open.append(position is None)
        if position is None:
            continue
        if handoff == "base" or steps in (0, len(text.answer) + 1):
            acts[row] = False
        else:
            acts[row] &= answer_columns[row] < steps - 1  # the prompt is read at step 0, token j at step j + 1
    return acts, is_open


def _divergences(
    reft_model: HookedReftModel, gate: KLGate, inputs: torch.Tensor, acts: torch.Tensor, texts: Sequence[StatementText]
) -> list[torch.Tensor]:
    """Returns ``D_0..D_n`` along each text of n tokens, ``(n + 1,)``."""
    first = min(len(text.prompt) for text in texts) - 1
    logits = []
    for mask in (acts, torch.zeros_like(acts)):
        with reft_model.intervening(mask):
            logits.append(reft_model.model(inputs, use_cache=False, logits_to_keep=inputs.shape[1] - first).logits)
    found = []
    for row, text in enumerate(texts):
        start = len(text.prompt) - 1 - first
        mod, base = (each[row, start : start + len(text.answer) + 1] for each in logits)
        found.append(kl_divergence(mod, base, gate.direction).cpu())
    return found


def _inputs(texts: Sequence[StatementText], device: torch.device) -> torch.Tensor:
    return pad_right([text.token_ids for text in texts], device)
