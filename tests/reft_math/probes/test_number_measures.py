"""Sums solved under pushes, and changes measured while problems are solved, on the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.activations import Array, pushing
from interventions.gates import parse_gate
from reft_math.commands.options.evaluation import RunOptions
from reft_math.data.registry import load_problems
from reft_math.errors import UserError
from reft_math.probes.number import fit_probes, unit
from reft_math.probes.number_measures import (
    ActingAdapter,
    Pusher,
    Solver,
    fit_number_directions,
    measure_changes,
    solve_pushed,
)
from reft_math.probes.number_tables import Push
from reft_math.probes.number_texts import draw_sums
from reft_math.scoring.context import EvaluationContext, load_setting

NORMS = np.array([100.0, 200.0, 300.0, 600.0])
SUMS = draw_sums(2, 20, seed=5)
TRUTHS = [item.result for item in SUMS]
PROBLEMS = load_problems("arithmetic", "test", limit=6)


@pytest.fixture(scope="module")
def setting() -> EvaluationContext:
    return load_setting(RunOptions(), "arithmetic")


@pytest.fixture
def weights() -> Array:
    return np.random.default_rng(0).standard_normal((4, 128))


@pytest.fixture
def reft_model(setting: EvaluationContext) -> PrefixReftModel:
    """RED moved a little at random."""
    reft_model = get_prefix_reft_model(setting.model, PrefixReftConfig()).eval()
    torch.manual_seed(0)
    for values in reft_model.biases().values():
        values.data += 0.5 * torch.randn_like(values)
    return reft_model


def solve(
    setting: EvaluationContext, weights: Array, tmp_path: Path, *pushes: Push, batch_size: int = 20
) -> dict[str, list[float | None]]:
    solver = Solver(setting, batch_size)
    pusher = Pusher.draw(weights, NORMS, draws=3, seed=0)
    return solve_pushed(solver, solver.prompts(SUMS, "worked"), pushes, pusher, 5, tmp_path / "pushes.jsonl")


def test_number_directions_are_those_of_a_probe_fitted_text_by_text(setting: EvaluationContext) -> None:
    """Against transformers' own hidden states, read at the last digit of every number of questions and solutions."""
    problems = load_problems("arithmetic", "validation", limit=12)
    found = fit_number_directions(setting.model, setting.decoding, problems, "block", batch_size=5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    tokenizer = setting.decoding.tokenizer
    hidden: list[Array] = []
    values = []
    for problem in problems:
        solution = problem.solution.partition("####")[0]
        messages = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": solution}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition(solution)
        text = text[0] + text[1]
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            states = setting.model(input_ids=encoded["input_ids"], output_hidden_states=True).hidden_states
        ends = encoded["offset_mapping"][0, :, 1].tolist()
        for number in re.finditer(r"\d+", text):
            if 0 < int(number[0]) <= 198:
                token = next(index for index, end in enumerate(ends) if end >= number.end())
                hidden.append(torch.stack([state[0, token] for state in states[1:4]]).double().numpy())
                values.append(int(number[0]))
    assert len(values) > 60
    for layer in range(3):
        rows = np.stack(hidden)[:, layer]
        probe = fit_probes(rows, {"identity": np.array(values, dtype=float)})["identity"]
        assert found[layer] @ unit(probe.weight) > 0.9999


def test_no_probe_is_fitted_on_and_no_sum_read_from_what_is_not_finite(
    setting: EvaluationContext, weights: Array, tmp_path: Path
) -> None:
    """As a push may end, or a base in half precision, of one problem's text alone."""
    with (
        pushing(setting.model, {2: torch.full((1, 1, 128), torch.inf)}),
        pytest.raises(UserError, match=f"hidden states must be finite; those for '{PROBLEMS[0].id}'"),
    ):
        fit_number_directions(setting.model, setting.decoding, PROBLEMS, "block", batch_size=5)
    with pytest.raises(UserError, match="logits must be finite; those for row 0"):
        solve(setting, weights, tmp_path, Push("block 0", (0,), "probe", 1e38))


def test_the_curve_of_a_null_push_is_flat(setting: EvaluationContext, tmp_path: Path) -> None:
    """Along a probe of zero no α does anything; the unpushed model solves these sums."""
    pushes = [Push("all layers", (0, 1, 2, 3), "probe", alpha) for alpha in (-1.0, -0.1, 0.0, 0.1, 1.0)]
    found = solve(setting, np.zeros((4, 128)), tmp_path, *pushes)
    solver = Solver(setting, 20)
    unpushed = solver.solve(solver.prompts(SUMS, "worked"), 5, {})
    assert unpushed == TRUTHS
    assert list(found.values()) == [unpushed] * 5


def test_a_strong_push_breaks_sums_whatever_the_batches(
    setting: EvaluationContext, weights: Array, tmp_path: Path
) -> None:
    push = Push("all layers", (0, 1, 2, 3), "random", 0.4)
    whole = solve(setting, weights, tmp_path / "whole", push)
    parts = solve(setting, weights, tmp_path / "parts", push, batch_size=7)
    assert whole == parts
    assert whole[push.id] != TRUTHS


def test_what_is_recorded_is_not_done_again(
    setting: EvaluationContext, weights: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Push("layer 1", (1,), "probe", 0.2)
    found = solve(setting, weights, tmp_path, push)
    monkeypatch.setattr(Solver, "solve", None)
    assert solve(setting, weights, tmp_path, push) == found


def test_vectors_are_alpha_norms_long_and_dealt_out_to_the_sums(weights: Array) -> None:
    pusher = Pusher.draw(weights, NORMS, draws=3, seed=0)
    vectors = pusher.vectors(Push("", (0, 2), "orthogonal", -0.5), 8)
    assert set(vectors) == {0, 2}
    for layer, vector in vectors.items():
        np.testing.assert_allclose(vector.norm(dim=1), 0.5 * NORMS[layer], rtol=1e-5)
        np.testing.assert_allclose(vector.numpy() @ weights[layer], 0, atol=1e-2)
        assert torch.equal(vector[0], vector[3])
        assert not torch.equal(vector[0], vector[1])
    own = pusher.vectors(Push("", (1,), "probe", 0.5), 2)[1]
    np.testing.assert_allclose(own[0], 100 * unit(weights)[1], rtol=1e-5)
    assert torch.equal(own[0], own[1])


@pytest.mark.parametrize("gate", ["always", "tokens:3", "kl:0", "kl:1,min=1"])
def test_changes_are_of_the_tokens_drawn_with_interventions(
    setting: EvaluationContext, reft_model: PrefixReftModel, weights: Array, tmp_path: Path, gate: str
) -> None:
    source = ActingAdapter("adapter", "adapter", reft_model, str(parse_gate(gate)))
    records = measure_changes(setting.decoding, source, PROBLEMS, weights, tmp_path, batch_size=4)
    for problem, record in zip(PROBLEMS, records, strict=True):
        prompt = setting.decoding.prompts([problem.question])[0][None]
        output = reft_model.generate(
            prompt, attention_mask=torch.ones_like(prompt), gate=gate, **setting.decoding.settings()
        )
        length = output.sequences.shape[1] - prompt.shape[1]
        closing = -1 if gate == "always" else int(output.closing_positions[0])
        expected = length if closing < 0 else closing
        assert record["num_tokens"] == length
        assert len(record["projections"]) == len(record["sizes"]) == expected
        assert (expected == 0) == (gate == "kl:0")
        assert np.abs(record["projections"]).min(initial=1) > 0
        assert all(np.abs(record["projections"]).ravel() <= np.ravel(record["sizes"]) * (1 + 1e-5))


def test_the_first_token_is_drawn_from_the_prompts_end(
    setting: EvaluationContext, reft_model: PrefixReftModel, weights: Array, tmp_path: Path
) -> None:
    source = ActingAdapter("adapter", "adapter", reft_model, "tokens:1")
    record = measure_changes(setting.decoding, source, PROBLEMS[:1], weights, tmp_path, batch_size=1)[0]
    prompt = setting.decoding.prompts([PROBLEMS[0].question])[0][None]
    states: list[torch.Tensor] = []
    handle = setting.model.model.layers[0].register_forward_hook(lambda module, args, output: states.append(output))
    with torch.no_grad():
        reft_model(prompt)
        setting.model(prompt)
    handle.remove()
    change = (states[0] - states[1])[0, -1].double().numpy()  # the first layer has the same input in both runs
    np.testing.assert_allclose(record["projections"][0][0], change @ unit(weights)[0], rtol=1e-3)
    np.testing.assert_allclose(record["sizes"][0][0], np.linalg.norm(change), rtol=1e-3)


def test_untouched_interventions_have_projections_of_zero(
    setting: EvaluationContext, weights: Array, tmp_path: Path
) -> None:
    source = ActingAdapter("zero", "zero", get_prefix_reft_model(setting.model, PrefixReftConfig()).eval(), "always")
    for record in measure_changes(setting.decoding, source, PROBLEMS, weights, tmp_path, batch_size=3):
        assert len(record["projections"]) == record["num_tokens"] > 0
        assert not np.any(record["projections"])
        assert not np.any(record["sizes"])
