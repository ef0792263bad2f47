"""LoRA with as many parameters as something else has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reft_math.errors import UserError


def match_parameters(model: PreTrainedModel, count: int, target_modules: str | None = None) -> tuple[str, int]:
    """Target modules, comma-separated, and rank of the LoRA whose parameters come closest to ``count``.

    Args:
        model: The base.
        count: Parameters wanted.
        target_modules: Taken as they are where given; else any choice of linear modules, the same in every layer.

    Raises:
        UserError: The closest is more than a tenth away, or a named module is none of the model's.
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
    """LoRA's parameters for each rank, ``Σ (d_in + d_out)``, by name of linear module; the output layer left out."""
    output = model.get_output_embeddings()
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        if module is output or not isinstance(module, nn.Linear | Conv1D):
            continue
        # A quantised linear's weight is packed: its shape is not the module's.
        is_linear = isinstance(module, nn.Linear)
        width = module.in_features + module.out_features if is_linear else sum(module.weight.shape)
        name = path.rpartition(".")[2]
        sizes[name] = sizes.get(name, 0) + int(width)
    return sizes


def closest(sizes: Mapping[str, int], count: int, whole: bool) -> tuple[Sequence[str], int]:
    """Modules and rank ``r ≥ 1`` that bring ``r · Σ size`` closest to ``count``.

    Of equally close choices the one of most modules, then of those that stand first in the model.

    Args:
        sizes: Parameters for each rank by module, in the model's order.
        count: Parameters wanted.
        whole: Whether all modules have to be taken.
    """
    fewest = len(sizes) if whole else 1
    choices = [choice for number in range(len(sizes), fewest - 1, -1) for choice in combinations(sizes, number)]
    ranks = [max(1, round(count / sum(sizes[name] for name in choice))) for choice in choices]

    def distance(pair: tuple[Sequence[str], int]) -> int:
        choice, rank = pair
        return abs(rank * sum(sizes[name] for name in choice) - count)

    return min(zip(choices, ranks, strict=True), key=distance)
