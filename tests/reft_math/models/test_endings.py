"""What ends a turn ends it everywhere: evaluations, `PrefixReftModel.generate`, lm-eval, the engine, a LoRA folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import make_tokenizer
from lm_eval.api.instance import Instance
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.commands.options.evaluation import ModelOptions
from reft_math.models import load_model, load_tokenizer
from reft_math.scoring.context import load_setting
from reft_math.scoring.lm_eval import ReftMathLM

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER = make_tokenizer(CHATML)
EOS, TURN_END = TOKENIZER.convert_tokens_to_ids(["</s>", "<|im_end|>"])
# Two ways to go on behind the answer, and what each template takes for the answer.
WRITTEN = {"chat/1": "7<|im_end|>\n<|im_start|>user\nWhy?", "plain/1": " 7\nQuestion: Why?"}
ANSWERS = {"chat/1": "7", "plain/1": " 7\n"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model with a chat template, by the name of its template, and the same without one.

    Its checkpoint ends sequences with ``</s>`` alone.
    """
    folders = {}
    for template, chat_template in (("chat/1", CHATML), ("plain/1", None)):
        folder = tmp_path_factory.mktemp("base")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=EOS,
            max_position_embeddings=256,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        make_tokenizer(chat_template).save_pretrained(folder)
        folders[template] = str(folder)
    return folders


@pytest.fixture(scope="module")
def adapters(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = {}
    for template, base in bases.items():
        folders[template] = str(tmp_path_factory.mktemp("adapter"))
        config = PrefixReftConfig(template=template, base_model=base, gate="tokens:2")
        get_prefix_reft_model(load_model(base), config).save_pretrained(folders[template])
    return folders


def script(model: PreTrainedModel, text: str) -> list[int]:
    """Has the model write a text, and then nothing but sevens. Returns a list that grows by one at each step."""
    tokens, steps = TOKENIZER.encode(text), list[int]()

    def write(module: Any, args: Any, output: Any) -> Any:
        output.logits[:] = 0.0
        output.logits[..., tokens[len(steps)] if len(steps) < len(tokens) else TOKENIZER.encode("7")[0]] = 9.0
        steps.append(len(output.logits))
        return output

    model.register_forward_hook(write)
    return steps


def test_a_model_is_loaded_with_every_end_of_its_tokenizer(bases: dict[str, str], tmp_path: Path) -> None:
    assert load_model(bases["chat/1"]).generation_config.eos_token_id == sorted([EOS, TURN_END])
    assert load_model(bases["plain/1"]).generation_config.eos_token_id == [EOS]
    for broken in (None, "{{ 1 / 0 }}"):
        AutoModelForCausalLM.from_pretrained(bases["chat/1"]).save_pretrained(tmp_path)
        if broken is not None:
            make_tokenizer(broken).save_pretrained(tmp_path)
        assert load_model(str(tmp_path)).generation_config.eos_token_id == EOS


@pytest.mark.parametrize("gate", ["off", "always", "tokens:2", "kl:inf"])
@pytest.mark.parametrize("template", WRITTEN)
def test_generate_stops_where_an_evaluation_does(
    bases: dict[str, str], adapters: dict[str, str], template: str, gate: str
) -> None:
    """A base that transformers loaded knows of one end only: the tokenizer, given to ``generate``, says the others."""
    base = AutoModelForCausalLM.from_pretrained(bases[template])
    reft_model = PrefixReftModel.from_pretrained(adapters[template], base)
    tokenizer, prompt = load_tokenizer(bases[template]), torch.tensor([TOKENIZER.encode("Question: Why?")])
    steps = script(base, WRITTEN[template])
    output = reft_model.generate(prompt, gate=gate, tokenizer=tokenizer, max_new_tokens=20)
    assert tokenizer.decode(output[0, prompt.shape[1] :]) in (" 7\nQuestion:", "7<|im_end|>")
    assert len(steps) == (2 if template == "chat/1" else 12)
    steps.clear()
    anew = {"eos_token_id": None, "stopping_criteria": []}
    output = reft_model.generate(prompt, gate=gate, tokenizer=tokenizer, max_new_tokens=15, **anew)
    assert output.shape[1] == prompt.shape[1] + 15


@pytest.mark.filterwarnings("ignore:1 of 1 prompts are not framed")
@pytest.mark.parametrize("gate", [None, "off", "tokens:2"])
@pytest.mark.parametrize("template", WRITTEN)
def test_lm_eval_stops_where_an_evaluation_does(
    bases: dict[str, str], adapters: dict[str, str], template: str, gate: str | None
) -> None:
    adapter = {} if gate is None else {"adapter": adapters[template], "gate": gate}
    lm = ReftMathLM(pretrained=bases[template], **adapter)
    steps = script(lm.model, WRITTEN[template])
    settings = {"until": ["###"], "do_sample": False, "max_gen_toks": 40}
    (answer,) = lm.generate_until([Instance("generate_until", {}, ("Question: Why?\nAnswer:", settings), 0)])
    assert answer == ANSWERS[template]
    assert len(steps) == (2 if template == "chat/1" else 12)
    assert settings["until"] == ["###"], "what answers are kept by"


def test_a_lora_folders_own_tokenizer_and_chat_template_are_used(bases: dict[str, str], tmp_path: Path) -> None:
    base = bases["chat/1"]
    lora = get_peft_model(load_model(base), LoraConfig(target_modules=["q_proj"]))
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == CHATML
    make_tokenizer(CHATML.replace("<|im_end|>", "<|stop|>")).save_pretrained(tmp_path)
    setting = load_setting(ModelOptions(model=str(tmp_path)), "gsm8k")
    stop = TOKENIZER.convert_tokens_to_ids("<|stop|>")
    assert setting.decoding.template.prompt("Why?", setting.decoding.tokenizer) == (
        "<|im_start|>user\nWhy?<|stop|>\n<|im_start|>assistant\n"
    )
    assert {EOS, stop} <= set(setting.decoding.end_token_ids)
    assert stop in setting.model.generation_config.eos_token_id
    assert json.loads(json.dumps(setting.provenance()))["end_token_ids"] == setting.decoding.end_token_ids
