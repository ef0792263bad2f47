from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.gates import parse_gate
from interventions.generation import Handoff
from interventions.positions import Positions, intervention_mask
from reft_math.decoding.teacher_forcing import ForcedText, closing
from reft_math.probes.trajectory import (
    FATES,
    fate_lines,
    fate_table,
    log_likelihoods,
    mean_intervals,
    parting,
    parting_table,
    position_table,
    score_texts,
    total_lines,
    total_table,
)

TEXTS = [
    ForcedText("a", torch.tensor([1, 9, 8, 7]), [4, 5, 6, 33, 41, 5, 2]),
    ForcedText("b", torch.tensor([1, 5]), [11, 2]),
    ForcedText("c", torch.tensor([1, 11, 12, 13, 14, 15]), [21, 22, 23, 24, 25, 26, 27, 28, 29, 30]),
    ForcedText("d", torch.tensor([1]), [7]),
]


def with_red(model: PreTrainedModel, strength: float, positions: Positions = "all") -> PrefixReftModel:
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(positions=positions)).eval()
    torch.manual_seed(1)
    for parameter in reft_model.parameters():
        if parameter.requires_grad:
            parameter.data += strength * torch.randn_like(parameter)
    return reft_model


def alone(model: Any, text: ForcedText, **kwargs: Any) -> list[float]:
    """The likelihood of one text, no padding, in the model's float64."""
    token_ids = torch.tensor([[*text.prompt.tolist(), *text.token_ids]])
    logits = model(input_ids=token_ids, **kwargs).logits[0, len(text.prompt) - 1 : -1].detach()
    return [float(row.log_softmax(0)[token]) for row, token in zip(logits, text.token_ids, strict=True)]


class Forcing(LogitsProcessor):  # type: ignore[misc]
    """Leaves one choice: the next token of a text."""

    def __init__(self, text: ForcedText) -> None:
        self.text = text

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.text.token_ids[input_ids.shape[1] - len(self.text.prompt)]] = 0
        return forced


