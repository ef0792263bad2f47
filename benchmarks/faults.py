"""Kill commands at random moments, resume them, and compare the results with an undisturbed run.

    uv run benchmarks/faults.py --kills 5 --processes 1 2 --json results/faults.json

Every command is run in peace first, by as many processes; then started, killed by SIGKILL and started again with
``--resume``, until it has been killed ``--kills`` times; a run is let through after at most four kills, and then the
next begins. Of two processes one is now and then killed before the other, and whatever a process has started is killed
with it or left to end by itself. Moments are drawn from the whole length of the run in peace, by ``--seed``. Training
writes a checkpoint at every second step, so that many a kill falls into one.

Imports take longer than these runs: they are done once, and each process is a fork of this one, with the environment
that ``torchrun`` would give it. Only the first to be killed of a run are interpreters of their own, and are killed in
their first 4 seconds, mostly while they import (``at_start``). The experiments of ``report`` are such interpreters too.

Equal means: the same files, and in each the same content; records in any order; without dates, durations, command
lines, logs, figures (PNG, SVG) and checkpoints. A lost row is one that was on the disk whole after a kill, and is not
in the final records as it was. Commands run on the embedded model; ``gsm8k`` and ``math500`` need their files in
``--data-dir``.
"""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.experiments.quick import Experiment

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "--train-size 48 --eval-size 8 --epochs 2 --batch-size 8 --save-steps 2 --max-new-tokens 24 --eval-batch-size 2"
LIMITS = "--limit 24 --max-new-tokens 24 --batch-size 2"
PROBES = "--limit 16 --batch-size 4"
ADAPTER = "--adapter {work}/train/peace-1/adapter"
COMMANDS = {
    "train": f"train/prefix_reft.py --calibration-size 4 {TRAIN}",
    "lora": f"train/lora.py {TRAIN}",
    "raft": "train/raft.py --train-size 48 --validation-size 8 --test-size 8 --epochs 2 --eval-steps 2",
    "arithmetic": f"eval/arithmetic.py {ADAPTER} {LIMITS} --samples 2 --temperature 0.8 --seed 5",
    "gsm8k": f"eval/gsm8k.py {ADAPTER} {LIMITS} --data-dir {{data}}",
    "math500": f"eval/math500.py {ADAPTER} {LIMITS} --data-dir {{data}}",
    "calibrate_gate": f"eval/calibrate_gate.py {ADAPTER} {LIMITS}",
    "kl_profile": f"eval/kl_profile.py {ADAPTER} {LIMITS}",
    "handoff": f"eval/handoff.py {ADAPTER} --reft {{work}}/train/peace-1/adapter {LIMITS}",
    "trajectory": f"eval/trajectory.py {ADAPTER} {LIMITS}",
    "regression": "eval/regression.py --regressor {work}/raft/peace-1/regressor --limit 8 --batch-size 2",
    "number_probe": f"eval/number_probe.py {ADAPTER} {PROBES} --sums 20 --alphas 0.5",
    "faithfulness": f"eval/faithfulness.py {ADAPTER} {PROBES}",
    "norm_sweep": f"eval/norm_sweep.py --target-norms 0.2 0.5 --seeds 1 --calibration-size 4 {TRAIN}",
    "ablation": f"eval/ablation.py --seeds 1 --calibration-size 4 {TRAIN}",
    "compare": "eval/compare.py --runs {work}/train/peace-1 {work}/lora/peace-1",
    "compare_regression": "eval/compare_regression.py --runs {work}/raft/peace-1",
    "norm_trace": "eval/norm_trace.py --runs {work}/train/peace-1",
    "token_view": f"eval/token_view.py {ADAPTER} --problems 2 --output {{out}}/page.html",
    "report": "eval/report.py --quick --results {out}",
    "import_checkpoint": "train/import_checkpoint.py --source {work}/given/d.pth --model arithmetic --gate tokens:9",
    "merge_adapter": f"train/merge_adapter.py {ADAPTER}",
    "pretraining": "train/arithmetic.py --steps 24 --batch-size 4 --save-steps 2",
}
ALONE = tuple(list(COMMANDS)[list(COMMANDS).index("compare") :])  # of one process
EXPERIMENTS = (  # in place of the suite's own, which take a quarter of an hour
    Experiment("prefix-reft", f"{COMMANDS['train']} --output-dir {{results}}/prefix-reft"),
    Experiment("norm_trace", "eval/norm_trace.py --runs {results}/prefix-reft --output-dir {results}/norm_trace"),
)
KILLS_OF_A_RUN = 4
START_S = 4.0  # imports take most of that, or more
# What differs from one run in peace to the next.
PASSING_FILES = (".png", ".svg", ".log")
PASSING_FIELDS = ("date", "command", "resume", "seconds", "seconds_per_answer", "time")
_PASSING_TEXT = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:]+\+00:00|( <span>)?--resume(</span>)?|(?<=<dt>resume</dt><dd>)(true|false)"
    r"|(?<=>)([0-9.]+ m?s|-)(?=</td></tr>)"
)


