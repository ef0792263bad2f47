from __future__ import annotations

import importlib.util

import pytest
import torch

from reft_math.commands.options.training import FittingOptions
from reft_math.errors import UserError
from reft_math.training.arguments import check_precision


def test_float16_autocast_is_refused_where_accelerate_would_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        for precision in ("no", "bf16"):
            check_precision(FittingOptions(mixed_precision=precision))
        check_precision(FittingOptions(mixed_precision="fp16", dry_run=True))  # of a run on another machine
        if has_gpu:
            check_precision(FittingOptions(mixed_precision="fp16"))
        else:
            with pytest.raises(UserError, match="--mixed-precision fp16 needs a GPU, and there is none; take bf16"):
                check_precision(FittingOptions(mixed_precision="fp16"))


@pytest.mark.parametrize("service", ["tensorboard", "trackio", "wandb"])
def test_a_service_whose_package_is_absent_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == service else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match=rf"--report-to {service} needs the package .* uv sync --extra {service}$"):
        FittingOptions(report_to=service)  # type: ignore[arg-type]
