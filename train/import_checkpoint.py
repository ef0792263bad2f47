"""Import an adapter that pyreft (LoReFT, DiReFT) or BREP's code (RED) has saved.

    uv run train/import_checkpoint.py --source their/folder --model meta-llama/Meta-Llama-3-8B-Instruct \
        --output-dir results/imported
    uv run train/import_checkpoint.py --source delta_vector.pth --model … --gate tokens:9 --output-dir results/imported

The output folder is an adapter like those that training makes, for every ``--adapter``. docs/adapters.md is the guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.command import run
from reft_math.errors import require


@dataclass(frozen=True)
class ImportOptions:
    source: str | None = field(
        default=None, metadata={"help": "Folder saved by pyreft, or BREP's delta_vector.pth or the folder it is in."}
    )
    model: str | None = field(default=None, metadata={"help": "The base it was trained on: hub id or folder."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    positions: Literal["all", "generated", "prompt"] = field(
        default="all", metadata={"help": "Where it acts, which the files do not hold."}
    )
    gate: str = field(
        default="always",
        metadata={"help": "Its gate by default: kl:NATS[,min=N][,max=N], tokens:N, always or prompt."},
    )
    act_fn: str | None = field(
        default=None, metadata={"help": "LoReFT's and DiReFT's activation, which the files do not hold (none)."}
    )
    dropout: float = field(default=0.0, metadata={"help": "LoReFT's and DiReFT's, for further training."})
    output_dir: str = field(default="results/imported", metadata={"help": "The adapter goes here."})
    resume: bool = field(default=False, metadata={"help": "Write the adapter again where it is."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's adapter and start anew."})

    def __post_init__(self) -> None:
        require(self, "source", bool, "a folder or a file to import")
        require(self, "model", bool, "the base that the adapter was trained on")


def main(options: ImportOptions) -> None:
    import dataclasses

    from interventions import read_checkpoint
    from reft_math.command import RESULTS_NAME, claim_output_dir, provenance, versions, write_json
    from reft_math.models import lasting_name, load_model

    assert options.source is not None  # checked
    assert options.model is not None
    checkpoint = read_checkpoint(
        options.source,
        positions=options.positions,
        gate=options.gate,
        act_fn=options.act_fn,
        dropout=options.dropout,
        base_model=lasting_name(options.model),
        versions=versions(),
    )
    model = load_model(options.model, options.revision)
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
    print(f"as told: positions {config.positions}, gate {config.gate}, act_fn {config.act_fn}")
    print(f"adapter: {folder}")


if __name__ == "__main__":
    run(main, ImportOptions, __doc__)
