from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from reft_math.regression.card import write_regressor_card
from reft_math.regression.config import RegressorConfig


@pytest.mark.parametrize(
    ("config", "relation", "datasets"),
    [
        ({"tune": "full", "loss": "head:mean", "data": "stsb"}, "finetune", ["PhilipMay/stsb_multi_mt"]),
        ({"tune": "lora", "data": "/home/someone/mine.csv"}, "adapter", None),
    ],
)
def test_a_card_says_what_is_known_and_no_more(
    tmp_path: Path, config: dict[str, str], relation: str, datasets: list[str] | None
) -> None:
    RegressorConfig(base_model="meta/Llama", **config).save_pretrained(tmp_path)  # type: ignore[arg-type]
    write_regressor_card(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data["base_model"], card.data["base_model_relation"]) == ("meta/Llama", relation)
    assert (card.data.datasets, card.data.license) == (datasets, None)
    assert f"- **data**: {Path(config['data']).name}\n" in card.text
    assert "someone" not in card.text
    assert "prompt template" in card.text
    assert "versions" not in card.text


def test_an_edited_card_outlives_a_new_one(tmp_path: Path) -> None:
    RegressorConfig().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("Mine.\n")
    write_regressor_card(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").text == "Mine.\n"
