"""Prompts read once: loss, gradients, weights and bytes against reading prompts in every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.positions import Positions
from reft_math.data.prefix import PrefixCollator
from reft_math.training import job
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.packing import logits_at
from reft_math.training.prompt_cache import BehindPrompts, PromptCache, make_prompt_cache, reads_behind_prompts

TinyModel = Callable[..., PreTrainedModel]
PROMPTS = [[5, 6, 7, 8], [5, 6, 30, 31, 32, 33], [5, 6], [30], [5, 6, 7, 8]]
TARGETS = [[11, 12, 13], [2], [21, 22, 23, 24], [33, 2], [14, 15]]
ROWS = [{"prompt_ids": x, "target_ids": y} for x, y in zip(PROMPTS, TARGETS, strict=True)]
HEADED = [row for row in ROWS if len(row["prompt_ids"]) > 2]  # all begin with 5, 6
TOKEN_BYTES = 3 * 2 * 2 * 12 * 4  # layers, keys and values, heads of them, head size, float32


def loss_and_gradients(model: Any, batch: dict[str, Any], cache: PromptCache | None) -> tuple[Any, Any]:
    targets, places = batch.pop("targets"), batch.pop("logits_at")
    if cache is not None:
        batch |= cache.before(batch.pop("prompts"), batch["attention_mask"])
    with logits_at(model, places):
        losses = sequence_cross_entropy(model(**batch, use_cache=False).logits, targets)
    return losses, torch.autograd.grad(losses.sum(), list(model.parameters()))


@pytest.mark.parametrize("family", ["Qwen2", "GPTNeoX"])
@pytest.mark.parametrize(("intervention", "site"), [("red", "ffn_up"), ("bias", "attn_o"), ("loreft", "block")])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "head", "together"), [(ROWS, [], False), (ROWS, [], True), (HEADED, [5, 6], True)])
def test_loss_and_gradients_are_those_of_reading_prompts_in_every_step(
    tiny_model: TinyModel,
    family: str,
    intervention: str,
    site: str,
    attention: str,
    rows: list[dict[str, Any]],
    head: list[int],
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice over: kept prompts are as they were. Eager attention asks for its softmax in float32, whatever the model's
    dtype, whose last bits depend on the row's length and on the processor: here it is in float64, too."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim=dim))
    base = tiny_model(family).double()
    base.set_attn_implementation(attention)
    positions: Positions = "solution" if together else "generated"
    config = PrefixReftConfig(intervention=intervention, site=site, positions=positions)  # type: ignore[arg-type]
    model = get_prefix_reft_model(base, config)
    model.interventions.double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = loss_and_gradients(model, PrefixCollator(0, positions)(rows), None)
    cache = PromptCache(base, 10**9, head, together)
    for _ in range(2):
        found = loss_and_gradients(model, BehindPrompts(0, positions)(rows), cache)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_equal_prompts_share_an_entry_and_no_more_is_kept_than_fits(tiny_model: TinyModel) -> None:
    """ROWS' prompts have 3, 5, 1, 0 and the same 3 tokens before their last."""
    base, reads = tiny_model(), []
    base.base_model.register_forward_hook(lambda *_: reads.append(1))
    for limit, held in ((10**9, 9), (TOKEN_BYTES * 8, 8), (TOKEN_BYTES * 7, 4), (TOKEN_BYTES - 1, 0)):
        cache = PromptCache(base, limit)
        for repeated in (False, True):
            reads.clear()
            batch = BehindPrompts(0)(ROWS)
            cache.before(batch["prompts"], batch["attention_mask"])
            assert cache.held == held * TOKEN_BYTES <= limit
            assert len(reads) == {9: 0, 8: 1, 4: 1, 0: 3}[held] if repeated else 4


