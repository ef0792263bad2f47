"""Processes as ``torchrun`` starts them, forked from one server that has imported what takes seconds to import."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
import time
from collections.abc import Mapping
from multiprocessing import connection, get_context
from pathlib import Path
from unittest import mock

import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[1]
# No thread of theirs may hold a lock in a fork: the only one that they start is of pyarrow's allocator, which lets go.
IMPORTED = ["interventions", "reft_math.training.prefix_training", "reft_math.experiments.evaluation"]
IMPORTED += ["reft_math.regression.trainer", "datasets", "lm_eval.evaluator", "lm_eval.models.huggingface"]

_context = get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


class World:
    """One command line in so many processes; ``{folder}/out0`` and ``{folder}/err0`` are what the first prints."""

    def __init__(self, processes: int, line: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        # The launcher holds it, so that no process waits for one that has ended.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
        }
        self.ranks = [
            _context.Process(target=_run, args=(line, folder, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
            for rank in range(processes)
        ]
        for rank in self.ranks:
            rank.start()

    def wait(self, timeout: float = 120) -> int:
        """0 when all have ended well; where one has not, the others are killed, as by ``torchrun``."""
        end, left = time.monotonic() + timeout, {rank.sentinel: rank for rank in self.ranks}
        while left:
            ended = [left.pop(sentinel).exitcode for sentinel in connection.wait([*left], end - time.monotonic())]
            if not ended or any(ended):
                self.kill()
                return next((code for code in ended if code), -1)
        return 0

    def is_running(self) -> bool:
        return all(rank.is_alive() for rank in self.ranks)

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.join()

    def errors(self) -> str:
        """The ends of what each process printed on standard error, for a test that fails."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("err*")))


def accelerates(config: str) -> dict[str, str]:
    """The environment that ``accelerate launch --config_file {config}`` gives to ``torchrun``'s processes."""
    line = ["--config_file", str(ROOT / config), "--num_processes", "2", "--main_process_port", "0", "script.py"]
    found: dict[str, str] = {}
    with mock.patch.object(torch.distributed.run, "run", side_effect=lambda _: found.update(os.environ)):
        launch_command(launch_command_parser().parse_args(line))
    return found


def _run(line: str, folder: Path, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{name}{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = shlex.split(line)
    runpy.run_path(sys.argv[0], run_name="__main__")
