"""Makes a page of completions, each token coloured by its divergence."""

from __future__ import annotations

import math
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from interventions.gates import AlwaysOn, Direction, Gate, KLGate, TokenGate, parse_gate
from interventions.generation import GatedOutput
from reft_math.commands.progress import progress
from reft_math.data.problem import Problem
from reft_math.data.registry import problems_to_report_on
from reft_math.experiments.figures.token_view import Answer, AnsweredProblem, Token, token_texts, token_view
from reft_math.files.atomic import write_text
from reft_math.scoring.context import EvaluationContext, load_setting
from reft_math.scoring.evaluate import Score, Scorer, is_numeric


def make_token_view(options: Any) -> None:
    """Makes a page of completions, tokens coloured by divergence, with the options of ``eval/token_view.py``."""
    problems = problems_to_report_on(options.dataset, options.data_dir)
    setting = load_setting(options, options.dataset)
    gate = parse_gate(str(setting.options.gate))
    direction = gate.direction if isinstance(gate, KLGate) else "mod||base"
    decoders = _decoders(gate, direction)
    answered = []
    with Scorer(is_numeric(options.dataset, problems)) as score:
        for problem in progress(problems[: options.problems], name=options.dataset, unit="problem"):
            answers = [_answer(setting, problem, name, its_gate, score) for name, its_gate in decoders.items()]
            answered.append(AnsweredProblem(problem.id, problem.question, problem.answer, answers))
    facts = setting.provenance()
    settings = {
        "model": " at ".join(filter(None, (setting.options.model, facts["base_commit"]))),
        "adapter": str(options.adapter),
        "gate": str(gate),
        "handoff": options.handoff,
        "template": str(setting.decoding.template),
        "dataset": options.dataset,
        "date": facts["date"],
    }
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    made_by = {"command": facts["command"], "commit": facts["commit"] or "unknown", "versions": versions}
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, token_view(answered, settings, made_by, direction))
    print(f"page: {path}")


def _decoders(gate: Gate, direction: Direction) -> dict[str, Gate]:
    """Returns the page's columns; a gate that never opens or never closes has no column of its own.

    An infinite threshold draws the tokens of ``always`` and measures the divergence at each.
    """

    base, always_on = TokenGate(0), KLGate(math.inf, direction)
    gated = {} if gate in (base, always_on, AlwaysOn()) else {"gated": gate}
    return {"base": base, **gated, "always on": always_on}


def _answer(setting: EvaluationContext, problem: Problem, decoder: str, gate: Gate, score: Score) -> Answer:
    """Decodes one row per call: in a batch rows would be padded, and the page is for a few problems."""

    decoding, tokenizer = setting.decoding, setting.decoding.tokenizer
    prompt = decoding.prompts([problem.question])[0][None].to(setting.model.device)
    generate = setting.generate(str(gate))
    output = generate(prompt, attention_mask=torch.ones_like(prompt), **decoding.settings())
    token_ids = output.sequences[0, prompt.shape[1] :].tolist()
    read, end = decoding.read(token_ids), decoding.until_end(token_ids)
    decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = token_texts(token_ids[:end], decode) + [""] * (end is not None)
    names = tokenizer.convert_ids_to_tokens(token_ids)
    closing_position, dead_band, kl = -1, 0.0, []
    if isinstance(output, GatedOutput) and output.closing_positions is not None:
        closing_position, dead_band = int(output.closing_positions[0]), output.dead_band or 0.0
        kl = [] if output.kl is None else output.kl[0].tolist()  # empty if the gate allows no token
    return Answer(
        decoder=decoder,
        tokens=[Token(*token) for token in zip_longest(token_ids, names, texts, kl)],
        is_correct=score([(problem.answer, read["completion"])])[0]["correct"],
        is_finished=read["finished"],
        closing_position=None if closing_position < 0 else closing_position,
        threshold=gate.threshold if isinstance(gate, KLGate) else math.inf,
        dead_band=dead_band,
    )
