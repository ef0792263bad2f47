"""Import an adapter saved by pyreft or a fork of it (LoReFT, DiReFT, biases), or by BREP's code (RED, biases).

    uv run train/import_checkpoint.py --source their/folder --model meta-llama/Meta-Llama-3-8B-Instruct \
        --act-fn linear --output-dir results/imported
    uv run train/import_checkpoint.py --source delta_vector.pth --model … --gate tokens:9 --output-dir results/imported

The output folder is an adapter as training writes it, for any ``--adapter``. docs/adapters.md is the guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.run import run
from reft_math.errors import printable, require, require_one_process


@dataclass(frozen=True)
class ImportOptions:
    source: str | None = field(
        default=None, metadata={"help": "Folder saved by pyreft, or BREP's delta_vector.pth or its folder."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Base that it was trained on: hub id or folder (the one in its train_config.json, if that exists)."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    positions: Literal["all", "solution", "generated", "prompt"] | None = field(
        default=None, metadata={"help": "Tokens that it acts on, which the files do not hold (all)."}
    )
    gate: str | None = field(
        default=None,
        metadata={
            "help": "Default gate: kl:NATS[,min=N][,max=N], tokens:N, always, prompt or off (pyreft: prompt; required"
            " for BREP: tokens:N+1 for n_prefix = N, always for -1, off for 0)."
        },
    )
    act_fn: str | None = field(
        default=None,
        metadata={
            "help": "Activation of LoReFT and DiReFT; linear if there was none. Required if the files do not give it."
        },
    )
    dropout: float | None = field(default=None, metadata={"help": "Dropout of LoReFT and DiReFT, to train on (0)."})
    output_dir: str = field(default="results/imported", metadata={"help": "The adapter goes here."})
    resume: bool = field(default=False, metadata={"help": "Write the adapter again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the adapter in the output folder and start over."})

    def __post_init__(self) -> None:
        require(self, "source", bool, "a folder or a file to import")
        require_one_process("an import")


def main(options: ImportOptions) -> None:
    import dataclasses

    from interventions import read_checkpoint
    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance, versions
    from reft_math.files.atomic import write_json
    from reft_math.models import load_model
    from reft_math.models.base import absolute_name
    from reft_math.models.train_config import base_beside

    assert options.source is not None  # checked
    base = options.model or base_beside(options.source)
    unsaid = {name: getattr(options, name) for name in ("positions", "gate", "act_fn", "dropout")}
    told = {name: value for name, value in unsaid.items() if value is not None}
    checkpoint = read_checkpoint(options.source, base_model=absolute_name(base), versions=versions(), **told)
    model = load_model(base, options.revision)
    reft_model = checkpoint.put_on(model)
    config = dataclasses.replace(reft_model.prefix_config, base_revision=getattr(model.config, "_commit_hash", None))
    reft_model.prefix_config = config
    folder = claim_output_dir(options)
    reft_model.save_pretrained(folder)
    write_json(folder / RESULTS_NAME, {**provenance(options), "adapter": dataclasses.asdict(config)})
    rank = "" if config.rank is None else f", rank {config.rank}"
    print(
        f"{options.source}: {config.intervention} at {config.site}, width {config.width}{rank}, layers {config.layers}"
    )
    about = [name for name in unsaid if config.rank is not None or name in ("positions", "gate")]
    for how, names in (
        ("as told", [name for name in about if name in told]),
        ("not given, taken as", [name for name in about if name not in told]),
    ):
        if names:
            print(f"{how}: {', '.join(f'{name} {getattr(config, name)}' for name in names)}")
    for note in checkpoint.notes:
        print(printable(note))
    print(f"adapter: {folder}")


if __name__ == "__main__":
    run(main, ImportOptions, __doc__)
