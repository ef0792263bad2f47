"""To the hub and back, over HTTP, with a hub that runs on loopback."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.models.hub import push
from reft_math.regression.build import load_regressor, make_regressor
from reft_math.regression.config import RegressorConfig

TOKENS = torch.arange(3, 11)[None]


@pytest.fixture
def reft_model(tiny_model: Callable[..., PreTrainedModel]) -> PrefixReftModel:
    model = get_prefix_reft_model(tiny_model(), PrefixReftConfig(k=8, target_norm=0.5, base_model="user/base"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(reft_model: PrefixReftModel) -> torch.Tensor:
    with torch.no_grad():
        return reft_model(TOKENS).logits  # type: ignore[no-any-return]


def test_an_adapter_comes_back_as_it_was_pushed(
    hub: FakeHub, reft_model: PrefixReftModel, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    commit = reft_model.push_to_hub("user/adapter", private=True, commit_message="First", license="mit")
    assert commit == f"{hub.endpoint}/user/adapter/commit/{commit.oid}"
    assert hub.messages == ["First"]
    assert hub.repositories["user/adapter"].private
    loaded = PrefixReftModel.from_pretrained("user/adapter", tiny_model())
    assert loaded.prefix_config == reft_model.prefix_config
    assert torch.equal(logits(loaded), logits(reft_model))
    card = ModelCard(hub.files("user/adapter")["README.md"].decode())
    assert (card.data["base_model"], card.data["license"]) == ("user/base", "mit")
    assert 'PrefixReftModel.from_pretrained("user/adapter", base)' in card.text


def test_a_branch_and_a_pull_request_leave_main_as_it_is(
    hub: FakeHub, reft_model: PrefixReftModel, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    reft_model.push_to_hub("user/adapter")
    before = hub.files("user/adapter")
    with torch.no_grad():
        next(iter(reft_model.biases().values())).add_(1)
    reft_model.push_to_hub("adapter", revision="louder")  # an account's own
    assert reft_model.push_to_hub("user/adapter", create_pr=True).pr_url == f"{hub.endpoint}/user/adapter/discussions/1"
    assert hub.files("user/adapter") == before
    assert hub.files("user/adapter", "louder") == hub.files("user/adapter", "refs/pr/1") != before
    loaded = PrefixReftModel.from_pretrained("user/adapter", tiny_model(), revision="louder")
    assert torch.equal(logits(loaded), logits(reft_model))
    assert not torch.equal(logits(PrefixReftModel.from_pretrained("user/adapter", tiny_model())), logits(reft_model))


def test_clients_with_xet_installed_upload_through_a_pipeline_of_their_own(
    hub: FakeHub,
    reft_model: PrefixReftModel,
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a hub that takes everything as small files; xet's own storage is not faked. The token ends with its line."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.large = ()
    reft_model.push_to_hub("user/adapter", revision="new", token="hf_writer\n")
    loaded = PrefixReftModel.from_pretrained("user/adapter", tiny_model(), revision="new")
    assert torch.equal(logits(loaded), logits(reft_model))


def test_a_card_that_was_edited_on_the_hub_keeps_its_text(hub: FakeHub, reft_model: PrefixReftModel) -> None:
    reft_model.push_to_hub("user/adapter", license="mit")
    text = hub.files("user/adapter")["README.md"].decode()
    hub.put("user/adapter", {"README.md": text.replace("# RED adapter", "Do not use it on Sundays.\n\n# RED").encode()})
    reft_model.push_to_hub("user/adapter")
    renewed = hub.files("user/adapter")["README.md"].decode()
    assert "Do not use it on Sundays.\n\n# RED for" in renewed
    assert "license: mit" in renewed


@pytest.mark.parametrize("token", [None, "hf_reader", "hf_nobody", "hf_a\nhf_b"])
def test_who_may_not_write_is_told_so_in_one_line_without_the_token(
    hub: FakeHub,
    reft_model: PrefixReftModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str | None,
) -> None:
    said = {None: "log in with hf auth login", "hf_reader": "403", "hf_nobody": "401"}
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match=said.get(token, "user/new")) as caught:
        reft_model.push_to_hub("user/new", token=token)
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)
    for part in (token or "hf_writer").splitlines():
        assert part not in str(caught.value) + caplog.text
    assert not hub.repositories


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"license": "mine"}, r'"license" must be one of'),
        ({"revision": "new", "create_pr": True}, "a pull request goes to main"),
    ],
)
def test_what_the_hub_would_not_take_is_refused(
    hub: FakeHub, reft_model: PrefixReftModel, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        reft_model.push_to_hub("user/adapter", **arguments)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_repository_can_have_is_refused(hub: FakeHub, reft_model: PrefixReftModel) -> None:
    with pytest.raises(UserError, match="user/a/b could not be pushed"):
        reft_model.push_to_hub("user/a/b")


def test_what_is_not_there_or_private_is_told_from_what_is(
    hub: FakeHub,
    reft_model: PrefixReftModel,
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reft_model.push_to_hub("user/adapter", private=True)
    with pytest.raises(UserError, match=r"user/adapter is on the hub, but has no branch, tag or commit v9$"):
        PrefixReftModel.from_pretrained("user/adapter", tiny_model(), revision="v9")
    with pytest.raises(UserError, match=r"no folder user/nothing, .*not found, or private: .*hf auth login"):
        PrefixReftModel.from_pretrained("user/nothing", tiny_model())
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no folder user/adapter, .*not found, or private: .*hf auth login"):
        PrefixReftModel.from_pretrained("user/adapter", tiny_model())


def test_a_hub_that_does_not_answer_is_told_in_one_line(
    hub: FakeHub, reft_model: PrefixReftModel, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    hub.close()
    with pytest.raises(UserError, match=rf"^user/adapter could not be pushed to {re.escape(hub.endpoint)}: no conn"):
        reft_model.push_to_hub("user/adapter")
    with pytest.raises(UserError, match=r"no folder user/adapter, .*ConnectError") as caught:
        PrefixReftModel.from_pretrained("user/adapter", tiny_model())
    assert "\n" not in str(caught.value)


def test_nothing_is_made_where_nothing_can_be_saved(hub: FakeHub) -> None:
    def save(folder: Path) -> None:
        raise UserError("not today")

    with pytest.raises(UserError, match="not today"):
        push(save, "user/adapter")
    assert not hub.repositories


def test_a_regressor_and_its_base_come_back_as_they_were_pushed(hub: FakeHub, tiny_base: str) -> None:
    """The base by its hub id too, by transformers' own upload."""
    load_model(tiny_base).push_to_hub("user/base")
    load_tokenizer(tiny_base).push_to_hub("user/base")
    base = load_model("user/base")
    assert torch.equal(base(TOKENS).logits, load_model(tiny_base)(TOKENS).logits)
    config = RegressorConfig(grid="0:9:1", loss="head:mean", tune="red", base_model="user/base", data="original1")
    regressor = make_regressor(base, load_tokenizer("user/base"), config).eval()
    with torch.no_grad():
        for parameter in regressor.trainable_parameters().values():
            parameter.add_(torch.randn_like(parameter))
    regressor.push_to_hub("user/regressor")
    loaded = load_regressor("user/regressor")
    assert loaded.predict(["4 and 5"]) == regressor.predict(["4 and 5"])
    assert [path for path in hub.files("user/regressor") if path.endswith("README.md")] == ["README.md"]
    card = ModelCard(hub.files("user/regressor")["README.md"].decode())
    assert card.data["base_model"] == "user/base"
    assert 'load_regressor("user/regressor")' in card.text


def test_a_peft_adapter_brings_its_base_at_the_revision_it_was_trained_on(
    hub: FakeHub, tiny_model: Callable[..., PreTrainedModel], tiny_base: str
) -> None:
    base = load_model(tiny_base)
    old = base.push_to_hub("user/base")
    expected = base(TOKENS).logits
    with torch.no_grad():
        base.lm_head.weight.mul_(2)
    base.push_to_hub("user/base")
    lora = get_peft_model(load_model("user/base", old.oid), LoraConfig(target_modules=["q_proj"], revision=old.oid))
    lora.peft_config["default"].base_model_name_or_path = "user/base"
    commit = lora.push_to_hub("user/lora")
    loaded = load_model("user/lora")
    assert torch.equal(loaded(TOKENS).logits, expected)
    assert loaded.config._commit_hash == commit.oid, "what the name user/lora is to be read at"
    assert torch.equal(load_model("user/lora", commit.oid)(TOKENS).logits, expected)
