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

from functools import partial
from pathlib import Path

from reft_math.commands.options.prefix import PrefixReftOptions
from reft_math.commands.run import run


def main(options: PrefixReftOptions) -> None:
    from interventions.gates import AlwaysOn, parse_gate
    from reft_math.commands.processes import claim, leave_process_group
    from reft_math.experiments.number_directions import number_directions
    from reft_math.files.tables import print_table
    from reft_math.models.adapter_card import write_adapter_card
    from reft_math.models.card import CARD_NAME, parameters_sha256
    from reft_math.models.sharding import fsdp_requested
    from reft_math.scoring.gate_choice import GATE_COLUMNS, gate_rows, noise_line
    from reft_math.training import job as jobs
    from reft_math.training import prefix_training
    from reft_math.training.card import notes_beside
    from reft_math.training.prefix_training import show_prefix
    from reft_math.training.relative_size import size_line

    prefix = prefix_training.prepare(
        options, directions=number_directions, shards=fsdp_requested() and not options.dry_run
    )
    if options.dry_run:
        show_prefix(prefix)
        return
    job, model = prefix.job, prefix.model
    claim(prefix.options, job.about["fingerprints"])
    prefix_training.train(prefix)
    calibration = prefix_training.calibrate(prefix) if prefix.calibrates else None
    decoders = {"base": job.model.generate, "reft" if options.is_ordinary else "prefix": model.generate}
    if not isinstance(parse_gate(model.gate), AlwaysOn):
        decoders["always_on"] = partial(model.generate, gate="always")
    evaluation = jobs.evaluate_all(job, decoders)
    results = prefix_training.summary(prefix)
    leave_process_group()
    noise = prefix_training.noise(prefix) if prefix.calibrates else None
    if calibration is not None:
        title = f"gates on {prefix.options.eval_dataset}'s validation split; * is the adapter's default"
        print_table(title, GATE_COLUMNS, gate_rows(calibration, model.gate))
    if noise is not None:
        print(noise_line(noise))
    notes = [
        *prefix_training.norm_lines(results["bias_norm"], options.norm_control, job.model.dtype),
        size_line(str(prefix.options.site), results["relative_size"]["mean"]),
    ]
    if evaluation is not None and (p := evaluation[list(decoders)[1]]["mcnemar_vs_base"]["p_value"]) > 0.05:
        notes.append(
            f"note: the adapter under its gate is not told apart from the base (p = {p:.2g}); if training was short,"
            " more epochs or a higher learning rate may change that"
        )
    adapter = Path(options.output_dir) / "adapter"
    results |= {"calibration": calibration, "noise_floor": noise, "parameters": parameters_sha256(adapter)}
    jobs.report(job, evaluation, results, *notes)
    (adapter / CARD_NAME).unlink(missing_ok=True)  # written on saving, without results and gate
    write_adapter_card(adapter, notes_beside(adapter))


if __name__ == "__main__":
    run(main, PrefixReftOptions, __doc__)
