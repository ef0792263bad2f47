"""Runs every experiment on the embedded model, one after another, each as its own command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reft_math.commands.interrupt import PARENT
from reft_math.commands.output_folder import RUN_CONFIG
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.strict import from_json, read_object

FINISHED_NAME = "finished.json"

_FOLDER = re.compile(r"\{results\}/([^/\s]+)")


@dataclass(frozen=True)
class Experiment:
    """One command.

    Attributes:
        name: Name of its output folder, and of its log beside it.
        command: Script and arguments; ``{results}`` is replaced by the parent of all output folders.
    """

    name: str
    command: str

    @property
    def inputs(self) -> list[str]:
        """The experiments whose output folders it reads."""
        return [name for name in dict.fromkeys(_FOLDER.findall(self.command)) if name != self.name]


_BOTH = "--adapter {results}/prefix-reft/adapter --reft {results}/reft-free/adapter"
_PREFIX = "--adapter {results}/prefix-reft/adapter"

# Adapters first: the others read them.
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("prefix-reft", "train/prefix_reft.py --k 10 --target-norm 0.54 --output-dir {results}/prefix-reft"),
    Experiment(
        "reft-free",
        "train/prefix_reft.py --full-fraction 1 --norm-control none --gate always --output-dir {results}/reft-free",
    ),
    Experiment("lora", "train/lora.py --rank 8 --output-dir {results}/lora"),
    Experiment(
        "compare",
        "eval/compare.py --runs {results}/prefix-reft {results}/reft-free {results}/lora"
        " --output-dir {results}/compare",
    ),
    Experiment(
        "norm_trace",
        "eval/norm_trace.py --runs {results}/prefix-reft {results}/reft-free --output-dir {results}/norm_trace",
    ),
    Experiment("kl_profile", f"eval/kl_profile.py {_PREFIX} --batch-size 100 --output-dir {{results}}/kl_profile"),
    Experiment("handoff", f"eval/handoff.py {_BOTH} --batch-size 100 --output-dir {{results}}/handoff"),
    Experiment("trajectory", f"eval/trajectory.py {_PREFIX} --batch-size 100 --output-dir {{results}}/trajectory"),
    Experiment("number_probe", f"eval/number_probe.py {_BOTH} --output-dir {{results}}/number_probe"),
    Experiment("faithfulness", f"eval/faithfulness.py {_BOTH} --output-dir {{results}}/faithfulness"),
    # Fewer norms, seeds and problems than by default, to save time.
    Experiment(
        "norm_sweep",
        "eval/norm_sweep.py --target-norms 0.14 0.54 2.16 --seeds 2 --project-number-direction"
        " --eval-size 200 --calibration-size 100 --output-dir {results}/norm_sweep",
    ),
    Experiment(
        "ablation",
        "eval/ablation.py --seeds 1 --eval-size 200 --calibration-size 100 --output-dir {results}/ablation",
    ),
    Experiment("raft", "train/raft.py --output-dir {results}/raft"),
)


def run_suite(experiments: Sequence[Experiment], root: Path, results: Path) -> None:
    """Runs unfinished experiments, with a line of progress for each.

    ``finished.json`` in the results tells what has come to its end, by which command, and when. What was made from
    something that has been made again since is made anew.

    Args:
        experiments: Experiments in the order to run.
        root: Root of the checkout, to which the scripts' paths are relative.
        results: Folder for each experiment's folder and log (``<name>.log``).

    Raises:
        UserError: A script is missing, a folder was made by another command, or an experiment failed.
    """
    finished = _read_finished(results)
    for experiment in experiments:
        _check(experiment, root, results, finished)
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results must be a folder that can be made; {results}: {error.strerror}") from None
    for number, experiment in enumerate(experiments, start=1):
        print(f"[{number}/{len(experiments)}] {experiment.name} …", end=" ", flush=True)
        if _is_finished(experiment, results, finished):
            print(f"{duration(finished[experiment.name]['seconds'])}, done before", flush=True)
            continue
        start = time.monotonic()
        try:
            _run(experiment, root, results, "--overwrite" if experiment.name in finished else "--resume")
        except UserError:
            print(f"failed after {duration(time.monotonic() - start)}", flush=True)
            raise
        seconds = time.monotonic() - start
        finished[experiment.name] = asdict(_Finished(experiment.command, round(seconds, 1), time.time()))
        write_json(results / FINISHED_NAME, finished)
        print(duration(seconds), flush=True)


@dataclass(frozen=True)
class _Finished:
    """Returns an experiment's entry in ``finished.json``: its seconds, and the time of its end."""

    command: str
    seconds: float
    time: float


def duration(seconds: float) -> str:
    """Formats seconds, such as ``41 s`` and ``2 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _read_finished(results: Path) -> dict[str, Any]:
    path = results / FINISHED_NAME
    if not path.exists():
        return {}
    try:
        finished = read_object(path)
        return {name: asdict(from_json(_Finished, done)) for name, done in finished.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); delete it, and runs that are whole go by quickly"
        ) from None


def _is_finished(experiment: Experiment, results: Path, finished: dict[str, Any]) -> bool:
    if experiment.name not in finished or not (results / experiment.name).is_dir():
        return False
    return all(
        name in finished and finished[name]["time"] < finished[experiment.name]["time"] for name in experiment.inputs
    )


def _check(experiment: Experiment, root: Path, results: Path, finished: dict[str, Any]) -> None:
    script = root / shlex.split(experiment.command)[0]
    if not script.is_file():
        raise UserError(f"experiment {experiment.name} needs {script}, which is not there: run from a whole checkout")
    if _is_finished(experiment, results, finished) and finished[experiment.name]["command"] != experiment.command:
        folder = results / experiment.name
        raise UserError(
            f"{folder} was made by another command, {finished[experiment.name]['command']!r}:"
            " delete it to make it anew, or choose another --results"
        )


def _run(experiment: Experiment, root: Path, results: Path, way: str) -> None:
    """Runs the command and waits for it; ``way`` says what to do with an existing folder."""
    script, *arguments = (word.format(results=results) for word in shlex.split(experiment.command))
    if (results / experiment.name / RUN_CONFIG).exists():
        arguments.append(way)
    words = [os.path.relpath(root / script), *arguments]
    path = results / f"{experiment.name}.log"
    with path.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(['python', *words])}\n")
        log.flush()
        code = subprocess.run(
            [sys.executable, *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, PARENT: str(os.getpid())},
            check=False,
        ).returncode
    if code != 0:
        last = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1].strip()
        raise UserError(
            f"experiment {experiment.name} failed with exit code {code}: {last} (log: {path});"
            " what is finished is kept, and the same command goes on from here"
        )