def decoded(
    reft_model: PrefixReftModel, text: ForcedText, gate: str, handoff: Handoff
) -> tuple[list[float], int | None]:
    """The likelihood of a text that gated decoding is made to draw, step by step, and where its gate closed."""
    output = reft_model.generate(
        text.prompt[None],
        gate=gate,
        handoff=handoff,
        max_new_tokens=len(text.token_ids),
        eos_token_id=None,
        logits_processor=LogitsProcessorList([Forcing(text)]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0, len(text.prompt) :].tolist() == list(text.token_ids)
    chosen = zip(output.logits, text.token_ids, strict=True)
    position = int(output.closing_positions[0]) if hasattr(output, "closing_positions") else None
    return [float(row[0].double().log_softmax(0)[token]) for row, token in chosen], None if position == -1 else position


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_base_and_always_on_are_forward_passes_of_one_text(
    tiny_model: Callable[..., PreTrainedModel], family: str, positions: Positions
) -> None:
    model = tiny_model(family).double()
    reft_model = with_red(model, 1.5, positions)
    found = log_likelihoods(model, reft_model, parse_gate("tokens:3"), "base", TEXTS, 0)
    for text, record in zip(TEXTS, found, strict=True):
        place = torch.arange(len(text.prompt) + len(text.token_ids))[None] - len(text.prompt)
        mask = intervention_mask(place, positions)
        assert record["base"] == pytest.approx(alone(model, text), rel=1e-5, abs=1e-9)
        assert record["always_on"] == pytest.approx(alone(reft_model, text, intervention_mask=mask), rel=1e-5, abs=1e-9)
        assert record["base"] != pytest.approx(record["always_on"], rel=1e-2) or len(text.prompt) == len(mask[0]) - 1


@pytest.mark.parametrize("handoff", ["base", "keep"])
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
@pytest.mark.parametrize(
    "gate", ["off", "always", "tokens:1", "tokens:3", "kl:0", "kl:2", "kl:2,min=4", "kl:2,base||mod", "kl:9,max=4"]
)
def test_prefix_is_what_gated_decoding_draws_with(
    tiny_model: Callable[..., PreTrainedModel], gate: str, positions: Positions, handoff: Handoff
) -> None:
    """Texts that nobody would draw: the loop that decodes is made to, and says with which probability."""
    model = tiny_model().double()
    reft_model = with_red(model, 1.5, positions)
    found = log_likelihoods(model, reft_model, parse_gate(gate), handoff, TEXTS, 0)
    for text, record in zip(TEXTS, found, strict=True):
        expected, position = decoded(reft_model, text, gate, handoff)
        assert record["prefix"] == pytest.approx(expected, abs=1e-5)
        assert record["closing_position"] == (0 if gate == "off" else position)


def test_gates_close_on_different_texts_at_different_places(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """What the last test compares is not all open or all closed."""
    model = tiny_model().double()
    found = log_likelihoods(model, with_red(model, 1.5), parse_gate("kl:2"), "base", TEXTS, 0)
    assert len({record["closing_position"] for record in found}) >= 3


def test_interventions_that_change_nothing_score_alike(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    for record in log_likelihoods(model, with_red(model, 0.0), parse_gate("kl:1"), "keep", TEXTS, 0):
        assert record["always_on"] == record["base"]
        assert record["prefix"] == record["base"]
        assert record["closing_position"] is None


def test_a_gate_closes_before_a_count_and_after_a_divergence() -> None:
    kl = torch.tensor([0.5, 0.25, 0.5, 2.0])
    assert closing(parse_gate("off"), kl) == (0, 0)
    assert closing(parse_gate("tokens:2"), kl) == (2, 2)
    assert closing(parse_gate("tokens:4"), kl) == (None, 4)
    assert closing(parse_gate("kl:0.75"), kl) == (2, 3)
    assert closing(parse_gate("kl:0.25"), kl) == (0, 1)
    assert closing(parse_gate("kl:0.25,min=3"), kl) == (3, 4)
    assert closing(parse_gate("kl:0.25,band=0.25"), kl) == (2, 3)
    assert closing(parse_gate("kl:9,max=1"), kl) == (1, 1)
    assert closing(parse_gate("always"), kl) == (None, 4)


def test_a_stopped_run_ends_with_the_same_likelihoods_to_the_last_digit(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model()
    settings = (model, with_red(model, 1.5), parse_gate("kl:1"), "base", 0, tmp_path / "texts.jsonl", "texts")
    records = score_texts(TEXTS, *settings, 3)
    assert [record["id"] for record in records] == [text.id for text in TEXTS]
    whole = (tmp_path / "texts.jsonl").read_bytes()
    (tmp_path / "texts.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert score_texts(TEXTS, *settings, 3) == records
    assert (tmp_path / "texts.jsonl").read_bytes() == whole


def test_intervals_hold_the_mean_and_stay_among_the_values() -> None:
    values = np.array([[0.0, 1.0, 5.0], [-4.0, 1.0, np.nan], [-1.0, np.nan, np.nan]])
    (mean, low, high), constant, single = mean_intervals(values)
    assert mean == pytest.approx(-5 / 3)
    assert low is not None
    assert high is not None
    assert -4 <= low < mean < high <= 0
    assert constant == (1.0, 1.0, 1.0)
    assert single == (5.0, None, None)


def test_intervals_are_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(size=(400, 1))
    ((mean, low, high),) = mean_intervals(values)
    assert low is not None
    assert high is not None
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert mean == pytest.approx(values.mean())


def scored(**likelihoods: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"id": str(index), **dict(zip(likelihoods, rows, strict=True))}
        for index, rows in enumerate(zip(*likelihoods.values(), strict=True))
    ]


def test_tables_of_likelihood_by_hand() -> None:
    records = scored(base=[[-1.0, -2.0], [-3.0]], always_on=[[-1.0, -1.0], [-1.0]], prefix=[[-0.5, -2.0], [-3.5]])
    table = position_table({"reference": records})
    assert [(row["scorer"], row["position"], row["rows"], row["mean"]) for row in table] == [
        ("base", 0, 2, -2.0),
        ("base", 1, 1, -2.0),
        ("always_on", 0, 2, -1.0),
        ("always_on", 1, 1, -1.0),
        ("prefix", 0, 2, -2.0),
        ("prefix", 1, 1, -2.0),
    ]
    assert (table[0]["low"], table[0]["high"]) == (-3.0, -1.0)
    assert table[1]["low"] is None
    base, always_on, prefix = total_table({"reference": records})
    assert (base["texts"], base["tokens"], base["total"], base["per_token"]) == (2, 3, -3.0, -2.0)
    assert (base["less_base"], base["less_base_low"], base["less_base_high"]) == (0.0, 0.0, 0.0)
    assert (always_on["total"], always_on["less_base"]) == (-1.5, 1.5)
    assert (prefix["total"], prefix["less_base"], prefix["less_base_low"]) == (-3.0, 0.0, -0.5)
    header, line, *_ = total_lines([base])
    assert len(header) == len(line)
    assert line == ["reference", "base", "2", "3", "-3.00 (-3.00 to -3.00)", "-2.000", "0.00 (0.00 to 0.00)"]


def test_paths_part_at_the_first_token_that_differs() -> None:
    assert parting([3, 4, 5], [3, 4, 5]) is None
    assert parting([3, 4, 5], [3, 9, 5]) == 1
    assert parting([3, 4], [3, 4, 5]) == 2
    assert parting([], [3]) == 0


def test_partings_and_fates_by_hand() -> None:
    def answers(*rows: tuple[list[int], bool]) -> list[dict[str, Any]]:
        return [{"token_ids": token_ids, "correct": correct} for token_ids, correct in rows]

    found = {
        "base": answers(([3, 4], True), ([3, 4], False), ([3, 4], True), ([3, 4], False)),
        "prefix": answers(([3, 4], True), ([3, 5], True), ([6, 4], False), ([3, 9], False)),
    }
    table = parting_table(found)
    none = dict.fromkeys(FATES, 0)
    pair = {"first": "base", "second": "prefix"}
    assert table == [
        {**pair, "position": 0, **none, "right/wrong": 1},
        {**pair, "position": 1, **none, "wrong/right": 1, "wrong/wrong": 1},
        {**pair, "position": None, **none, "right/right": 1},
    ]
    part, same = fate_table(table)
    assert part == {
        **pair, "paths": "part", "pairs": 3, "median_position": 1,
        **none, "right/wrong": 1, "wrong/right": 1, "wrong/wrong": 1,
    }  # fmt: skip
    assert same == {**pair, "paths": "same", "pairs": 1, "median_position": None, **none, "right/right": 1}
    assert fate_lines([part, same])[1:] == [
        ["base", "prefix", "part", "3", "1", "0", "1", "1", "1"],
        ["base", "prefix", "same", "1", "-", "1", "0", "0", "0"],
    ]
