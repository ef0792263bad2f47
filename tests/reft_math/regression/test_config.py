from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.data.templates import get_template
from reft_math.errors import UserError
from reft_math.regression.config import LOSSES, RegressorConfig
from reft_math.regression.heads import HEADS
from reft_math.regression.regressor import make_template

LOG: dict[str, Any] = {"loss": "log", "grid": "1", "bounds": (1.0, 5.0)}

# --- what a config may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "rmse"}, "loss must be one of raft, mbr, ce, log, head:logit, .*head:raft-all; got 'rmse'"),
        ({"loss": "head:linear"}, "loss must be one of .* got 'head:linear'"),
        ({"tune": "adapter"}, "tune must be one of none, red, bias, loreft, lora, full; got 'adapter'"),
        ({"added_tokens": "last"}, "added_tokens must be one of zero, first, average, random; got 'last'"),
        ({"form": 3}, "form must be one of 1, 2; got 3"),
        ({"grid": "1:5"}, "lower:upper:resolution, .* got '1:5'"),
        ({"grid": "1,five"}, "numbers such as 3 or 0.25; got 'five'"),
        ({"grid": "1:5:1", "texts": ("a", "b")}, "every number needs a text; got 2 texts for 5 numbers"),
        ({"grid": "1,2", "texts": ("a", "b", "c")}, "every number needs a text; got 3 texts for 2 numbers"),
        ({"grid": "1,1.0", "texts": ("a", "b")}, "names each number once; got '1,1.0'"),
        ({"grid": "3", "normalised": True}, "normalised probabilities over one number always predict it; got grid 3"),
        ({"grid": "3", "loss": "ce"}, "loss ce over one number always predict it; got grid 3"),
        ({**LOG, "normalised": True}, "normalised is for raft and mbr, .* got loss log"),
        ({"loss": "ce", "normalised": True}, "normalised is for raft and mbr, .* got loss ce"),
        ({"loss": "head:raft-grid", "normalised": True}, "normalised is for raft and mbr, .* got loss head:raft-grid"),
        ({"bounds": (5.0, 1.0)}, r"the lower one first; got \(5.0, 1.0\)"),
        ({"bounds": (1.0, 1.0)}, r"the lower one first; got \(1.0, 1.0\)"),
        ({"bounds": (float("nan"), 1.0)}, r"the lower one first; got \(nan, 1.0\)"),
        ({"bounds": (0.0, float("inf"))}, r"two finite numbers, .* got \(0.0, inf\)"),
        ({"bounds": (0.0, 1.0, 2.0)}, r"two finite numbers, .* got \(0.0, 1.0, 2.0\)"),
        ({"bounds": ("0", "5")}, r"two finite numbers, .* got \('0', '5'\)"),
        ({**LOG, "bounds": None}, "needs bounds and the grid of 1 alone; got bounds None and grid 1"),
        ({**LOG, "grid": "1:5:1"}, r"got bounds \(1.0, 5.0\) and grid 1:5:1"),
        ({**LOG, "grid": "5"}, r"got bounds \(1.0, 5.0\) and grid 5"),
    ],
)
def test_values_that_mean_nothing_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        RegressorConfig(**values)
    assert "\n" not in str(caught.value)


def test_the_log_loss_takes_a_text_for_its_one_number() -> None:
    assert RegressorConfig(**LOG, texts=("yes",)).number_texts() == {Decimal(1): "yes"}


def test_numbers_are_written_as_decimals_or_as_their_texts() -> None:
    assert list(RegressorConfig(grid="0:1:0.5").number_texts().values()) == ["0.0", "0.5", "1.0"]
    assert RegressorConfig(grid="1,5", texts=("bad", "good")).number_texts() == {1: "bad", 5: "good"}


@pytest.mark.parametrize(
    ("values", "predictor"),
    [
        ({"loss": "raft"}, "rail"),
        ({"loss": "raft", "normalised": True}, "rail_normalised"),
        ({"loss": "mbr"}, "rail"),
        ({"loss": "mbr", "normalised": True}, "rail_normalised"),
        ({"loss": "ce"}, "mode"),
        (LOG, "rail"),
        *(({"loss": f"head:{name}"}, "head") for name in HEADS),
    ],
)
def test_each_loss_trains_one_predictor(values: dict[str, Any], predictor: str) -> None:
    assert RegressorConfig(**values).predictor == predictor


