from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from interventions.activations import check_states
from interventions.logits import check_logits, watching
from reft_math.errors import UserError
from reft_math.files.tensors import check_finite, not_finite


def test_names_those_that_are_not_finite_in_their_order() -> None:
    tensors = {"nan": [0.0, nan], "whole": [1.0, -2.0], "huge": [3e38, 3e38], "inf": [inf, 0.0], "-inf": [-inf, 0.0]}
    assert not_finite({name: torch.tensor(values) for name, values in tensors.items()}) == ["nan", "inf", "-inf"]


def test_saved_parameters_are_finite_or_refused_by_name() -> None:
    check_finite({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int64)}, "file")
    with pytest.raises(UserError, match=r"file must hold finite parameters; b is NaN or infinite"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, -inf])}, "file")


@pytest.mark.parametrize(
    ("row", "is_fine"),
    [([1.0, -inf, 2.0], True), ([1.0, nan, 2.0], False), ([1.0, inf, 2.0], False), ([-inf, -inf, -inf], False)],
)
def test_logits_exclude_tokens_by_minus_infinity_and_are_finite_otherwise(row: list[float], is_fine: bool) -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0]] * 2, [[0.0, 1.0, 2.0], row]])  # (row, token, vocabulary)
    if is_fine:
        check_logits(logits, ["first", "second"])
    else:
        with pytest.raises(UserError, match=r"logits must be finite; those for 'second' are NaN or infinite"):
            check_logits(logits, ["first", "second"])
        with pytest.raises(UserError, match=r"those for row 1 are NaN"):
            check_logits(logits)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_hidden_states_are_finite_or_refused_by_name(bad: float) -> None:
    states = np.ones((3, 2, 4), dtype=np.float32)
    check_states(states, ["a", "b", "c"])
    states[1, 1, 3] = bad
    with pytest.raises(UserError, match=r"hidden states must be finite; those for 'b' are NaN or infinite"):
        check_states(states, ["a", "b", "c"])


def test_the_first_module_is_the_one_whose_own_output_is_not_finite() -> None:
    """Not a hook's that changes a finite output, and not modules that read what came before; nothing is left behind."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Identity()))
    spoiling = model[1].register_forward_hook(lambda module, args, output: output + inf)
    with watching(model) as found:
        model(torch.ones(1, 2))
    assert found == ["2.0", "2.1", "2", ""]
    spoiling.remove()
    with watching(model) as found:
        model(torch.ones(1, 2))
    assert found == []
    assert not any(module._forward_hooks for module in model.modules())
