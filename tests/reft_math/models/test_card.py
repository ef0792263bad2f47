from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from reft_math.errors import UserError
from reft_math.models.card import (
    base_in_words,
    base_metadata,
    base_name,
    make_card,
    save_card,
    update_card,
    with_license,
)

MINE = """---
license: mit
language: en
tags:
- mine
datasets: my/set
base_model: old/base
---

# My title

my words
"""


def accuracy(data: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation", dataset_type=data, dataset_name=data, metric_type="accuracy", metric_value=value
    )


def test_an_update_renews_the_metadata_and_leaves_the_text() -> None:
    data = {"base_model": "new/base", "tags": ["reft"], "datasets": ["openai/gsm8k"]}
    card = ModelCard(update_card(MINE, make_card(data, "Its title", "new facts\n")))
    assert card.text == MINE.split("---\n")[2]
    assert card.data.to_dict() == {
        "license": "mit",
        "language": "en",
        "base_model": "new/base",
        "tags": ["mine", "reft"],
        "datasets": ["my/set", "openai/gsm8k"],
    }


def test_an_update_by_itself_changes_nothing() -> None:
    data = {"tags": ["reft"], "eval_results": [accuracy("openai/gsm8k", 0.5)]}
    card = make_card(data, "Its title", "facts\n", "")
    assert update_card(card, card) == card


def test_metadata_alone_gets_the_text() -> None:
    """What the hub makes of a licence chosen in its form."""
    card = ModelCard(update_card("---\nlicense: mit\n---\n", make_card({}, "Its title", "facts\n")))
    assert card.data.license == "mit"
    assert card.text.startswith("\n# Its title\n")


def test_results_stay_with_the_text_that_tells_of_them() -> None:
    before = make_card({"eval_results": [accuracy("a", 0.1)]}, "Its title")
    card = ModelCard(update_card(before, make_card({"eval_results": [accuracy("b", 0.3)]}, "Another")))
    assert [(result.dataset_type, result.metric_value) for result in card.data.eval_results] == [("a", 0.1)]
    assert card.data.model_name == "Its title"


def test_a_license_replaces_another() -> None:
    card = with_license(MINE, "apache-2.0")
    assert card == MINE.replace("license: mit", "license: apache-2.0")


@pytest.mark.parametrize("metadata", ["a: [1", "- a list", "tags: [a, {b: 1}]", "datasets: 3"])
def test_metadata_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\nmine\n")
    with pytest.raises(UserError, match=r"^README\.md must start with readable metadata") as caught:
        save_card(tmp_path, make_card({}, "Its title"))
    assert "\n" not in str(caught.value)
    assert "mine" in (tmp_path / "README.md").read_text()


def test_of_a_folder_only_the_last_part_is_told(tmp_path: Path) -> None:
    for base in (str(tmp_path / "Llama"), "/not/here/Llama"):
        assert base_metadata(base, "adapter") == {}
        assert base_name(base) == "Llama"
        assert base_in_words(base, "abc") == "`Llama`, a local folder"
    assert base_metadata("meta/Llama", "adapter") == {"base_model": "meta/Llama", "base_model_relation": "adapter"}
    assert base_in_words("meta/Llama", "abc") == "[meta/Llama](https://huggingface.co/meta/Llama) at commit `abc`"
    assert base_metadata("arithmetic", "adapter") == base_metadata(None, "adapter") == {}
    assert base_name("arithmetic") == "arithmetic"


def test_a_card_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"README\.md must be UTF-8 text; mend or delete it"):
        save_card(tmp_path, make_card({}, "Title"))
