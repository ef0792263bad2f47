"""Fits number probes by layer, pushes along them, projects changes on them; records each step, so that runs resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from interventions.activations import Array, check_states, pad_right, project_changes, pushing, read_activations
from interventions.logits import FiniteLogits
from interventions.positions import intervention_mask
from interventions.sites import num_layers
from reft_math.commands.progress import progress
from reft_math.commands.resumable import Record, record_rows
from reft_math.data.prefix import pad_left
from reft_math.data.problem import Problem
from reft_math.decoding.completions import CompletionSettings
from reft_math.errors import UserError
from reft_math.models.adapter import PrefixReftModel
from reft_math.probes.files import load_probes, rounded, save_probes
from reft_math.probes.number import TARGETS, Direction, Probe, directions, fit_probes, held_out, reading_error, unit
from reft_math.probes.number_tables import Answer, Push
from reft_math.probes.number_texts import ProbeText, Sum, probe_text, read_answer
from reft_math.scoring.context import EvaluationContext

# A probe reads numbers at their end, of both roles or of one, and results from the token before they begin.
READS = {
    "number": ("operand", "result"),
    "operand": ("operand",),
    "result": ("result",),
    "upcoming": ("upcoming",),
}


_LARGEST = 198  # for two-digit sums; larger numbers are too few to fit a direction
_FEWEST = 10

# --- fitting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A site in a layer."""

    site: str
    layer: int

    @property
    def id(self) -> str:
        return f"{self.site}-{self.layer}"

    def path(self, folder: Path) -> Path:
        """Returns the file of its probes."""
        return folder / "probes" / f"{self.id}.safetensors"


@dataclass(frozen=True)
class Numbers:
    """The numbers of many texts: a row for each reading, all ``(reading,)``.

    Attributes:
        problems: Ids of their problems.
        is_sum: Whether the problem is a sum.
        roles, places, values: As in `NumberToken`.
    """

    problems: Array
    is_sum: Array
    roles: Array
    places: Array
    values: Array

    @classmethod
    def of(cls, texts: Sequence[ProbeText]) -> Numbers:
        pairs = [(text.problem, reading) for text in texts for reading in text.readings]
        return cls(
            problems=np.array([problem for problem, _ in pairs]),
            is_sum=np.array([problem.startswith("sum/") for problem, _ in pairs]),
            roles=np.array([reading.role for _, reading in pairs]),
            places=np.array([reading.place for _, reading in pairs]),
            values=np.array([reading.value for _, reading in pairs], dtype=np.float64),
        )

    def groups(self, chosen: Array) -> Iterator[tuple[str, str, Array]]:
        """Yields groups of the chosen readings: all, in sums, and in problems, at all places and at each."""
        yield "all", "all", chosen
        for name, within in (("problems", chosen & ~self.is_sum), ("sums", chosen & self.is_sum)):
            if within.any():
                yield name, "all", within
            for place in dict.fromkeys(self.places[within]):
                yield name, str(place), within & (self.places == place)


def fit_places(
    setting: EvaluationContext,
    problems: Sequence[Problem],
    sites: Sequence[str],
    largest: float,
    seed: int,
    folder: Path,
    batch_size: int,
) -> list[Record]:
    """Fits probes of every layer at the given sites, and measures how well they read numbers of held-out problems.

    Args:
        setting: Holds the base to read; interventions do nothing.
        problems: Three quarters are for fitting, a quarter is held out.
        sites: Names from `interventions.sites`.
        largest: Greatest number to read; larger ones are left out.
        seed: Seed of the quarter.
        folder: Folder for ``probes/`` and ``records/probes.jsonl``.
        batch_size: Texts per batch.

    Returns:
        For each place ``site``, ``layer``, ``mean_norm`` (of hidden states at the ends of numbers) and ``readings``,
        rows for a table.
    """
    decoding, model = setting.decoding, setting.model
    texts = [probe_text(item, decoding.template, decoding.tokenizer, largest) for item in problems]
    numbers = Numbers.of(texts)
    is_held_out = held_out(numbers.problems, seed)

    @lru_cache(maxsize=1)
    def activations(site: str) -> Array:
        return _read_all(model, texts, site, batch_size)

    def work(_: Any, missing: Sequence[Place]) -> list[Record]:
        return [_fit(place, activations(place.site)[:, place.layer], numbers, is_held_out, folder) for place in missing]

    places = [Place(site, layer) for site in sites for layer in range(num_layers(model))]
    return record_rows(places, lambda _: 0, work, folder / "records" / "probes.jsonl", "probes", 1)


