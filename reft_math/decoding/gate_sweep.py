"""Completions under KL gates that differ in their threshold alone, each token drawn once.

Until its gate closes a row has the same tokens under every threshold, and what the base writes after that depends on
these tokens only. So the widest gate is decoded once; for a smaller threshold the row is cut where ``C_t`` first
exceeds it, and the base goes on from there, unless its completion of a shorter cut leads through this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from interventions.gates import KLGate, parse_gate
from reft_math.decoding.completions import (
    Complete,
    CompletionSettings,
    Generate,
    complete,
    continue_locally,
    gate_record,
    generate_rows,
)


@dataclass
class _Row:
    """A question's decoding under the widest gate.

    Attributes:
        tokens: All tokens of the completion.
        kl: ``D_t`` in nats while the gate was open.
        closing: Where the widest gate closed; None if it did not.
        completions: Tokens of whole completions, by where the interventions ended; None for never.
    """

    tokens: list[int]
    kl: list[float]
    closing: int | None
    completions: dict[int | None, list[int]] = field(default_factory=dict)


class GateSweep:
    """Completes greedily under gates, from the base's cache after each closing (``handoff="base"``).

    Args:
        generate: The model's ``generate``; takes ``gate``.
        base: The base's ``generate``.
        decoding, device: As in `complete`.
        gates: Gates as text. Those that are not KL gates like the widest but for the threshold are decoded by
            themselves.
    """

    def __init__(
        self,
        generate: Generate,
        base: Generate,
        decoding: CompletionSettings,
        device: torch.device,
        gates: Sequence[str],
    ) -> None:
        self.generate, self.base, self.decoding, self.device = generate, base, decoding, device
        parsed = [gate for gate in map(parse_gate, gates) if isinstance(gate, KLGate) and gate.max_tokens is None]
        self.widest = max(parsed, key=lambda gate: gate.threshold, default=None)
        self.dead_band = 0.0
        self._rows: dict[str, _Row] = {}

    def completer(self, text: str) -> Complete:
        """Returns a function that completes questions under a gate, with `complete`'s results."""
        gate, widest = parse_gate(text), self.widest
        if isinstance(gate, KLGate) and widest is not None:
            has_band = gate.threshold > 0  # a threshold of 0 has none, unlike the others
            if has_band and replace(gate, threshold=widest.threshold) == widest:
                return partial(self._complete, gate)
        generate = partial(self.generate, gate=text)
        return partial(complete, generate=generate, decoding=self.decoding, device=self.device)

    def _complete(self, gate: KLGate, questions: Sequence[str], seed: int | None) -> list[dict[str, Any]]:
        self._decode_widest([question for question in questions if question not in self._rows])
        cuts = {question: self._closing(gate, self._rows[question]) for question in questions}
        self._go_on({question: cut for question, cut in cuts.items() if cut is not None})
        records = []
        for question in questions:
            row, cut = self._rows[question], cuts[question]
            measured = row.kl if cut is None else row.kl[: cut + 1]
            completion = self.decoding.read(row.completions[cut])
            records.append({**completion, **gate_record(measured, self.dead_band, cut)})
        return records

    def _decode_widest(self, questions: list[str]) -> None:
        if not questions:
            return
        generate = partial(self.generate, gate=str(self.widest))
        output, width = generate_rows(questions, None, generate, self.decoding, self.device)
        self.dead_band = output.dead_band or 0.0
        for index, question in enumerate(questions):
            closing = int(output.closing_positions[index])
            tokens = output.sequences[index, width:].tolist()
            kl = [] if output.kl is None else output.kl[index][~output.kl[index].isnan()].tolist()
            row = _Row(tokens, kl, None if closing < 0 else closing)
            row.completions[row.closing] = tokens
            self._rows[question] = row

    def _closing(self, gate: KLGate, row: _Row) -> int | None:
        """Returns the first token that the base draws under a gate; None if the row ends before."""
        counted = gate.counted if gate.dead_band is not None else replace(gate, dead_band=self.dead_band).counted
        sums = counted(torch.tensor(row.kl)).cumsum(dim=0)
        stays_open = (gate.stays_open(step, total) for step, total in enumerate(sums))
        return next((step for step, is_open in enumerate(stays_open) if not is_open), None)

    def _go_on(self, cuts: dict[str, int]) -> None:
        """Completes what was drawn before each cut, where no completion is known to lead through it."""
        unknown = []
        for question, cut in cuts.items():
            row = self._rows[question]
            if cut in row.completions:
                continue
            known = (whole for end, whole in row.completions.items() if end is not None and end <= cut)
            through = next((whole for whole in known if whole[:cut] == row.tokens[:cut]), None)
            if through is None:
                unknown.append(question)
            else:
                row.completions[cut] = through
        if unknown:
            prompts = [prompt.tolist() for prompt in self.decoding.prompts(unknown)]
            prefixes = [self._rows[question].tokens[: cuts[question]] for question in unknown]
            found = continue_locally(prompts, prefixes, self.base, self.decoding, self.device, unknown)
            for question, tokens in zip(unknown, found, strict=True):
                self._rows[question].completions[cuts[question]] = tokens
