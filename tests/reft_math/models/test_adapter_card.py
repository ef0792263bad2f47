from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.models.adapter_card import renew_gate, write_merged_card


def facts_of(folder: Path) -> dict[str, str]:
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    return dict(line.removeprefix("- **").split("**: ") for line in lines if line.startswith("- **"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"k": 8, "target_norm": 0.5, "gate": "kl:2,base||mod", "base_model": "meta/Llama", "template": "chat/1"},
            {
                "base": "[meta/Llama](https://huggingface.co/meta/Llama)",
                "intervention": "RED, `s ⊙ h + b`",
                "site": "`ffn_up`, width 48",
                "layers": "0, 1, 2",
                "positions": "all",
                "prefix trained on": "the first K = 8 tokens of solutions",
                "bias norm, mean over layers of ‖b‖₂": "2.0000; target in training 0.5",
                "gate in decoding": "`kl:2,base||mod`",
                "parameters": str(3 * 2 * 48),
                "prompt template": "chat/1",
            },
        ),
        (
            {"intervention": "bias", "site": "block"},
            {
                "intervention": "Bias, `h + b`",
                "site": "`block`, width 32",
                "layers": "0, 1, 2",
                "positions": "all",
                "bias norm, mean over layers of ‖b‖₂": "2.0000",
                "gate in decoding": "`always`",
                "parameters": str(3 * 32),
            },
        ),
        (
            {"intervention": "loreft", "site": "block", "rank": 2, "layers": "0,2", "act_fn": "relu", "gate": "prompt"},
            {
                "intervention": "LoReFT, `h + Rᵀ(σ(Wh + b) − Rh)` with σ = relu",
                "site": "`block`, width 32",
                "layers": "0, 2",
                "rank": "2",
                "positions": "all",
                "bias norm, mean over layers of ‖b‖₂": "2.0000",
                "gate in decoding": "`prompt`",
                "parameters": str(2 * (2 * 32 * 2 + 2)),
            },
        ),
    ],
)
def test_a_card_says_what_is_known_and_no_more(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, config: dict[str, object], expected: dict[str, str]
) -> None:
    """The second is what an import gives: no base, K or norm is known."""
    reft_model = get_prefix_reft_model(tiny_model(), PrefixReftConfig(**config))  # type: ignore[arg-type]
    with torch.no_grad():
        for bias in reft_model.biases().values():
            bias.zero_()[0] = -2
    reft_model.save_pretrained(tmp_path)
    found = facts_of(tmp_path)
    parameters, _, digest = found.pop("parameters").partition(", SHA-256 ")
    assert {**found, "parameters": parameters} == expected
    assert digest
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.tags == ["reft", reft_model.prefix_config.intervention, "pyvene", "pyreft"]
    assert (data.get("base_model"), data.get("base_model_relation")) == (
        ("meta/Llama", "adapter") if "base_model" in config else (None, None)
    )
    assert (data.license, data.datasets, data.eval_results) == (None, None, None)


def test_a_card_is_written_once_and_then_the_users(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    config = PrefixReftConfig(base_model=str(tmp_path / "base"))
    get_prefix_reft_model(tiny_model(), config).save_pretrained(tmp_path / "a")
    card = tmp_path / "a" / "README.md"
    written = card.read_text()
    assert str(tmp_path) not in written
    card.write_text(written.replace("---\n\n# RED", "license: mit\n---\n\nMine.\n\n# RED"))
    edited = card.read_text()
    loaded = PrefixReftModel.from_pretrained(tmp_path / "a", tiny_model())
    loaded.save_pretrained(tmp_path / "a")
    assert card.read_text() == edited
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text() == written


def test_the_gate_is_renewed_in_a_line_that_still_stands(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Mine.\n- **gate in decoding**: `kl:1`\nMine: `kl:1`\n")
    renew_gate(tmp_path, "kl:1", "kl:2")
    renew_gate(tmp_path, "kl:1", "kl:3")
    assert (tmp_path / "README.md").read_text() == "Mine.\n- **gate in decoding**: `kl:2`\nMine: `kl:1`\n"


def test_a_merged_models_card_names_base_and_edit(tmp_path: Path) -> None:
    config = PrefixReftConfig(layers=(0, 1), gate="tokens:9", base_model="meta/Llama", base_revision="abc")
    write_merged_card(tmp_path, "meta/Llama", config)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data["base_model_relation"], card.data.library_name) == ("finetune", "transformers")
    assert facts_of(tmp_path)["in its weights"] == "RED at `ffn_up`, layers 0, 1"
    assert "at commit `abc`" in card.text
    (tmp_path / "README.md").unlink()
    write_merged_card(tmp_path, "other/Llama", config)
    assert "at commit" not in (tmp_path / "README.md").read_text()
