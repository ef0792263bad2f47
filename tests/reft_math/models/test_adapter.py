"""The hook path against stock pyvene, and what must not change around it."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import pyreft
import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.positions import intervention_mask
from reft_math.errors import UserError

TOKENS = torch.tensor([[5, 9, 33, 41, 17, 8, 60], [7, 7, 21, 3, 50, 12, 4]])


def randomised(model: PreTrainedModel, seed: int = 1, **config: object) -> PrefixReftModel:
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return reft_model


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


@pytest.mark.parametrize(
    ("family", "intervention", "site"),
    [
        ("Llama", "red", "ffn_up"),
        ("Llama", "loreft", "block"),
        ("Qwen2", "red", "ffn_up"),
        ("Qwen2", "loreft", "block"),
        ("Phi3", "red", "ffn_down"),
        ("GPTNeoX", "red", "ffn_up"),
        ("Llama", "bias", "ffn_up"),
        ("Qwen2", "bias", "block"),
    ],
)
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_loss_and_gradients_equal_stock_pyvenes(
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    family: str,
    intervention: str,
    site: str,
    positions: str,
) -> None:
    model = tiny_model(family)
    ours = randomised(model, intervention=intervention, site=site, positions=positions)
    mask = intervention_mask((torch.arange(7) - 3)[None], positions)  # type: ignore[arg-type]
    loss = loss_of(ours(TOKENS, intervention_mask=mask).logits)
    loss.backward()
    ours.save_pretrained(tmp_path)
    ours.unload()

    stock = pyreft.ReftModel.load(str(tmp_path), model)
    columns = mask[0].nonzero().flatten().tolist()
    locations = [[columns] * len(TOKENS)] * len(stock.interventions)
    _, output = stock({"input_ids": TOKENS}, unit_locations={"sources->base": (None, locations)})
    stock_loss = loss_of(output.logits)
    stock_loss.backward()

    assert loss.item() == stock_loss.item()
    gradients = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert expected.abs().max() > 0
        difference = (parameter.grad - expected).norm() / expected.norm()
        assert difference <= 1e-6, name


def test_outside_its_calls_the_base_is_itself_to_the_last_bit(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    before = model(TOKENS).logits
    reft_model = randomised(model)
    assert not torch.equal(reft_model(TOKENS).logits, before)
    assert torch.equal(model(TOKENS).logits, before)
    assert torch.equal(reft_model(TOKENS, intervention_mask=torch.zeros(1, 7, dtype=torch.bool)).logits, before)
    reft_model.generate(TOKENS, max_new_tokens=3)
    assert torch.equal(model(TOKENS).logits, before)
    assert reft_model.unload() is model
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stock_model_on_the_same_base_does_not_switch_it_off(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """pyvene clears every hook of the base at its calls; nobody would notice an adapter that is no longer there."""
    model = tiny_model()
    reft_model = randomised(model)
    reft_model.save_pretrained(tmp_path)
    expected = reft_model(TOKENS).logits
    stock = pyreft.ReftModel.load(str(tmp_path), model)
    for _ in range(2):
        stock({"input_ids": TOKENS}, unit_locations={"base": list(range(7))})
        assert torch.equal(reft_model(TOKENS).logits, expected)
    sequences = reft_model.generate(TOKENS, gate="always", max_new_tokens=4)
    stock({"input_ids": TOKENS}, unit_locations={"base": list(range(7))})
    assert torch.equal(reft_model.generate(TOKENS, gate="always", max_new_tokens=4), sequences)


def test_what_cannot_be_meant_is_said(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model())
    with pytest.raises(UserError, match="got pyvene's dictionary"):
        reft_model({"input_ids": TOKENS})
    with pytest.raises(UserError, match="got pyvene's dictionary"):
        reft_model.generate({"input_ids": TOKENS})
    with pytest.raises(UserError, match="got none, or both"):
        reft_model.generate()
    reft_model.unload()
    with pytest.raises(UserError, match="taken off by unload"):
        reft_model(TOKENS)


def test_an_error_in_the_middle_leaves_the_hooks_off(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    before = model(TOKENS).logits
    reft_model = randomised(model)
    with pytest.raises(IndexError):
        reft_model(TOKENS + 1000)
    with pytest.raises(ValueError, match="no_such_argument"):
        reft_model.generate(TOKENS, no_such_argument=1)
    assert torch.equal(model(TOKENS).logits, before)
    assert not model._forward_pre_hooks


def test_mask_acts_by_row_and_position(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """A row masked out has the base's logits; a column's intervention shows from that column on."""
    model = tiny_model()
    base = model(TOKENS).logits
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4] = True
    logits = randomised(model)(TOKENS, intervention_mask=mask).logits
    assert torch.equal(logits[0], base[0])
    assert torch.equal(logits[1, :4], base[1, :4])
    assert (logits[1, 4:] != base[1, 4:]).any(dim=-1).all()


def test_foreign_hooks_survive_and_are_called(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny_model()
    calls: list[str] = []
    module = model.model.layers[1].mlp.up_proj
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_forward_pre_hook(lambda *_: calls.append("pre"))
    reft_model = randomised(model)
    reft_model(TOKENS)
    reft_model.generate(TOKENS, max_new_tokens=1, gate="always")
    reft_model.save_pretrained(tmp_path)
    assert calls == ["pre", "forward"] * 2
    reft_model.unload()
    model(TOKENS)
    assert calls == ["pre", "forward"] * 3


@pytest.mark.parametrize("intervention", ["red", "bias", "loreft"])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_model: Callable[..., PreTrainedModel], intervention: str
) -> None:
    """Recomputation happens after the forward call has ended, yet sees its mask, another forward pass in between."""
    gradients = []
    for checkpointing in (False, True):
        reft_model = randomised(tiny_model(), intervention=intervention, site="ffn_down").train()
        if checkpointing:
            reft_model.gradient_checkpointing_enable()
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[0, 2:5] = mask[1, 1:] = True
        loss = loss_of(reft_model(TOKENS, intervention_mask=mask, use_cache=False).logits)
        with torch.no_grad():
            reft_model(TOKENS)
        loss.backward()
        gradients.append([parameter.grad for parameter in reft_model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_are_float32_on_a_base_of_any_dtype(
    tiny_model: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    reft_model = randomised(tiny_model().to(dtype))
    output = reft_model(TOKENS)
    output.logits.sum().backward()
    assert output.logits.dtype == dtype
    assert {parameter.dtype for parameter in reft_model.parameters()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in reft_model.parameters())


def test_only_interventions_train(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model())
    assert sum(parameter.numel() for parameter in reft_model.parameters()) == 3 * 2 * 48
    assert not any(parameter.requires_grad for parameter in reft_model.model.parameters())
    assert reft_model.train() is reft_model
    assert reft_model.model.training
    assert not reft_model.eval().model.training


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_decoding_and_training_share_one_definition_of_positions(
    tiny_model: Callable[..., PreTrainedModel], positions: str, use_cache: bool
) -> None:
    """Greedy tokens, drawn from a cache, are the argmaxes of one forward pass over the whole with the training mask."""
    reft_model = randomised(tiny_model(), positions=positions)
    sequences = reft_model.generate(TOKENS, gate="always", max_new_tokens=8, eos_token_id=None, use_cache=use_cache)
    mask = intervention_mask((torch.arange(sequences.shape[1]) - 7)[None], positions)  # type: ignore[arg-type]
    logits = reft_model(sequences, intervention_mask=mask).logits
    assert torch.equal(logits[:, 6:-1].argmax(dim=-1), sequences[:, 7:])


def test_forward_asks_for_a_mask_where_positions_need_one(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match="acts on generated positions; forward needs an intervention_mask"):
        randomised(tiny_model(), positions="generated")(TOKENS)


def test_generates_with_the_adapters_own_gate_unless_told_otherwise(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    reft_model = randomised(model, gate="tokens:2")
    settings = {"max_new_tokens": 8, "eos_token_id": None}
    default = reft_model.generate(TOKENS, **settings)
    assert torch.equal(default, reft_model.generate(TOKENS, gate="tokens:2", **settings))
    assert not torch.equal(default, reft_model.generate(TOKENS, gate="always", **settings))
    assert torch.equal(model.generate(TOKENS, **settings), reft_model.generate(TOKENS, gate="off", **settings))


@pytest.mark.parametrize(("intervention", "site"), [("red", "ffn_up"), ("loreft", "block")])
def test_a_copy_intervenes_like_its_original_and_is_another(
    tiny_model: Callable[..., PreTrainedModel], intervention: str, site: str
) -> None:
    """Logits, gated text and gradients under checkpointing; what happens to one of the two leaves the other alone."""
    original = randomised(tiny_model(), intervention=intervention, site=site, gate="kl:1,min=2").train()
    original.gradient_checkpointing_enable()
    logits, sequences = original(TOKENS).logits, original.generate(TOKENS, max_new_tokens=6)
    copied = copy.deepcopy(original)
    assert torch.equal(copied(TOKENS).logits, logits)
    assert torch.equal(copied.generate(TOKENS, max_new_tokens=6), sequences)
    assert all(len(module._forward_hooks) == 1 for module in copied._sites)
    gradients = []
    for model in (original, copied):
        mask = torch.arange(7)[None] > 2
        loss_of(model(TOKENS, intervention_mask=mask, use_cache=False).logits).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    assert not torch.equal(copied(TOKENS).logits, logits)
    copied.unload()
    assert torch.equal(original(TOKENS).logits, logits)


def test_a_copy_of_the_base_alone_is_the_base(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model())
    base, shallow = copy.deepcopy(reft_model.model), copy.copy(reft_model)
    logits = reft_model(TOKENS).logits
    assert torch.equal(shallow(TOKENS).logits, logits)
    del shallow
    assert torch.equal(reft_model(TOKENS).logits, logits)
    with reft_model.intervening(torch.ones(1, 1, dtype=torch.bool)):
        assert torch.equal(base(TOKENS).logits, tiny_model()(TOKENS).logits)


def test_pickles_hold_what_they_can(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """LoReFT's orthogonal R is torch's parametrisation, which has a state and no pickle."""
    reft_model = randomised(tiny_model())
    loaded = pickle.loads(pickle.dumps(reft_model))
    assert torch.equal(loaded(TOKENS).logits, reft_model(TOKENS).logits)
    base = pickle.loads(pickle.dumps(reft_model.model))
    assert torch.equal(base(TOKENS).logits, reft_model.model(TOKENS).logits)
    loreft = randomised(tiny_model(), intervention="loreft")
    with pytest.raises(RuntimeError, match=r"only supported through state_dict\(\)"):
        pickle.dumps(loreft)
    fresh = get_prefix_reft_model(tiny_model(), loreft.prefix_config)
    fresh.load_state_dict(loreft.state_dict())
    assert torch.equal(fresh(TOKENS).logits, loreft(TOKENS).logits)


def test_two_on_one_base_act_apart_and_leave_no_hooks_behind(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    pair = [randomised(model), randomised(model, intervention="loreft", site="ffn_up")]
    for reft_model in pair:
        alone = get_prefix_reft_model(tiny_model(), reft_model.prefix_config)
        alone.interventions.load_state_dict(reft_model.interventions.state_dict())
        assert torch.equal(reft_model(TOKENS).logits, alone(TOKENS).logits)
    del pair, reft_model
    gc.collect()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_compiled_base_is_compiled_with_its_interventions(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model(num_hidden_layers=1)
    reft_model = randomised(model)
    base, intervened = model(TOKENS).logits, reft_model(TOKENS).logits
    model.compile(backend="eager")
    for _ in range(2):
        assert torch.equal(reft_model(TOKENS).logits, intervened)
        assert torch.equal(model(TOKENS).logits, base)
    with pytest.raises(UserError, match=r"instead of torch\.compile\(model\) call model\.compile\(\)"):
        randomised(torch.compile(tiny_model(), backend="eager"))


def test_gradients_are_freed_and_frozen_as_in_every_module(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model())
    reft_model(TOKENS).logits.sum().backward()
    reft_model.zero_grad(set_to_none=False)
    assert all(parameter.grad.abs().max() == 0 for parameter in reft_model.parameters())
    reft_model.zero_grad()
    assert all(parameter.grad is None for parameter in reft_model.parameters())
    assert reft_model.eval().requires_grad_(False) is reft_model
    assert not reft_model(TOKENS).logits.requires_grad
