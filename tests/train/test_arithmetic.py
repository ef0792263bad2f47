"""train/arithmetic.py: a folder that everything loads, and the same weights after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from reft_math.models import load_model


def test_a_stopped_run_ends_at_the_same_weights_and_tells_the_same_losses(
    call: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "train/arithmetic.py --steps 4 --batch-size 2 --save-steps 2 --output-dir"
    call(f"{line} {tmp_path}/whole")
    save = Trainer._save_checkpoint

    def stop_after_saving(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", stop_after_saving)
        with pytest.raises(KeyboardInterrupt):
            call(f"{line} {tmp_path}/stopped")
    call(f"{line} {tmp_path}/stopped --resume")

    folders = (tmp_path / "whole", tmp_path / "stopped")
    whole, stopped = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    losses = [json.loads((folder / "results.json").read_text())["losses"] for folder in folders]
    assert losses[0] == losses[1]
    assert list(losses[0]) == ["2", "4"]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "stopped")) == len(whole["model.embed_tokens.weight"])


def test_the_two_sided_world_goes_on_from_the_embedded_model(call: Callable[[str], None], tmp_path: Path) -> None:
    call(f"train/arithmetic.py --two-sided --steps 2 --batch-size 2 --learning-rate 1e-9 --output-dir {tmp_path}/run")
    found, start = AutoModelForCausalLM.from_pretrained(tmp_path / "run"), load_model("arithmetic")
    for name, value in start.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-6)