def test_heads_are_the_losses_that_name_one() -> None:
    heads = {
        loss: RegressorConfig(**({**LOG, "loss": loss} if loss == "log" else {"loss": loss})).head for loss in LOSSES
    }
    assert {loss: head for loss, head in heads.items() if head is not None} == {f"head:{name}": name for name in HEADS}


@pytest.mark.parametrize("values", [{"template": "bare"}, {"prompt": "paper"}])
def test_a_bare_text_is_its_own_prompt_and_the_number_follows_after_a_space(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, values: dict[str, Any]
) -> None:
    config = RegressorConfig(**values)
    template = make_template(config, tokenizer)
    assert (str(template), template.prompt("it is equal to", tokenizer)) == ("bare/1", "it is equal to")
    assert make_template(replace(config, template="plain"), tokenizer).name == "plain"
    grid = config.make_grid(tiny_model("Llama", vocab_size=1300), tokenizer, template)
    prompt = tokenizer.encode("it is equal to")
    assert [[*prompt, *string] for string in grid.token_ids] == [
        tokenizer.encode(f"it is equal to {number}") for number in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ({"grid": "1,10"}, [["Ġ", "1", "<eos>"], ["Ġ", "1", "0", "<eos>"]]),
        ({"grid": "1,10", "form": 1}, [["Ġ", "1"], ["Ġ", "1", "0"]]),
        ({"grid": "1,10", "texts": ("bad", "good")}, [["Ġbad"], ["Ġgood"]]),
        ({"grid": "1,10", "added_tokens": "average"}, [["<number 1>"], ["<number 10>"]]),
    ],
)
def test_its_grid_follows_the_templates_prompts(
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    values: dict[str, Any],
    tokens: list[list[str]],
) -> None:
    own = copy.deepcopy(tokenizer)
    config = RegressorConfig(**values, template="plain")
    grid = config.make_grid(tiny_model("Llama", vocab_size=1300), own, get_template("plain", own))
    assert [own.convert_ids_to_tokens(list(string)) for string in grid.token_ids] == tokens
    assert grid.values.tolist() == [1, 10]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        RegressorConfig(),
        RegressorConfig(**LOG, texts=("yes",), bidirectional=True),
        RegressorConfig(
            loss="mbr",
            grid="0:1:0.5",
            texts=("a", "b", "ü"),
            normalised=True,
            data="stsb",
            bounds=(-1.0, 2.5),
            bidirectional=True,
            added_tokens="first",
            tune="lora",
            template="chat/1",
            base_model="m",
            base_revision="abc",
            random_seed=3,
            versions={"torch": "2"},
        ),
    ],
)
def test_comes_back_as_it_was_saved(tmp_path: Path, config: RegressorConfig) -> None:
    config.save_pretrained(tmp_path / "new" / "folder")
    assert RegressorConfig.from_pretrained(tmp_path / "new" / "folder") == config


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ("[1, 2]", "it holds list"),
        ("null", "it holds NoneType"),
        ({"colour": "red"}, "unknown: colour"),
        ({"loss": "rmse"}, "got 'rmse'"),
        ({"texts": 3}, "texts must be tuple[str, ...] or null; got 3"),
        ({"bounds": [5, 1]}, "got (5, 1)"),
        ({"grid": 5}, "grid must be str; got 5"),
        ({"base_model": ["a"]}, "base_model must be str or null"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(
    tmp_path: Path, content: str | dict[str, Any] | None, reason: str
) -> None:
    path = tmp_path / "regressor_config.json"
    RegressorConfig().save_pretrained(tmp_path)
    if content is None:
        path.unlink()
    else:
        values = content if isinstance(content, str) else json.dumps({**json.loads(path.read_text()), **content})
        path.write_text(values)
    with pytest.raises(
        UserError, match=r"regressor_config.json is not a readable regressor config \(.*\); was"
    ) as caught:
        RegressorConfig.from_pretrained(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_key_that_has_to_be_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "regressor_config.json").write_text('{"loss": "raft"}')
    with pytest.raises(UserError, match=r"not a readable regressor config \(its fields are .*; missing: .*texts"):
        RegressorConfig.from_pretrained(tmp_path)
