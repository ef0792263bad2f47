"""Sizes of edits beside the activations, against float64 formulas on the model's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.activations import project_changes, read_activations
from reft_math.commands.options.prefix import PrefixReftOptions
from reft_math.data.arithmetic.pretraining import rescale_up_projections
from reft_math.models import load_model
from reft_math.training import prefix_training
from reft_math.training.relative_size import relative_size, size_line

TEXTS = [[5, 9, 33, 41, 17], [7, 21, 3]]  # an even number of tokens: the median lies between two


@pytest.mark.parametrize(("intervention", "site"), [("red", "ffn_up"), ("bias", "block"), ("loreft", "block")])
def test_sizes_are_the_formulas(tiny_model: Callable[..., PreTrainedModel], intervention: str, site: str) -> None:
    model = tiny_model()
    reft_model = get_prefix_reft_model(
        model,
        PrefixReftConfig(intervention=intervention, site=site, layers="0,2"),  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    found = relative_size(reft_model, TEXTS)
    read = torch.from_numpy(read_activations(model, [(text, list(range(len(text)))) for text in TEXTS], site)).double()
    assert found["tokens"] == len(read) == 8
    totals = []
    for (layer, module), sizes in zip(reft_model.by_layer(), found["layers"], strict=True):
        hidden = read[:, layer]
        edit = module.double()(hidden) - hidden
        norms = [median_norm(hidden), module.bias.norm(), median_norm(edit)]
        if intervention == "red":
            norms.append(median_norm((module.scale - 1) * hidden))
        totals.append(torch.stack(norms).detach())
        assert sizes["layer"] == layer
        assert_shares(sizes, totals[-1])
    assert_shares(found["mean"], (totals[0] + totals[1]) / 2)
    assert (found["mean"]["scale"] is None) == (intervention != "red")
    assert ("scale" in size_line(site, found["mean"])) == (intervention == "red")


def median_norm(rows: torch.Tensor) -> torch.Tensor:
    """Returns the median of ``‖row‖`` by sorting."""
    norms = rows.norm(dim=-1).sort().values
    return (norms[(len(norms) - 1) // 2] + norms[len(norms) // 2]) / 2


def assert_shares(sizes: dict[str, float | None], norms: torch.Tensor) -> None:
    names = ("bias", "edit", "scale")[: len(norms) - 1]
    assert sizes["activation"] == pytest.approx(norms[0].item(), rel=1e-5)
    assert [sizes[name] for name in names] == pytest.approx((norms[1:] / norms[0]).tolist(), rel=1e-5)


def test_an_attention_sink_does_not_count(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """One token with a huge norm, as language models have at `block`, leaves the others' size as it is."""
    model = tiny_model()
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(intervention="bias", site="block", layers="0"))
    usual = relative_size(reft_model, [[7, 21, 3, 9, 12]])["mean"]["activation"]
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[5].mul_(1e4 * usual / embedding[5].norm())
    with_sink = relative_size(reft_model, [[5], [7, 21, 3, 9, 12]])["mean"]["activation"]
    assert usual < with_sink < 2 * usual


@pytest.mark.parametrize("intervention", ["red", "loreft"])
def test_under_a_relative_target_a_rescaled_base_trains_to_the_same_edit(
    tiny_base: str, tmp_path: Path, intervention: str
) -> None:
    """``(c·W_up, W_down/c)`` for powers of two: b comes out c times as large, all else the same to the last bit."""
    ends = {}
    for factor in (1, 1 / 64, 64):
        base = load_model(tiny_base)
        rescale_up_projections(base, factor)
        options = PrefixReftOptions(
            model=tiny_base,
            intervention=intervention,  # type: ignore[arg-type]
            site="ffn_up",
            relative_target_norm=0.1,
            train_size=64,
            epochs=2,
            learning_rate=1e-2,
            output_dir=str(tmp_path / str(factor)),
        )
        prefix = prefix_training.prepare(options, base)
        prefix_training.train(prefix)
        prompts = torch.tensor([prefix.dataset.rows[0]["prompt_ids"]])
        directions = torch.nn.functional.normalize(torch.ones(base.config.num_hidden_layers, base.config.hidden_size))
        ends[factor] = {
            "biases": torch.stack(list(prefix.model.biases().values())) / factor,
            "others": torch.cat([p.flatten() for name, p in prefix.model.named_parameters() if "bias" not in name]),
            "norms": torch.tensor(prefix.control.trace["norm"]) / factor,
            "answer": prefix.model.generate(prompts, gate="always", max_new_tokens=20),
            "projections": project_changes(prefix.model, prompts, prompts >= 0, directions)[0],
        }
        held = prefix_training.summary(prefix)
        assert held["relative_size"]["mean"]["bias"] == pytest.approx(0.1, rel=0.02)
        assert held["bias_norm"]["target"] == prefix.model.prefix_config.target_norm
    for factor in (1 / 64, 64):
        for name, value in ends[1].items():
            assert torch.equal(ends[factor][name], value), name