def _fit(place: Place, hidden: Array, numbers: Numbers, is_held_out: Array, folder: Path) -> Record:
    """Fits probes and writes them to their file before the record that says they exist."""
    probes: dict[tuple[str, str], Probe] = {}
    readings: list[dict[str, Any]] = []
    for reads, roles in READS.items():
        is_read = np.isin(numbers.roles, roles)
        train = is_read & ~is_held_out
        targets = {name: target(numbers.values[train]) for name, target in TARGETS.items()}
        for target, probe in fit_probes(hidden[train], targets).items():
            probes[reads, target] = probe
            head = {"site": place.site, "layer": place.layer, "reads": reads, "target": target}
            for where, at, rows in numbers.groups(is_read & is_held_out):
                truth = TARGETS[target](numbers.values[rows])
                error = reading_error(probe.read(hidden[rows]), truth, numbers.problems[rows])
                readings.append({**head, "where": where, "place": at, **error})
    save_probes(place.path(folder), probes)
    is_number = np.isin(numbers.roles, READS["number"])
    mean_norm = float(np.linalg.norm(hidden[is_number], axis=1).mean())
    return {"site": place.site, "layer": place.layer, "mean_norm": mean_norm, "readings": readings}


def fit_number_directions(
    model: PreTrainedModel, decoding: CompletionSettings, problems: Sequence[Problem], site: str, batch_size: int
) -> Array:
    """Fits the direction along which each layer encodes numbers: ``u = w/‖w‖`` of the probe ``ŷ = wᵀh + c``.

    Args:
        model: The base; interventions on it do nothing.
        decoding: Settings of prompts.
        problems: Problems with solutions; the probe reads the numbers of both.
        site: A name from `interventions.sites`.
        batch_size: Texts per batch.

    Returns:
        ``u: (layer, width)`` float64.

    Raises:
        UserError: The problems hold too few different numbers.
    """
    texts = [probe_text(item, decoding.template, decoding.tokenizer, _LARGEST) for item in problems]
    numbers = Numbers.of(texts)
    is_number = np.isin(numbers.roles, READS["number"])
    if len(set(numbers.values[is_number])) < _FEWEST:
        raise UserError(
            f"a number direction needs {_FEWEST} different numbers of at most {_LARGEST} in problems and solutions;"
            f" these {len(problems)} hold {len(set(numbers.values[is_number]))}: take another --dataset"
        )
    values = {"identity": numbers.values[is_number]}
    hidden = _read_all(model, texts, site, batch_size)[is_number]
    probes = [fit_probes(hidden[:, layer], values)["identity"] for layer in range(num_layers(model))]
    return unit(np.stack([probe.weight for probe in probes]))


def _read_all(model: PreTrainedModel, texts: Sequence[ProbeText], site: str, batch_size: int) -> Array:
    """Returns hidden states ``(reading, layer, width)``, text by text."""
    rows = [(text.token_ids, [reading.token for reading in text.readings]) for text in texts]
    starts = progress(range(0, len(rows), batch_size), name=f"reading {site}", unit="batch")
    read = np.concatenate([read_activations(model, rows[start : start + batch_size], site) for start in starts])
    check_states(read, [text.problem for text in texts for _ in text.readings])
    return read


def number_directions(folder: Path, layers: int) -> Array:
    """Returns ``w: (layer, hidden size)`` of the probes that read any number itself from the residual stream."""
    paths = [Place("block", layer).path(folder) for layer in range(layers)]
    return np.stack([load_probes(path)["number", "identity"].weight for path in paths])


# --- pushing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """Solves sums with the base, greedily.

    Attributes:
        setting: Holds the base.
        batch_size: Sums per batch.
    """

    setting: EvaluationContext
    batch_size: int

    def prompts(self, sums: Sequence[Sum], form: str) -> list[torch.Tensor]:
        decoding = self.setting.decoding
        return [torch.tensor(item.prompt(form, decoding.template, decoding.tokenizer)) for item in sums]

    def solve(
        self, prompts: Sequence[torch.Tensor], max_new_tokens: int, vectors: Mapping[int, torch.Tensor]
    ) -> list[Answer]:
        """Returns the number with which each continuation starts.

        Args:
            prompts: Prompts of the sums.
            max_new_tokens: Enough for the sum and a token that ends it.
            vectors: ``(sum, hidden size)`` by layer, added to the layer's output at every position.
        """
        model, decoding = self.setting.model, self.setting.decoding
        answers: list[Answer] = []
        for start in range(0, len(prompts), self.batch_size):
            settings = {**decoding.settings(), "max_new_tokens": max_new_tokens}
            settings["logits_processor"] = LogitsProcessorList([FiniteLogits()])  # a push may exceed float16
            batch = slice(start, start + self.batch_size)
            inputs = pad_left(prompts[batch], int(decoding.tokenizer.pad_token_id)).to(model.device)
            attention_mask = pad_left([torch.ones_like(prompt) for prompt in prompts[batch]], 0).to(model.device)
            with pushing(model, {layer: vector[batch, None] for layer, vector in vectors.items()}):
                output = model.generate(inputs, attention_mask=attention_mask, **settings)
            answers += [read_answer(decoding.text(row)) for row in output.sequences[:, inputs.shape[1] :].tolist()]
        return answers


@dataclass(frozen=True)
class Pusher:
    """Vectors to push with.

    Attributes:
        norms: Mean norms of the residual stream, ``n: (layer,)``.
        drawn: Directions, ``u: (draw, layer, hidden size)`` for each kind.
    """

    norms: Array
    drawn: Mapping[Direction, Array]

    @classmethod
    def draw(cls, weights: Array, norms: Array, draws: int, seed: int) -> Pusher:
        """Makes the probes' own directions, and ``draws`` random and orthogonal ones."""
        counts: dict[Direction, int] = {"probe": 1, "random": draws, "orthogonal": draws}
        return cls(
            norms,
            {
                kind: np.stack(
                    [directions(weights, kind, np.random.default_rng([seed, draw])) for draw in range(count)]
                )
                for kind, count in counts.items()
            },
        )

    def vectors(self, push: Push, count: int) -> dict[int, torch.Tensor]:
        """Returns ``α n_l u_l`` for ``count`` sums, ``(sum, hidden size)`` by layer; sum i uses draw i mod draws."""
        drawn = self.drawn[push.direction]
        mine = drawn[np.arange(count) % len(drawn)]
        return {
            layer: torch.from_numpy(push.alpha * self.norms[layer] * mine[:, layer]).float() for layer in push.layers
        }


