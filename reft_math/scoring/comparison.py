"""Makes the main table: each run's training, its scores, and the paired test against one of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.data.fingerprint import rows_sha256
from reft_math.errors import UserError
from reft_math.files.records import RecordFile
from reft_math.files.strict import read_object
from reft_math.scoring.lengths import time_cell, tokens_cell, tokens_difference, tokens_interval
from reft_math.scoring.statistics import mcnemar, wilson_interval

TRAINING_COLUMNS = ("data_num", "epochs", "prefix", "lr", "parameters", "norm", "tracking")
SCORE_COLUMNS = ("correct", "total", "accuracy", "95 % interval", "strict", "flexible", "p", "only first", "only this")
COST_COLUMNS = ("tokens an answer", "against first", "cut off", "time an answer")
COMPARISON_COLUMNS = ("run", "decoder", *TRAINING_COLUMNS, *SCORE_COLUMNS, *COST_COLUMNS)

Key = tuple[str, int]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The output folder of a training or an evaluation command."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: str) -> Run:
        path = Path(folder) / RESULTS_NAME
        try:
            results = read_object(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"a run is an output folder with a readable {RESULTS_NAME}; {path}: {reason}") from None
        return cls(Path(folder), results)

    def entries(self, name: str) -> list[Entry]:
        """Returns an entry for each decoder.

        Args:
            name: The run's name in tables.

        Raises:
            UserError: A decoder's records are not one scored completion per problem, or not those of the results.
        """
        decoders = self.results.get("evaluation")
        if not decoders:
            raise UserError(
                f"a comparison needs an evaluation; {self.folder / RESULTS_NAME} holds none: pass output folders of"
                " train/prefix_reft.py, train/lora.py and evaluation commands"
            )
        records = {decoder: self._records(decoder) for decoder in decoders}
        sha256 = self._sha256()
        for decoder, found in records.items():
            if sha256 is not None and sha256 != rows_sha256((record["question"], record["gold"]) for record in found):
                raise UserError(
                    f"records must hold the problems that their {RESULTS_NAME} was made of; {self.folder} ({decoder})"
                    " holds others: evaluate again, into another folder"
                )
        return [
            Entry(
                source=self.folder,
                run=name,
                decoder=decoder,
                training=self._training(decoder),
                records=by_problem(found),
                template=self.results.get("template"),
                sha256=sha256,
                seconds=decoders[decoder].get("seconds_per_answer"),
            )
            for decoder, found in records.items()
        ]

    def _sha256(self) -> str | None:
        """Returns the digest of the problems, or None: older versions wrote no digest."""
        sha256: str | None = self.results.get("fingerprints", {}).get("test", {}).get("sha256")
        return sha256

    def _records(self, decoder: str) -> list[dict[str, Any]]:
        path = self.folder / "records" / f"{decoder}.jsonl"
        records = list(RecordFile(path).done.values())
        if not records or any(not {"question", "gold", "correct"} <= record.keys() for record in records):
            raise UserError(
                f"a comparison needs scored completions; {path} holds none: is it there, and of a command that solves"
                " problems?"
            )
        if any("problem" in record for record in records):
            raise UserError(f"a paired test needs one completion a problem; {self.folder} ({decoder}) holds samples")
        return records

    def _training(self, decoder: str) -> dict[str, Any]:
        """Returns the training of the decoder's adapter, as far as the results say; empty for the base."""
        results = self.results
        if decoder.startswith("base"):
            return {}
        if "train_rows" in results:
            return self._trained()
        # Always-on completions beside an adapter's may be another adapter's.
        adapter = (results.get("reft") if decoder == "always_on" else None) or results.get("adapter")
        return {"prefix": _prefix(adapter["k"])} if adapter else {}

    def _trained(self) -> dict[str, Any]:
        results = self.results
        config, norm = results["config"], results.get("bias_norm") or {}
        return {
            "data_num": results["train_rows"],
            "epochs": config["epochs"],
            "prefix": _prefix(config["k"], config.get("full_fraction", 0.0)) + ", reward" * ("estimator" in config),
            "lr": config["learning_rate"],
            "parameters": results["trainable_parameters"],
            "norm": norm.get("achieved"),
            "tracking": norm.get("tracking_error"),
        }


def run_names(sources: Sequence[str]) -> list[str]:
    """Returns the last part of each path, or the whole path if two share the last part."""
    last = [Path(source).resolve().name for source in sources]
    return [name if last.count(name) == 1 else str(Path(source)) for source, name in zip(sources, last, strict=True)]


def _prefix(k: int | None, full_fraction: float = 0.0) -> str:
    """Returns the number of solution tokens trained on, with the share of rows that kept whole solutions."""
    if k is None or full_fraction == 1:
        return "all"
    return f"{k:d}, {full_fraction:.0%} all" if full_fraction else f"{k:d}"