def test_a_prompts_values_do_not_depend_on_its_neighbours_where_it_is_read_alone(tiny_model: TinyModel) -> None:
    base, mask = tiny_model(), torch.ones(1, 1, dtype=torch.int64)
    first, second = PromptCache(base, 10**9, [5, 6]), PromptCache(base, 0, [5, 6])
    first.before([[5, 6, *range(7, 20)], [5, 6, 9]], mask.expand(2, 1))
    found, again = (cache.before([[5, 6, 9]], mask)["past_key_values"] for cache in (first, second))
    for one, other in zip(found.layers, again.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


class Forgetful(transformers.LlamaForCausalLM):
    """Does not read what is behind."""

    def forward(self, *args: Any, past_key_values: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Gemma", "Phi3", "GPTNeoX"])
def test_families_with_plain_attention_read_behind_prompts(tiny_model: TinyModel, family: str) -> None:
    model = tiny_model(family)
    assert reads_behind_prompts(model)
    assert reads_behind_prompts(model.bfloat16())


@pytest.mark.parametrize(
    ("family", "checkpointing", "said"),
    [
        ("Llama", True, "recomputed"),
        ("Mistral", False, "windows, states other than keys and values, or dropout"),
        ("Gemma3", False, "windows, states other than keys and values, or dropout"),
        ("GPTNeoX", False, "windows, states other than keys and values, or dropout"),
        ("Forgetful", False, "windows, states other than keys and values, or dropout"),
    ],
)
def test_other_models_read_prompts_in_every_step_and_say_so(
    tiny_model: TinyModel, capfd: pytest.CaptureFixture[str], family: str, checkpointing: bool, said: str
) -> None:
    """GPT-NeoX's has dropout here."""
    changes = {"hidden_dropout": 0.2} if family == "GPTNeoX" else {}
    model = Forgetful(tiny_model().config).eval() if family == "Forgetful" else tiny_model(family, **changes)
    assert make_prompt_cache(model, PROMPTS, 1.0, checkpointing) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("prompts are read in every step: ")
    assert said in line
    assert not model.training


def test_the_common_head_is_that_of_all_prompts(tiny_model: TinyModel, capfd: pytest.CaptureFixture[str]) -> None:
    """At least two tokens of each prompt are left: one behind the head, and the last."""
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 9], [5, 6, 7, 8, 1, 2, 3]]
    cache = make_prompt_cache(tiny_model(), prompts, 0.5, checkpointing=False)
    assert cache is not None
    assert (cache.head, cache.limit, cache.together) == ((5, 6), 2**29, False)
    size = TOKEN_BYTES * (4 + 3 + 6) / 2**30
    assert capfd.readouterr().err == (
        f"prompts are read once: their keys and values take {size:.3g} GiB, up to 0.5 GiB are kept\n"
    )


LINE = "train/prefix_reft.py --train-size 16 --batch-size 4 --epochs 2 --save-steps 3 --gate tokens:3 --eval-size 0"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter" / "reft_model.safetensors")
    return found


def test_a_run_ends_at_the_weights_of_one_without_a_cache_and_a_resumed_one_at_the_same_bits(
    call: Callable[[str], None],
    tiny_base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line = f"{LINE} --model {tiny_base} --positions generated --numeric-weight 0.1 --output-dir {tmp_path}"
    call(f"{line}/uncached --prompt-cache 0")
    call(f"{line}/all --positions all")
    assert "prompts are read" not in capfd.readouterr().err
    call(f"{line}/cached")
    assert "prompts are read once" in capfd.readouterr().err
    compute = job.PrefixTrainer.compute_loss

    def stop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return compute(trainer, *args, **kwargs)

    monkeypatch.setattr(job.PrefixTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        call(f"{line}/resumed")
    monkeypatch.setattr(job.PrefixTrainer, "compute_loss", compute)
    call(f"{line}/resumed --resume --prompt-cache 1e-5")  # a few prompts fit

    cached, uncached = adapter(tmp_path / "cached"), adapter(tmp_path / "uncached")
    for name, weight in cached.items():
        torch.testing.assert_close(weight, uncached[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(weight, adapter(tmp_path / "resumed")[name])
    assert not torch.allclose(cached[name], adapter(tmp_path / "all")[name], rtol=1e-3)


def test_a_model_with_a_sliding_window_trains_as_without_a_cache(
    call: Callable[[str], None],
    tiny_model: TinyModel,
    tiny_base: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    tiny_model("Mistral", vocab_size=len(tokenizer), sliding_window=8).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for limit in (0, 1):
        line = f"{LINE} --model {tmp_path}/base --positions generated --prompt-cache {limit}"
        call(f"{line} --output-dir {tmp_path}/{limit}")
    assert "prompts are read in every step" in capfd.readouterr().err
    without, asked = adapter(tmp_path / "0"), adapter(tmp_path / "1")
    assert all(torch.equal(weight, asked[name]) for name, weight in without.items())


def test_a_dry_run_says_what_the_prompts_take(
    call: Callable[[str], None], tiny_base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call(f"{LINE} --model {tiny_base} --positions generated --prompt-cache 2 --dry-run --output-dir {tmp_path}/run")
    assert "GiB, up to 2 GiB are kept" in capfd.readouterr().out