def solve_pushed(
    solver: Solver,
    prompts: Sequence[torch.Tensor],
    pushes: Sequence[Push],
    pusher: Pusher,
    max_new_tokens: int,
    path: Path,
) -> dict[str, list[Answer]]:
    """Returns answers to all sums under every push, by the push's id.

    Args:
        solver: Solver of the sums.
        prompts: Prompts of the sums.
        pushes: The pushes, each once.
        pusher: Maker of their vectors.
        max_new_tokens: As in `Solver.solve`.
        path: File of the records.
    """

    def work(_: Any, missing: Sequence[Push]) -> list[Record]:
        vectors = [pusher.vectors(push, len(prompts)) for push in missing]
        return [{"answers": solver.solve(prompts, max_new_tokens, by_layer)} for by_layer in vectors]

    records = record_rows(pushes, lambda _: 0, work, path, "pushes", 1)
    return {record["id"]: record["answers"] for record in records}


# --- changes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActingAdapter:
    """An adapter to measure, with its gate.

    Attributes:
        name: Displayed name.
        file: Name of the records' file.
        reft_model: The base with its interventions.
        gate: The gate.
    """

    name: str
    file: str
    reft_model: PrefixReftModel
    gate: str


def measure_changes(
    decoding: CompletionSettings,
    source: ActingAdapter,
    problems: Sequence[Problem],
    weights: Array,
    folder: Path,
    batch_size: int,
) -> list[Record]:
    """Measures an adapter's changes along the probes while it solves problems.

    Token t is drawn from the hidden states at the token before it, t = 0 from those at the prompt's end. These are
    measured by `project_changes` while the gate is open. Once it is closed the base goes on alone.

    Args:
        decoding: Settings of prompts.
        source: The adapter.
        problems: Problems to solve.
        weights: Probes, ``w: (layer, hidden size)``.
        folder: Folder for the records.
        batch_size: Completions per batch.

    Returns:
        For each problem ``num_tokens``, and ``projections`` and ``sizes``, ``(token, layer)`` in the model's units, for
        the tokens drawn with interventions.
    """
    units = torch.from_numpy(unit(weights)).float()

    def work(_: Any, missing: Sequence[Problem]) -> list[Record]:
        return _changes(decoding, source, [problem.question for problem in missing], units)

    path = folder / "records" / f"changes-{source.file}.jsonl"
    return record_rows(problems, lambda problem: len(problem.question), work, path, source.name, batch_size)


def _changes(
    decoding: CompletionSettings, source: ActingAdapter, questions: Sequence[str], units: torch.Tensor
) -> list[Record]:
    reft_model = source.reft_model
    device = reft_model.model.device
    prompts = decoding.prompts(questions)
    inputs = pad_left(prompts, int(decoding.tokenizer.pad_token_id)).to(device)
    attention_mask = pad_left([torch.ones_like(prompt) for prompt in prompts], 0).to(device)
    output = reft_model.generate(inputs, attention_mask=attention_mask, gate=source.gate, **decoding.settings())
    closings = getattr(output, "closing_positions", None)
    rows: list[list[int]] = []
    acts: list[torch.Tensor] = []
    counts: list[tuple[int, int]] = []
    for index, (prompt, drawn) in enumerate(zip(prompts, output.sequences[:, inputs.shape[1] :].tolist(), strict=True)):
        length = decoding.read(drawn)["num_tokens"]
        closing = -1 if closings is None else int(closings[index])
        gated = length if closing < 0 else min(closing, length)
        rows.append(prompt.tolist() + drawn[: max(gated, 1) - 1])
        acts.append(intervention_mask(torch.arange(len(rows[-1])) - len(prompt), reft_model.positions))
        counts.append((length, gated))
    mask = torch.nn.utils.rnn.pad_sequence(acts, batch_first=True).to(device)
    measured = project_changes(reft_model, pad_right(rows, device), mask, units.to(device))
    found = []
    for index, (prompt, (length, gated)) in enumerate(zip(prompts, counts, strict=True)):
        at = slice(len(prompt) - 1, len(prompt) - 1 + gated)
        projections, sizes = (values[index, at].tolist() for values in measured)
        found.append({"num_tokens": length, "projections": rounded(projections), "sizes": rounded(sizes)})
    return found