@dataclass(frozen=True)
class Entry:
    """A row of the table: one completion per problem, by one decoder of one run.

    Attributes:
        source: The run's folder, or the file of completions made elsewhere.
        run, decoder: Names of run and decoder.
        training: Values of `TRAINING_COLUMNS`, if known.
        records: Records by problem, with ``question``, ``gold`` and ``correct``, for numbers also ``strict``.
            Completions made elsewhere have no score at first, and never ``num_tokens``.
        template: The prompts' template; None if unknown.
        sha256: The digest of the problems; None if the run holds no digest.
        seconds: Seconds per answer; None if unknown.
    """

    source: Path
    run: str
    decoder: str
    training: Mapping[str, Any]
    records: Mapping[Key, Record]
    template: str | None = None
    sha256: str | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        return f"{self.run}:{self.decoder}"

    @property
    def is_scored(self) -> bool:
        return all("correct" in record for record in self.records.values())

    @property
    def is_numeric(self) -> bool:
        """Whether answers were compared as numbers."""
        return all("strict" in record for record in self.records.values())

    @property
    def has_lengths(self) -> bool:
        return all("num_tokens" in record for record in self.records.values())

    def count(self, verdict: str) -> int | None:
        """Counts the records with this verdict; None if some records lack it."""
        verdicts = [record.get(verdict) for record in self.records.values()]
        return None if None in verdicts else sum(map(bool, verdicts))

    @property
    def correct(self) -> list[bool]:
        return [bool(record["correct"]) for record in self.records.values()]


def by_problem(records: Sequence[Record]) -> dict[Key, Record]:
    """Returns records by question, ignoring white space, and its count so far: MAWPS asks four questions twice.

    They are ordered by id, with numbers in ids by value: the order of a data set and of a file's lines.
    """
    asked: Counter[str] = Counter()
    keyed = {}
    for record in sorted(records, key=lambda record: _by_value(str(record["id"]))):
        question = " ".join(record["question"].split())
        asked[question] += 1
        keyed[question, asked[question]] = record
    return keyed


def _by_value(name: str) -> list[str | int]:
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def outcomes(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Returns, for each problem, its first id, question and gold, and whether each entry solved it."""
    return [
        {
            **{name: record[name] for name in ("id", "question", "gold")},
            "correct": {entry.name: bool(entry.records[key]["correct"]) for entry in entries},
        }
        for key, record in entries[0].records.items()
    ]


def comparison_rows(entries: Sequence[Entry], against: str) -> list[dict[str, Any]]:
    """Returns a row for each entry, with unformatted numbers and None for missing values.

    ``low`` and ``high`` are Wilson's 95 % interval; ``p_value`` is the exact McNemar test's against the reference, and
    ``only_first`` and ``only_this`` count problems that only the reference or only the entry solved. ``tokens`` is the
    mean per answer, ``difference`` its mean difference from the reference's on the same problem, ``…_low`` and
    ``…_high`` their 95 % intervals, bootstrapped over problems.

    Args:
        entries: Scored entries from `reft_math.scoring.pairing.paired`.
        against: The reference's `Entry.name`.
    """
    reference = next(entry for entry in entries if entry.name == against)
    rows = []
    for entry in entries:
        correct, total = sum(entry.correct), len(entry.correct)
        low, high = wilson_interval(correct, total)
        test = None if entry is reference else mcnemar(reference.correct, entry.correct)
        rows.append(
            {
                "run": entry.run,
                "decoder": entry.decoder,
                **{name: entry.training.get(name) for name in TRAINING_COLUMNS},
                "correct": correct,
                "total": total,
                "accuracy": correct / total,
                "low": low,
                "high": high,
                "strict": entry.count("strict"),
                "flexible": entry.count("flexible"),
                "p_value": None if test is None else test.p_value,
                "only_first": None if test is None else test.only_first,
                "only_this": None if test is None else test.only_second,
                **_costs(entry, reference),
            }
        )
    return rows


def _costs(entry: Entry, reference: Entry) -> dict[str, Any]:
    """Returns length from the records, and time from the results."""
    records = list(entry.records.values())
    mean = interval = difference = None
    if entry.has_lengths:
        mean, interval = sum(record["num_tokens"] for record in records) / len(records), tokens_interval(records)
        if entry is not reference and reference.has_lengths:
            difference = tokens_difference(list(reference.records.values()), records)
    finished = entry.count("finished")
    return {
        "tokens": mean,
        **_ends("tokens", interval),
        "difference": None if difference is None else difference["difference"],
        **_ends("difference", None if difference is None else difference["interval_95"]),
        "cut_off": None if finished is None else len(records) - finished,
        "seconds": entry.seconds,
    }


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    return dict(zip((f"{name}_low", f"{name}_high"), interval or (None, None), strict=True))


_IN_ANOTHER = {"high", *(f"{name}_{end}" for name in ("tokens", "difference") for end in ("low", "high"))}
_FORMATS = {
    "epochs": "g",
    "lr": "g",
    "parameters": ",",
    "norm": ".3f",
    "tracking": ".1%",
    "accuracy": ".1%",
    "p_value": ".2g",
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as text, under `COMPARISON_COLUMNS`."""
    shown = {name: "-" if value is None else format(value, _FORMATS.get(name, "")) for name, value in row.items()}
    shown["low"] = f"{row['low']:.1%} - {row['high']:.1%}"  # the interval's column
    for name, sign in (("tokens", ""), ("difference", "+")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if row[name] is not None:
            shown[name] = tokens_cell(row[name], None if low is None else (low, high), sign)
    shown["seconds"] = time_cell(row["seconds"])
    return [text for name, text in shown.items() if name not in _IN_ANOTHER]
