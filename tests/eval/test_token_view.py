from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.data.registry import load_problems
from reft_math.data.templates import TEMPLATES, encode_prompt
from reft_math.experiments import token_view
from reft_math.experiments.figures.token_view import AnsweredProblem
from reft_math.models import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter under which the divergence passes 0.02 nats at tokens 4 or 5."""
    folder = tmp_path_factory.mktemp("adapter")
    reft_model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(gate="kl:0.02", template="chat/1"))
    torch.manual_seed(0)
    for bias in reft_model.biases().values():
        torch.nn.init.normal_(bias, std=2.0)
    reft_model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command hands to the figure."""
    calls: list[Any] = []
    draw = token_view.token_view

    def spy(*arguments: Any) -> str:
        calls.extend(arguments)
        return draw(*arguments)

    monkeypatch.setattr(token_view, "token_view", spy)
    return calls


def generated(reft_model: PrefixReftModel, question: str, gate: str) -> tuple[Any, list[int]]:
    """What `PrefixReftModel.generate` draws, and the ids of the completion alone."""
    tokenizer = load_tokenizer("arithmetic")
    prompt = torch.tensor([encode_prompt(TEMPLATES["chat"], question, tokenizer)])
    output = reft_model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        gate=gate,
        max_new_tokens=30,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )
    return output, output.sequences[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("gate", "count"), [("kl:0.02", 13), ("tokens:4", 3), ("kl:0.02,base||mod", 3), ("kl:1,max=0", 3)]
)
def test_shows_what_the_model_generates_and_what_its_gate_saw(
    call: Callable[[str], None], adapter: str, drawn: list[Any], tmp_path: Path, gate: str, count: int
) -> None:
    options = "" if gate == "kl:0.02" else f"--gate '{gate}'"  # the adapter's own is the default
    options += f" --problems {count} --max-new-tokens 30 --output {tmp_path}/a/b.html"
    call(f"eval/token_view.py --adapter {adapter} {options}")
    assert (tmp_path / "a" / "b.html").read_text().startswith("<!DOCTYPE html>\n<html")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.html"]
    answered: Sequence[AnsweredProblem] = drawn[0]
    problems = load_problems("arithmetic", "test")[:count]
    assert [(row.id, row.question, row.gold) for row in answered] == [(p.id, p.question, p.answer) for p in problems]
    assert [row.answers[0].is_correct for row in answered] == ([False] * 12 + [True])[:count]
    tokenizer = load_tokenizer("arithmetic")
    reft_model = PrefixReftModel.from_pretrained(adapter, load_model("arithmetic"))
    for problem in answered:
        assert [answer.decoder for answer in problem.answers] == ["base", "gated", "always on"]
        for answer, its_gate in zip(problem.answers, ("off", gate, "always"), strict=True):
            output, token_ids = generated(reft_model, problem.question, its_gate)
            assert [token.token_id for token in answer.tokens] == token_ids
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
            assert "".join(token.text for token in answer.tokens) == text
            assert answer.is_finished == (token_ids[-1] == tokenizer.eos_token_id)
            assert answer.is_correct == text.endswith(f" {problem.gold}")
            if its_gate == gate:
                assert answer.closing_position == output.closing_positions[0] >= 0
                kl = [] if gate.endswith("max=0") else output.kl[0].tolist()
                assert [token.kl for token in answer.tokens if token.kl is not None] == kl
            else:
                measured = [token.kl is not None for token in answer.tokens]
                assert measured == [its_gate == "always"] * len(token_ids)


@pytest.mark.parametrize("gate", ["off", "always", "kl:inf"])
def test_a_gate_that_never_opens_or_never_closes_has_no_column_of_its_own(
    call: Callable[[str], None], adapter: str, drawn: list[Any], tmp_path: Path, gate: str
) -> None:
    options = f"--gate {gate} --problems 1 --max-new-tokens 4 --output {tmp_path}/a.html"
    call(f"eval/token_view.py --adapter {adapter} {options}")
    assert [answer.decoder for answer in drawn[0][0].answers] == ["base", "always on"]
    assert not any(answer.is_finished for answer in drawn[0][0].answers)
    assert {"model": "arithmetic", "gate": gate, "dataset": "arithmetic"}.items() <= drawn[1].items()
    assert drawn[2].keys() == {"command", "commit", "versions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--adapter must be an adapter's folder or hub id"),
        ("--adapter {adapter} --gate half", "a gate is 'off'"),
        ("--adapter {adapter} --problems 0", "--problems must be at least 1; got 0"),
        ("--adapter {adapter} --dataset shopping", 'unknown data set "shopping"'),
        ("--adapter {adapter} --output {folder}", "--output must be a file; {folder} is a folder"),
        (
            "--adapter {adapter} --output {folder}/file/a.html",
            "--output must be a file in a folder that can be",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    refused: Callable[[str, str], str],
    adapter: str,
    tmp_path: Path,
    arguments: str,
    message: str,
) -> None:
    (tmp_path / "file").touch()
    places = {"adapter": adapter, "folder": tmp_path}
    refused(f"eval/token_view.py {arguments.format(**places)}", message.format(**places))


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['eval/token_view.py', '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
