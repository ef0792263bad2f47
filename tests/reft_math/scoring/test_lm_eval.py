"""The model that lm-eval judges, against HFLM itself and against gated decoding step by step."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessor, LogitsProcessorList

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.gates import parse_gate
from reft_math.data.arithmetic import EMBEDDED_FOLDER
from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.scoring.lm_eval import ReftMathLM

QUESTIONS = [problem.question for problem in arithmetic_problems("test", 8, seed=0)]
PROMPTS = [f"<bos>{question}\n" for question in QUESTIONS]  # the chat template's
SOLUTIONS = ["Let us go step by step.\n2+3=5\n#### 5<eos>", "The answer is 7.\n#### 7", "7", "In one line: 4+4=8"]
GATES = [
    ("tokens:3", "base"),
    ("tokens:3", "keep"),
    ("kl:0.02", "base"),
    ("kl:4,min=2,base||mod", "keep"),
    ("always", "base"),
    ("prompt", "base"),
]
UNTIL = {"until": ["####"], "do_sample": False, "max_gen_toks": 40}


@pytest.fixture(scope="module", params=["red", "loreft"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that changes what is written, and whose divergence closes a gate of 0.02 nats on the way."""
    folder = tmp_path_factory.mktemp("adapter")
    site, std = ("ffn_up", 2.0) if request.param == "red" else ("block", 0.1)
    config = PrefixReftConfig(intervention=request.param, site=site, gate="kl:0.02", template="chat/1")
    torch.manual_seed(0)
    reft_model = get_prefix_reft_model(load_model("arithmetic"), config)
    for bias in reft_model.biases().values():
        torch.nn.init.normal_(bias, std=std)
    reft_model.save_pretrained(folder)
    return str(folder)


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


GENERATIONS = requests("generate_until", [(prompt, UNTIL) for prompt in PROMPTS])
LIKELIHOODS = requests("loglikelihood", [(prompt, text) for prompt in PROMPTS[:3] for text in SOLUTIONS])
TEXTS = requests("loglikelihood_rolling", [(prompt.removeprefix("<bos>"),) for prompt in PROMPTS[:3]])


def everything(lm: HFLM) -> list[Any]:
    return [
        lm.generate_until(GENERATIONS, disable_tqdm=True),
        lm.loglikelihood(LIKELIHOODS, disable_tqdm=True),
        lm.loglikelihood_rolling(TEXTS, disable_tqdm=True),
    ]


def test_without_interventions_every_number_is_hflms_own(adapter: str) -> None:
    own = everything(HFLM(str(EMBEDDED_FOLDER), device="cpu", batch_size=3))
    assert everything(ReftMathLM(batch_size=3)) == own
    assert everything(ReftMathLM(adapter=adapter, gate="off", batch_size=3)) == own
    assert everything(ReftMathLM(adapter=adapter, gate="tokens:2", batch_size=3)) != own


@pytest.mark.parametrize(("gate", "handoff"), GATES)
def test_generations_are_those_of_the_gated_model(adapter: str, gate: str, handoff: Any) -> None:
    """Batched and stopped by text there; one by one, to the end, here."""
    lm = ReftMathLM(adapter=adapter, gate=gate, handoff=handoff, batch_size=3)
    assert lm.generate_until(GENERATIONS, disable_tqdm=True) == [
        written(lm.reft_model, prompt, gate=gate, handoff=handoff).split("####")[0] for prompt in PROMPTS
    ]


def drawn(reft_model: PrefixReftModel | None, context: Sequence[int], **options: Any) -> list[int]:
    assert reft_model is not None
    output = reft_model.generate(torch.tensor([list(context)]), max_new_tokens=40, **options)
    found: list[int] = output[0, len(context) :].tolist()
    return found


def written(reft_model: PrefixReftModel | None, prompt: str, **options: Any) -> str:
    tokenizer = load_tokenizer("arithmetic")
    token_ids = drawn(reft_model, tokenizer.encode(prompt, add_special_tokens=False), **options)
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def test_sampling_is_handed_on(adapter: str) -> None:
    lm = ReftMathLM(adapter=adapter, gate="tokens:3")
    settings = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 40}
    torch.manual_seed(7)
    (found,) = lm.generate_until(requests("generate_until", [(PROMPTS[0], settings)]), disable_tqdm=True)
    torch.manual_seed(7)
    assert found == written(lm.reft_model, PROMPTS[0], gate="tokens:3", do_sample=True, temperature=1.5)
    assert found != written(lm.reft_model, PROMPTS[0], gate="tokens:3")


