"""Train interventions on answers alone: they draw the first K tokens, the base goes on, and its answer is the reward.

Without further options it runs on the embedded arithmetic world, in about two minutes on two CPU cores:

    uv run train/prefix_rl.py --k 10 --target-norm 0.54

On a real model and data set, with the base on a server that completes the prefixes (it never needs new weights):

    uv run train/prefix_rl.py --k 10 --relative-target-norm 0.01 --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --engine http://localhost:8000/v1

Every --eval-steps steps the likeliest prefixes of validation problems are completed, too; the best step is kept. The
output folder holds what `train/prefix_reft.py` writes, and ``records/rollouts.jsonl``: each different prefix, its
completion and its score; ``training.png`` shows the course.
"""  # noqa: E501

from __future__ import annotations

from functools import partial
from pathlib import Path

from reft_math.commands.options.prefix_rl import PrefixRlOptions
from reft_math.commands.run import run


def main(options: PrefixRlOptions) -> None:
    from reft_math.commands.processes import claim
    from reft_math.experiments.figures.reward_trace import reward_trace
    from reft_math.experiments.number_directions import number_directions
    from reft_math.files.plots import write_figure
    from reft_math.files.tables import print_table
    from reft_math.models.adapter_card import write_adapter_card
    from reft_math.models.card import CARD_NAME, parameters_sha256
    from reft_math.scoring.gate_choice import GATE_COLUMNS, gate_rows
    from reft_math.training import job as jobs
    from reft_math.training import prefix_rl, prefix_training
    from reft_math.training.card import notes_beside
    from reft_math.training.relative_size import size_line

    prefix = prefix_training.prepare(options, directions=number_directions)
    prefix_rl.check(prefix)
    if options.dry_run:
        prefix_training.show_prefix(prefix)
        return
    job, model = prefix.job, prefix.model
    claim(prefix.options, job.about["fingerprints"])
    validation = prefix_rl.train(prefix)
    calibration = prefix_training.calibrate(prefix) if prefix.calibrates else None
    decoders = {"base": job.model.generate, "prefix": model.generate}
    decoders["always_on"] = partial(model.generate, gate="always")
    evaluation = jobs.evaluate_all(job, decoders)
    results = prefix_training.summary(prefix)
    if calibration is not None:
        title = f"gates on {prefix.options.eval_dataset}'s validation split; * is the adapter's default"
        print_table(title, GATE_COLUMNS, gate_rows(calibration, model.gate))
    norm = results["bias_norm"]
    write_figure(Path(options.output_dir), "training", reward_trace(norm["trace"], validation, norm["target"]))
    notes = [
        *prefix_training.norm_lines(norm, options.norm_control, job.model.dtype),
        size_line(str(prefix.options.site), results["relative_size"]["mean"]),
        f"step {validation['best_step']} of {len(prefix.control.trace['step'])} is kept, the best on validation"
        f" problems: {max(validation['accuracy'][1:]):.1%}, before training {validation['accuracy'][0]:.1%}",
    ]
    adapter = Path(options.output_dir) / "adapter"
    results |= {
        "calibration": calibration,
        "validation": validation,
        "noise_floor": None,
        "parameters": parameters_sha256(adapter),
    }
    jobs.report(job, evaluation, results, *notes)
    (adapter / CARD_NAME).unlink(missing_ok=True)  # written on saving, without results and gate
    write_adapter_card(adapter, notes_beside(adapter))


if __name__ == "__main__":
    run(main, PrefixRlOptions, __doc__)
