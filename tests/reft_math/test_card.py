from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from reft_math.card import base_in_words, base_metadata, base_name, make_card, save_card, update_card, with_license
from reft_math.errors import UserError

MINE = """---
license: mit
language: en
tags:
- mine
datasets: my/set
base_model: old/base
---

# My title

before
<!-- reft-math: about -->
old facts
<!-- /reft-math: about -->
after
"""


def accuracy(data: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation", dataset_type=data, dataset_name=data, metric_type="accuracy", metric_value=value
    )


def test_an_update_renews_what_is_known_and_keeps_the_rest() -> None:
    data = {"base_model": "new/base", "tags": ["reft"], "datasets": ["openai/gsm8k"]}
    card = ModelCard(update_card(MINE, make_card(data, "Its title", {"about": "new facts\n", "training": "results\n"})))
    assert card.text == MINE.split("---\n")[2].replace("old facts", "new facts")
    assert card.data.to_dict() == {
        "license": "mit",
        "language": "en",
        "base_model": "new/base",
        "tags": ["mine", "reft"],
        "datasets": ["my/set", "openai/gsm8k"],
    }


def test_a_part_of_which_nothing_is_known_stays() -> None:
    assert "old facts" in update_card(MINE, make_card({}, "Its title", {"about": ""}))


def test_an_update_by_itself_changes_nothing() -> None:
    """Parts with signs that regular expressions read, results and all."""
    data = {"tags": ["reft"], "eval_results": [accuracy("openai/gsm8k", 0.5)]}
    card = make_card(data, "Its title", {"about": r"\1 \g<0> | $" + "\n", "training": ""})
    assert update_card(card, card) == card


def test_metadata_alone_gets_the_text() -> None:
    """What the hub makes of a licence chosen in its form."""
    card = ModelCard(update_card("---\nlicense: mit\n---\n", make_card({}, "Its title", {"about": "facts\n"})))
    assert card.data.license == "mit"
    assert card.text.startswith("\n# Its title\n")


def test_results_replace_those_on_the_same_data() -> None:
    before = make_card({"eval_results": [accuracy("a", 0.1), accuracy("b", 0.2)]}, "Its title", {})
    card = ModelCard(update_card(before, make_card({"eval_results": [accuracy("a", 0.3)]}, "Its title", {})))
    assert [(result.dataset_type, result.metric_value) for result in card.data.eval_results] == [("a", 0.3), ("b", 0.2)]


def test_results_of_other_parameters_are_dropped() -> None:
    """Such as of an adapter that was trained on after it was loaded."""

    def card(parameters: str, training: str = "") -> str:
        data = {"eval_results": [accuracy("a", 0.1)]} if training else {}
        return make_card(data, "Its title", {"about": f"SHA-256 `{parameters}`\n", "training": training})

    same = update_card(card("0a", "results\n"), card("0a"))
    assert "results\n" in same
    assert len(ModelCard(same).data.eval_results) == 1
    other = update_card(card("0a", "results\n"), card("0b"))
    assert "results" not in other
    assert ModelCard(other).data.to_dict() == {}
    assert "new results\n" in update_card(card("0a", "results\n"), card("0b", "new results\n"))
    without_digest = card("0a", "results\n").replace("SHA-256 `0a`\n", "")
    assert "results\n" in update_card(without_digest, card("0b"))


def test_a_license_replaces_another() -> None:
    card = with_license(MINE, "apache-2.0")
    assert card == MINE.replace("license: mit", "license: apache-2.0")


@pytest.mark.parametrize("metadata", ["a: [1", "- a list", "tags: [a, {b: 1}]", "datasets: 3"])
def test_metadata_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\nmine\n")
    with pytest.raises(UserError, match=r"^README\.md must start with readable metadata") as caught:
        save_card(tmp_path, make_card({}, "Its title", {}))
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
        save_card(tmp_path, make_card({}, "Title", {}))
