"""Noise and lost biases in half precision, against formulas on what hooks of the test's own have seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.data.problem import Problem
from reft_math.data.templates import get_template
from reft_math.decoding.completions import CompletionSettings
from reft_math.models import load_model, load_tokenizer
from reft_math.scoring.rounding import acting_bias, attenuated, noise_floor

TOKENS = torch.arange(3, 17).view(2, 7)
KINDS = [("red", "ffn_up"), ("bias", "ffn_down"), ("loreft", "block"), ("direft", "attn_o")]


def moved(model: PreTrainedModel, scale: float = 0.1, **config: Any) -> PrefixReftModel:
    torch.manual_seed(1)
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in reft_model.named_parameters():
            if "rotate_layer" not in name:  # which starts at random, orthonormal
                parameter.add_(torch.randn(parameter.shape) * scale)
    return reft_model


@pytest.mark.parametrize(("intervention", "site"), KINDS)
def test_an_attenuated_edit_is_the_formula(
    tiny_model: Callable[..., PreTrainedModel], intervention: str, site: str
) -> None:
    reft_model = moved(tiny_model().double(), intervention=intervention, site=site, layers="1")
    whole = reft_model(TOKENS).logits
    seen: list[torch.Tensor] = []
    edit = next(iter(reft_model.interventions.values()))
    with attenuated(reft_model, 0.25):
        edit.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
        reft_model(TOKENS)
    reft_model(TOKENS)
    hidden, quarter, _, full = seen
    torch.testing.assert_close(quarter, hidden + 0.25 * (full - hidden), rtol=1e-12, atol=1e-12)
    assert torch.equal(reft_model(TOKENS).logits, whole)


def test_the_floor_is_the_dtypes_not_the_adapters() -> None:
    """A thousandth of an edit diverges a millionth as much; what float16 and bfloat16 show beyond that is rounding."""
    tokenizer = load_tokenizer("arithmetic")
    decoding = CompletionSettings(tokenizer, get_template("auto", tokenizer), [2], max_new_tokens=24)
    questions = ["Anna has 47 books. She finds 38 books. How many books does Anna have now?", "Tom has 3 pens."]
    problems = [Problem(str(place), text, "1") for place, text in enumerate(questions)]
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        reft_model = moved(load_model("arithmetic").to(dtype), scale=0.02)
        found[dtype] = noise_floor(reft_model, decoding, problems, batch_size=1)
    exact, fine, coarse = found.values()
    assert coarse["dtype"] == "bfloat16"
    assert exact["rows"] == 2
    assert exact["mean"] < fine["mean"] / 5 < coarse["mean"] / 25
    assert exact["counted"] == pytest.approx(exact["cumulative"], abs=1e-9)
    assert coarse["counted"] < coarse["cumulative"] / 2
    assert coarse["mean"] <= coarse["max"] <= coarse["cumulative"] <= coarse["mean"] * coarse["tokens"] * 1.001


@pytest.mark.parametrize(("dtype", "threshold"), [(torch.bfloat16, 0.02), (torch.float16, 2e-4)])
def test_a_null_adapters_gate_stays_open_over_512_tokens(dtype: torch.dtype, threshold: float) -> None:
    """Without the dead band its rounding alone would have closed it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=4000, max_position_embeddings=1024, initializer_range=0.3, **sizes)
    reft_model = moved(LlamaForCausalLM(config).eval().to(dtype), scale=0.3)
    torch.manual_seed(2)
    with attenuated(reft_model):
        output = reft_model.generate(
            torch.randint(3, 4000, (1, 8)),
            gate=f"kl:{threshold}",
            do_sample=True,
            max_new_tokens=512,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
    assert output.kl.shape == (1, 512)
    assert output.closing_positions.tolist() == [-1]
    assert output.cumulative_kl.item() < threshold / 2
    assert output.kl.sum() > 2 * threshold


def test_what_acts_of_a_bias_is_what_is_left_after_rounding(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = moved(tiny_model().bfloat16(), scale=0.004, site="ffn_up")
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for layer, edit in reft_model.by_layer():
        edit.register_forward_hook(lambda module, args, output, layer=layer: seen[layer].append(args[0][0].float()))
    found = acting_bias(reft_model, [[5, 9, 33, 41], [7, 21, 3]])
    norms, unmoved = [], []
    for layer, edit in reft_model.by_layer():
        hidden = torch.cat(seen[layer])
        with_bias = (edit.scale * hidden + edit.bias).bfloat16().double()
        change = with_bias - (edit.scale * hidden).bfloat16().double()
        norms.append(change.norm(dim=-1).mean())
        unmoved.append((change == 0).double().mean())
    assert found["acting_norm"] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-6)
    assert found["rounded_away"] == pytest.approx(torch.stack(unmoved).mean().item())
    assert 0.02 < found["rounded_away"] < 0.98


@pytest.mark.parametrize(("intervention", "site"), KINDS)
def test_in_float32_all_of_it_acts_and_nothing_is_left_changed(
    tiny_model: Callable[..., PreTrainedModel], intervention: str, site: str
) -> None:
    reft_model = moved(tiny_model(), intervention=intervention, site=site)
    before = reft_model(TOKENS).logits
    found = acting_bias(reft_model, TOKENS[:1].tolist())
    stored = torch.stack([bias.norm() for bias in reft_model.biases().values()]).mean().item()
    assert found["acting_norm"] == pytest.approx(stored, rel=1e-4)
    assert found["rounded_away"] < 0.01
    assert torch.equal(reft_model(TOKENS).logits, before)