@dataclass(frozen=True)
class FaultOptions:
    only: list[str] = field(default_factory=list, metadata={"help": f"Among {', '.join(COMMANDS)} (all)."})
    kills: int = field(default=5, metadata={"help": "Kills per command and process count."})
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Process counts of the runs."})
    seed: int = field(default=0, metadata={"help": "Seed of the moments."})
    data_dir: str = field(default="../shared/data", metadata={"help": "Folder of gsm8k's and math500's files."})
    output_dir: str = field(default="results/faults", metadata={"help": "Runs and their logs go here."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})
    resume: bool = field(default=False, metadata={"help": "Not supported by this command."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's runs and start over."})

    def __post_init__(self) -> None:
        require(self, "only", lambda value: not set(value) - set(COMMANDS), f"among {', '.join(COMMANDS)}")
        require(self, "kills", lambda value: value >= 1, "at least 1")
        if self.resume:
            raise UserError("--resume is what this command tests; take --overwrite, or another --output-dir")


def main(options: FaultOptions) -> None:
    import torch

    from reft_math.commands.output_folder import claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.files.atomic import write_json
    from reft_math.files.tables import print_table

    _import_all()
    torch.set_num_threads(1)
    folder, rng = claim_output_dir(options).resolve(), random.Random(options.seed)
    _give(folder / "given")
    lines = {name: line.format(work=folder, data=options.data_dir, out="{out}") for name, line in COMMANDS.items()}
    names = [name for name in COMMANDS if not options.only or name in options.only]
    for name in COMMANDS:  # what others read has to be there first
        is_read = any(f"{folder}/{name}/peace-1" in lines[other] for other in names)
        if is_read and (name not in names or 1 not in options.processes):
            Run(lines[name], folder / name / "peace-1", 1).finish()
    found = []
    for name in names:
        for processes in options.processes if name not in ALONE else [1]:
            is_own = name != "report"  # which would then run the suite's own experiments
            counts = torment(lines[name], folder / name, processes, options.kills, rng, is_own)
            found.append({"command": name, "processes": processes, **counts})
            print(found[-1], file=sys.stderr, flush=True)
    if options.json is not None:
        write_json(Path(options.json), {**provenance(options), "found": found})
    print_table("killed and resumed", list(found[0]), [list(map(str, row.values())) for row in found])


def torment(
    line: str, folder: Path, processes: int, kills: int, rng: random.Random, is_own: bool = True
) -> dict[str, int]:
    """Kills runs of a command until there have been enough kills; counts what became of them.

    Args:
        line: The command, as `Run` takes it.
        folder: The runs' folders go here.
        processes: Of a run.
        kills: How many.
        rng: Draws moments and victims.
        is_own: Whether the first to be killed of a run are interpreters of their own.
    """
    start, in_peace = time.monotonic(), folder / f"peace-{processes}"
    Run(line, in_peace, processes).finish()
    seconds, peace = time.monotonic() - start, contents(in_peace)
    counts = {"kills": 0, "at_start": 0, "runs": 0, "equal": 0, "rows_at_kills": 0, "lost_rows": 0}
    tried = 0
    while counts["kills"] < kills:
        place, kills_before = folder / f"killed-{processes}-{tried}", counts["kills"]
        tried += 1
        seen: set[tuple[str, str]] = set()
        for number in range(min(KILLS_OF_A_RUN, kills - counts["kills"])):
            imports = is_own and number == 0
            moment = rng.uniform(0, START_S if imports else seconds)
            if not Run(line, place, processes, imports).kill_after(moment, rng):
                break
            counts["kills"] += 1
            counts["at_start"] += imports
            seen |= set(rows(place))
        else:
            Run(line, place, processes).finish()
        if counts["kills"] == kills_before:
            continue  # it had ended before
        counts["runs"] += 1
        counts["rows_at_kills"] += len(seen)
        counts["lost_rows"] += len(seen - set(rows(place)))
        differing = sorted(name for name, _ in set(peace.items()) ^ set(contents(place).items()))
        counts["equal"] += not differing
        if differing:
            print(f"{place} differs from {in_peace}: {', '.join(dict.fromkeys(differing))}", file=sys.stderr)
    return counts


class Run:
    """A command at work in a folder, resumed where it is there.

    Args:
        line: Script and options; ``{out}`` stands for the folder where the command has no ``--output-dir``.
        folder: Of its own.
        processes: How many.
        imports: Whether each is an interpreter of its own, and no fork that has everything imported.
    """

    def __init__(self, line: str, folder: Path, processes: int, imports: bool = False) -> None:
        self.folder = folder
        output = "" if "{out}" in line else " --output-dir {out} --resume"
        arguments = f"{line}{output}".format(out=folder).split()
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self.pids = []
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                place = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
                _become(arguments, place, folder.with_name(f"{folder.name}.log"), imports)
            self.pids.append(pid)

    def finish(self) -> None:
        for code in [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]:
            self._check(code)

    def kill_after(self, seconds: float, rng: random.Random) -> bool:
        """Returns whether there was still a process to kill."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.pids[0], os.WNOHANG)
            if done:
                self._check(os.waitstatus_to_exitcode(status))
                del self.pids[0]
                self.finish()
                return False
            time.sleep(0.002)
        rng.shuffle(self.pids)
        for pid, pause in zip(self.pids, (rng.choice((0, 0.2)), 0), strict=False):
            rng.choice((os.kill, os.killpg))(pid, signal.SIGKILL)
            time.sleep(pause)
        for pid in self.pids:
            os.waitpid(pid, 0)
        return True

    def _check(self, code: int) -> None:
        if code != 0:
            raise UserError(f"{self.folder} failed with exit code {code}; its log is beside it")


def _become(arguments: list[str], environment: dict[str, str], log: Path, imports: bool) -> NoReturn:
    """In a fork: the command, with a process group of its own."""
    os.setpgid(0, 0)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update({**environment, "OMP_NUM_THREADS": "1"})
    if imports:
        os.execv(sys.executable, [sys.executable, str(ROOT / arguments[0]), *arguments[1:]])
    sys.argv = arguments
    code = 1
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.excepthook(*sys.exc_info()) if code == 1 else None
        os._exit(code)


def _import_all() -> None:
    """In the forks the suite is short."""
    import peft  # noqa: F401

    import reft_math.experiments.faithfulness
    import reft_math.experiments.number_probe
    import reft_math.experiments.quick
    import reft_math.experiments.sweeps
    import reft_math.regression.trainer
    import reft_math.scoring.elsewhere

    reft_math.experiments.quick.EXPERIMENTS = EXPERIMENTS


def _give(folder: Path) -> None:
    """An adapter in BREP's format; no model, or forks would think themselves alone."""
    import torch
    from transformers import AutoConfig

    from reft_math.data.arithmetic import EMBEDDED_FOLDER

    folder.mkdir(exist_ok=True)
    config = AutoConfig.from_pretrained(EMBEDDED_FOLDER)
    layers, values = range(config.num_hidden_layers), torch.full((1, config.intermediate_size), 0.5)
    places = [f"model.layers.{layer}.mlp.up_proj.delta_vector.activation_" for layer in layers]
    delta = {f"{place}{name}": values for place in places for name in ("scaling", "bias")}
    torch.save(delta, folder / "d.pth")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def rows(folder: Path) -> Iterator[tuple[str, str]]:
    """Whole lines of all record files, by the file that they are in or will be gathered in."""
    for path in folder.rglob("*.jsonl"):
        name = f"{path.parent.relative_to(folder)}/{path.name.partition('.shard-')[0].removesuffix('.jsonl')}"
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        yield from ((name, line) for line in lines)


def contents(folder: Path) -> dict[str, str]:
    """Returns the part of a run's files that must equal another run's."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.suffix not in PASSING_FILES and "checkpoints" not in path.parts:
            text = path.read_bytes().decode("latin-1").replace(str(folder), "")
            if path.suffix == ".json":
                text = json.dumps(_lasting(json.loads(text)))
            if path.suffix == ".html":
                text = _PASSING_TEXT.sub("", text)
            found[name] = "\n".join(sorted(text.split("\n"))) if path.suffix == ".jsonl" else text
    return found


def _lasting(value: Any) -> Any:
    """Without `PASSING_FIELDS`."""
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in PASSING_FIELDS}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    run(main, FaultOptions, __doc__)
