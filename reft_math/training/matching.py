"""Chooses a LoRA with a given number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reft_math.errors import UserError


def match_parameters(model: PreTrainedModel, count: int, target_modules: str | None = None) -> tuple[str, int]:
    """Returns comma-separated target modules and rank of the LoRA whose parameter count is closest to ``count``.

    Args:
        model: The base.
        count: Wanted number of parameters.
        target_modules: Modules to use; by default any choice of linear modules, the same in every layer.

    Raises:
        UserError: The closest differs by more than a tenth, or the model has no module of a given name.
    """
    sizes = sizes_per_rank(model)
    if target_modules not in (None, "all-linear"):
        names = target_modules.split(",")
        if missing := [name for name in names if name not in sizes]:
            raise UserError(f"--target-modules must be of {', '.join(sizes)} to be matched; got {missing[0]!r}")
        sizes = {name: sizes[name] for name in names}
    modules, rank = closest(sizes, count, whole=target_modules is not None)
    found = rank * sum(sizes[name] for name in modules)
    if abs(found - count) > count / 10:
        raise UserError(
            f"--match must be within a tenth of what LoRA can have; the closest to {count:,} parameters is"
            f" {found:,}, rank {rank} on {','.join(modules)}: set --rank and --target-modules yourself"
        )
    return ",".join(modules), rank


def sizes_per_rank(model: PreTrainedModel) -> dict[str, int]:
    """Returns LoRA's parameters per rank, ``Σ (d_in + d_out)``, by linear module, without the output layer."""
    output = model.get_output_embeddings()
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        if module is output or not isinstance(module, nn.Linear | Conv1D):
            continue
        # A quantised weight is packed: its shape is not the module's.
        is_linear = isinstance(module, nn.Linear)
        width = module.in_features + module.out_features if is_linear else sum(module.weight.shape)
        name = path.rpartition(".")[2]
        sizes[name] = sizes.get(name, 0) + int(width)
    return sizes


def closest(sizes: Mapping[str, int], count: int, whole: bool) -> tuple[Sequence[str], int]:
    """Returns the modules and rank ``r ≥ 1`` that bring ``r · Σ size`` closest to ``count``.

    Among equally close choices the one with most modules wins, then the one whose modules come first in the model.

    Args:
        sizes: Parameters per rank by module, in the model's order.
        count: Wanted number of parameters.
        whole: Use all modules.
    """
    fewest = len(sizes) if whole else 1
    choices = [choice for number in range(len(sizes), fewest - 1, -1) for choice in combinations(sizes, number)]
    ranks = [max(1, round(count / sum(sizes[name] for name in choice))) for choice in choices]

    def distance(pair: tuple[Sequence[str], int]) -> int:
        choice, rank = pair
        return abs(rank * sum(sizes[name] for name in choice) - count)

    return min(zip(choices, ranks, strict=True), key=distance)
