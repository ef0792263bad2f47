from __future__ import annotations

from collections.abc import Callable

import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from reft_math.errors import UserError
from reft_math.training.matching import closest, match_parameters, sizes_per_rank

SIZES = {"q": 16, "k": 16, "v": 10, "up": 40}


@pytest.mark.parametrize("count", [150, 1_000, 5_000])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2"])
def test_peft_counts_as_many(tiny_model: Callable[[str], PreTrainedModel], family: str, count: int) -> None:
    model = tiny_model(family)
    modules, rank = match_parameters(model, count * 3)
    lora = get_peft_model(model, LoraConfig(r=rank, target_modules=modules.split(",")))
    trained, _ = lora.get_nb_trainable_parameters()
    assert trained == rank * sum(sizes_per_rank(tiny_model(family))[name] for name in modules.split(","))
    assert abs(trained - count * 3) <= count * 3 / 10


def test_the_output_layer_is_left_out(tiny_model: Callable[[], PreTrainedModel]) -> None:
    """As peft's all-linear leaves it out."""
    model = tiny_model()
    per_rank = sum(sizes_per_rank(model).values())
    lora = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear"))
    assert lora.get_nb_trainable_parameters()[0] == per_rank


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (82, (("q", "k", "v", "up"), 1)),
        (164, (("q", "k", "v", "up"), 2)),
        (16, (("q",), 1)),  # k is as large
        (56, (("q", "up"), 1)),  # k and up as well
        (32, (("q", "k"), 1)),  # q at rank 2 as well: more modules
    ],
)
def test_the_closest_of_most_modules_and_of_those_the_first(count: int, expected: tuple[tuple[str, ...], int]) -> None:
    assert closest(SIZES, count, whole=False) == expected


def test_named_modules_are_kept_and_only_the_rank_chosen(tiny_model: Callable[[], PreTrainedModel]) -> None:
    model = tiny_model()
    size = sizes_per_rank(model)["q_proj"]
    assert match_parameters(model, 5 * size, "q_proj") == ("q_proj", 5)
    assert match_parameters(model, 2 * sum(sizes_per_rank(model).values()), "all-linear")[1] == 2


def test_what_no_rank_comes_close_to_is_a_mistake(tiny_model: Callable[[], PreTrainedModel]) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="the closest to 7 parameters is"):
        match_parameters(model, 7)
    with pytest.raises(UserError, match=r"must be of q_proj, .* to be matched; got 'nosuch'"):
        match_parameters(model, 1_000, "nosuch")