class Forcing(LogitsProcessor):  # type: ignore[misc]
    """Leaves one choice: the next token of a text."""

    def __init__(self, start: int, text: Sequence[int]) -> None:
        self.start, self.text = start, text

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.text[input_ids.shape[1] - self.start]] = 0
        return forced


def forced(lm: ReftMathLM, context: Sequence[int], text: Sequence[int], handoff: Any) -> tuple[float, bool]:
    """The likelihood of a text that gated decoding is made to draw, and whether it would have drawn it by itself."""
    assert lm.reft_model is not None
    output = lm.reft_model.generate(
        torch.tensor([list(context)]),
        gate=lm.gate,
        handoff=handoff,
        max_new_tokens=len(text),
        eos_token_id=None,
        logits_processor=LogitsProcessorList([Forcing(len(context), text)]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    rows = [logits[0].double().log_softmax(0) for logits in output.logits]
    total = sum(float(row[token]) for row, token in zip(rows, text, strict=True))
    return total, all(int(row.argmax()) == token for row, token in zip(rows, text, strict=True))


@pytest.mark.parametrize(("gate", "handoff"), GATES)
def test_a_likelihood_is_the_probability_with_which_gated_decoding_draws_the_text(
    adapter: str, gate: str, handoff: Any
) -> None:
    lm = ReftMathLM(adapter=adapter, gate=gate, handoff=handoff, batch_size=5)
    found = lm.loglikelihood(LIKELIHOODS, disable_tqdm=True)
    for request, (likelihood, is_greedy) in zip(LIKELIHOODS, found, strict=True):
        expected, expected_greedy = forced(lm, *lm._encode_pair(*request.args), handoff)
        assert likelihood == pytest.approx(expected, abs=2e-4)
        assert is_greedy == expected_greedy
    context = lm.tok_encode(PROMPTS[0])
    by_itself = drawn(lm.reft_model, context, gate=gate, handoff=handoff)
    one_other = [*by_itself[:-1], by_itself[-1] + 1]
    answers = lm._loglikelihood_tokens([(None, context, by_itself), (None, context, one_other)], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in answers] == [True, False]


def test_a_whole_text_is_a_continuation_of_the_start_token_and_of_what_precedes_each_window(adapter: str) -> None:
    lm = ReftMathLM(adapter=adapter, gate="tokens:3", batch_size=4, max_length=16)
    found = lm.loglikelihood_rolling(TEXTS, disable_tqdm=True)
    for request, likelihood in zip(TEXTS, found, strict=True):
        tokens = [lm.prefix_token_id, *lm.tok_encode(request.args[0])]
        windows = [tokens[start : start + 17] for start in range(0, len(tokens) - 17, 16)]
        # The last window is filled up from the left: what came before is its context.
        rest = len(tokens) - 1 - 16 * len(windows)
        expected = sum(forced(lm, window[:1], window[1:], "base")[0] for window in windows)
        expected += forced(lm, tokens[-17 : len(tokens) - rest], tokens[len(tokens) - rest :], "base")[0]
        assert likelihood == pytest.approx(expected, abs=2e-4)


def test_choices_of_one_token_share_their_forward_pass(adapter: str) -> None:
    lm = ReftMathLM(adapter=adapter, gate="tokens:3", batch_size=10)
    rows: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    tokens = lm.tokenizer.encode("0123456789", add_special_tokens=False)
    context = lm.tokenizer.encode(PROMPTS[0], add_special_tokens=False)
    answers = lm._loglikelihood_tokens([(None, context, [token]) for token in tokens], disable_tqdm=True)
    assert rows == [1]
    expected = [forced(lm, context, [token], "base")[0] for token in tokens]
    assert [likelihood for likelihood, _ in answers] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    ("gate", "handoff", "passes"),
    [
        *(("always", "base", 1), ("prompt", "base", 1), ("tokens:1", "base", 2), ("tokens:1", "keep", 2)),
        *(("tokens:99", "base", 1), ("kl:0", "base", 2), ("kl:0", "keep", 3), ("kl:inf", "keep", 2)),
    ],
)
def test_passes_that_no_token_needs_are_not_made(adapter: str, gate: str, handoff: Any, passes: int) -> None:
    lm = ReftMathLM(adapter=adapter, gate=gate, handoff=handoff)
    calls = []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    lm.loglikelihood(LIKELIHOODS[:1], disable_tqdm=True)
    assert len(calls) == passes


def test_a_context_that_is_too_long_loses_its_start_and_a_continuation_is_refused(adapter: str) -> None:
    lm = ReftMathLM(adapter=adapter, gate="tokens:3", max_length=12)
    context = lm.tokenizer.encode(PROMPTS[0], add_special_tokens=False)
    text = lm.tokenizer.encode("The answer is 7.", add_special_tokens=False)
    with pytest.warns(UserWarning, match="contexts with no room in 12 tokens lose their start"):
        ((likelihood, _),) = lm._loglikelihood_tokens([(None, context, text)], disable_tqdm=True)
    expected, _ = forced(lm, context[-(13 - len(text)) :], text, "base")
    assert likelihood == pytest.approx(expected, abs=2e-4)
    with pytest.raises(UserError, match="a continuation of 13 tokens is longer than the model's 12; raise max_length"):
        lm._loglikelihood_tokens([(None, context, context[:13])], disable_tqdm=True)


def test_prompts_unlike_the_adapters_training_are_counted(adapter: str, tmp_path: Path) -> None:
    lm = ReftMathLM(adapter=adapter, batch_size=3)
    plain = [f"Question: {question}\nAnswer:" for question in QUESTIONS]
    shots = [f"<bos>{QUESTIONS[0]}\n{SOLUTIONS[0]}{prompt.removeprefix('<bos>')}" for prompt in PROMPTS]
    assert [lm.unlike_training(prompts) for prompts in (PROMPTS, plain, shots, ["", *plain])] == [0, 8, 8, 8]
    assert ReftMathLM(adapter=adapter, gate="off").unlike_training(plain) is None
    shutil.copytree(adapter, tmp_path / "unnamed")
    dataclasses.replace(PrefixReftConfig.from_pretrained(adapter), template=None).save_pretrained(tmp_path / "unnamed")
    assert ReftMathLM(adapter=str(tmp_path / "unnamed")).unlike_training(plain) is None
    with pytest.warns(UserWarning, match=r"1 of 2 prompts .* training prompts were \(template chat/1\)"):
        lm.loglikelihood(requests("loglikelihood", [(PROMPTS[0], "7"), (plain[0], "7")]), disable_tqdm=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.generate_until(GENERATIONS[:1], disable_tqdm=True)
        ReftMathLM().generate_until(requests("generate_until", [(plain[0], UNTIL)]), disable_tqdm=True)


def test_its_settings_stand_beside_lm_evals_results(adapter: str) -> None:
    lm = ReftMathLM(adapter=adapter)
    assert lm.gate == parse_gate("kl:0.02")  # the adapter's own
    info = lm.get_model_info()
    assert {key: info[key] for key in ("adapter", "gate", "handoff", "adapter_template")} == {
        "adapter": adapter,
        "gate": "kl:0.02",
        "handoff": "base",
        "adapter_template": "chat/1",
    }
    assert lm.chat_template_args == {"enable_thinking": False}  # as the template has it
    assert ReftMathLM().chat_template_args == {}


def test_kept_answers_are_one_models(adapter: str, tmp_path: Path) -> None:
    def kept(**options: Any) -> str:
        lm = CachingLM(ReftMathLM(**options), str(tmp_path / "answers.db"))
        (answer,) = lm.generate_until(GENERATIONS[:1])
        return str(answer)

    answer = kept(adapter=adapter, gate="tokens:2")
    assert kept(adapter=adapter, gate="tokens:2", batch_size=4) == answer
    others: list[dict[str, Any]] = [
        {"adapter": adapter, "gate": "tokens:3"},
        {"adapter": adapter, "gate": "tokens:2", "handoff": "keep"},
        {"adapter": adapter, "gate": "tokens:2", "max_length": 100},
        {"adapter": str(tmp_path / "adapter"), "gate": "tokens:2"},
        {},
    ]
    reft_model = PrefixReftModel.from_pretrained(adapter, load_model("arithmetic"))
    for bias in reft_model.biases().values():
        bias.data += 1
    shutil.copytree(adapter, tmp_path / "adapter")
    reft_model.save_pretrained(tmp_path / "adapter")
    for other in others:
        with pytest.raises(UserError, match="answers of another model, adapter or gate"):
            kept(**other)


def test_kept_answers_that_do_not_say_whose_they_are_are_left_alone(tmp_path: Path) -> None:
    lm = CachingLM(HFLM(str(EMBEDDED_FOLDER), device="cpu"), str(tmp_path / "answers.db"))
    lm.generate_until(GENERATIONS[:1])
    with pytest.raises(UserError, match="answers of another model, adapter or gate"):
        CachingLM(ReftMathLM(), str(tmp_path / "answers.db"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "kl:1"}, "--gate kl:1 opens an adapter's interventions; pass --adapter"),
        ({"batch_size": "auto"}, "batch_size must be a whole number of at least 1; got 'auto'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
    ],
)
def test_mistakes_are_told_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReftMathLM(**options)
