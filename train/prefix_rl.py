"""Train interventions on answers alone: they draw the first K tokens, the base goes on, and its answer is the reward.

Without further options it runs on the embedded arithmetic world, in about two minutes on two CPU cores:

    uv run train/prefix_rl.py --k 10 --target-norm 0.54

On a real model and data set, with the base on a server that completes the prefixes (the base never changes):

    uv run train/prefix_rl.py --k 10 --relative-target-norm 0.01 --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --engine http://localhost:8000/v1

Every --eval-steps steps validation problems are decoded greedily, too; the best step is kept. The
output folder holds what `train/prefix_reft.py` writes, and ``records/rollouts.jsonl``: each different prefix, its
completion and its score; ``training.png`` shows the course.
"""  # noqa: E501

from __future__ import annotations

from pathlib import Path

from reft_math.commands.options.prefix_rl import PrefixRlOptions
from reft_math.commands.run import run


def main(options: PrefixRlOptions) -> None:
    from reft_math.commands.processes import claim
    from reft_math.experiments.figures.reward_trace import reward_trace
    from reft_math.experiments.number_directions import number_directions
    from reft_math.files.plots import write_figure
    from reft_math.training import prefix_rl, prefix_training
    from reft_math.training.prefix_report import finish

    prefix = prefix_training.prepare(options, directions=number_directions)
    engine = prefix_rl.check(prefix)
    if options.dry_run:
        prefix_training.show_prefix(prefix)
        return
    claim(prefix.options, prefix.job.about["fingerprints"])
    validation = prefix_rl.train(prefix, engine)
    control = prefix.control
    figure = reward_trace(control.trace, validation, control.controller.target)
    write_figure(Path(options.output_dir), "training", figure)
    finish(prefix, {"validation": validation}, [prefix_rl.step_line(validation, len(control.trace["step"]))])


if __name__ == "__main__":
    run(main, PrefixRlOptions, __doc__)
