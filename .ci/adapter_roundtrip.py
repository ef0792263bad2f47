"""Saves a tiny base with adapters and what they answer, or checks that they still answer so.

python .ci/adapter_roundtrip.py save FOLDER
python .ci/adapter_roundtrip.py check FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyreft
import torch
import transformers
from safetensors.torch import load_file, save_file

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model

ADAPTERS = {
    "red": PrefixReftConfig(intervention="red", site="ffn_up"),
    "loreft": PrefixReftConfig(intervention="loreft", site="block", rank=3, act_fn="relu", dropout=0.1),
    "direft": PrefixReftConfig(intervention="direft", site="attn_o", rank=2, layers=(0, 2)),
}
GATES = ("kl:0.05,min=1", "tokens:3", "always")
PROMPTS = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


def save(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    for name, adapter in ADAPTERS.items():
        reft_model = get_prefix_reft_model(_base(folder), adapter)
        with torch.no_grad():
            for parameter in reft_model.interventions.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        reft_model.save_pretrained(folder / name)
        loaded = PrefixReftModel.from_pretrained(folder / name, _base(folder))
        save_file(_answers(loaded), folder / f"{name}.safetensors")


def check(folder: Path) -> None:
    for name in ADAPTERS:
        expected = load_file(folder / f"{name}.safetensors")
        base = _base(folder)
        found = _answers(PrefixReftModel.from_pretrained(folder / name, base))
        assert found.keys() == expected.keys()
        for gate in GATES:
            assert torch.equal(found[gate], expected[gate]), f"{name}, {gate}: other completions"
        torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=0)
        stock = pyreft.ReftModel.load(str(folder / name), base)
        stock.interventions.eval()
        theirs = stock({"input_ids": PROMPTS})[1].logits
        torch.testing.assert_close(theirs, expected["logits"], atol=1e-5, rtol=0)


def _base(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()


@torch.no_grad()
def _answers(model: PrefixReftModel) -> dict[str, torch.Tensor]:
    mask = (PROMPTS != 0).long()
    texts = {
        gate: model.generate(PROMPTS, gate=gate, attention_mask=mask, max_new_tokens=12, do_sample=False)
        for gate in GATES
    }
    return {"logits": model(PROMPTS).logits.clone(), **texts}


if __name__ == "__main__":
    {"save": save, "check": check}[sys.argv[1]](Path(sys.argv[2]))
    print(f"transformers {transformers.__version__}: {sys.argv[1]} {len(ADAPTERS)} adapters")
