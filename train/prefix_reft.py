"""Train interventions on the first K tokens of solutions, hold their bias norm, and evaluate them against the base.

Without further options it runs on the embedded arithmetic world, in about two minutes on two CPU cores:

    uv run train/prefix_reft.py --k 10 --target-norm 0.54

On a real model and data set:

    uv run train/prefix_reft.py --k 10 --target-norm 0.54 --model meta-llama/Meta-Llama-3-8B-Instruct --dataset gsm8k

On several GPUs: ``torchrun --nproc-per-node 4 train/prefix_reft.py …``, or ``accelerate launch --config_file
configs/fsdp2.yaml …`` for a base that does not fit on one GPU; then evaluate with the evaluation commands. The
output folder holds ``adapter/`` (for `PrefixReftModel.from_pretrained`, `pyreft.ReftModel.load` and
`pyvene.IntervenableModel.load`), ``records/`` (every completion), ``checkpoints/`` and ``results.json``.
"""

from __future__ import annotations

from reft_math.commands.options.prefix import PrefixReftOptions
from reft_math.commands.run import run


def main(options: PrefixReftOptions) -> None:
    from reft_math.commands.processes import claim
    from reft_math.experiments.number_directions import number_directions
    from reft_math.models.sharding import fsdp_requested
    from reft_math.training import prefix_training
    from reft_math.training.prefix_report import finish

    prefix = prefix_training.prepare(
        options, directions=number_directions, shards=fsdp_requested() and not options.dry_run
    )
    if options.dry_run:
        prefix_training.show_prefix(prefix)
        return
    claim(prefix.options, prefix.job.about["fingerprints"])
    prefix_training.train(prefix)
    finish(prefix)


if __name__ == "__main__":
    run(main, PrefixReftOptions, __doc__)
