"""Fold an adapter into its base's weights: a plain transformers checkpoint with the intervention at every token.

    uv run train/merge_adapter.py --adapter results/prefix-reft/adapter --output-dir results/merged

Any loader of checkpoints loads the output folder, without this project. docs/adapters.md says what cannot be folded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.run import run
from reft_math.errors import require, require_one_process


@dataclass(frozen=True)
class MergeOptions:
    adapter: str | None = field(default=None, metadata={"help": "Adapter: folder or hub id."})
    model: str | None = field(default=None, metadata={"help": "Base: hub id or folder (the adapter's base)."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    every_token: bool = field(
        default=False, metadata={"help": "Fold an adapter with gate prompt, which then acts at every token."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Dtype of the weights; auto is the base's own."}
    )
    output_dir: str = field(default="results/merged", metadata={"help": "Model and tokenizer go here."})
    resume: bool = field(default=False, metadata={"help": "Write the checkpoint again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's checkpoint and start over."})

    def __post_init__(self) -> None:
        require(self, "adapter", bool, "an adapter's folder or hub id")
        require_one_process("a merged model")


def main(options: MergeOptions) -> None:
    import dataclasses

    from interventions import PrefixReftConfig, PrefixReftModel, merge
    from reft_math.commands.options.loading import LoadingOptions
    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.files.atomic import write_files, write_json
    from reft_math.models import load_model, load_tokenizer
    from reft_math.models.adapter_card import write_merged_card
    from reft_math.models.base import absolute_name
    from reft_math.models.config import ADAPTER_CONFIG
    from reft_math.models.hub import fetch
    from reft_math.models.merging import check_mergeable

    assert options.adapter is not None  # checked
    source = fetch(options.adapter, ADAPTER_CONFIG)
    config = PrefixReftConfig.from_pretrained(source)
    check_mergeable(config, options.every_token)
    if config.gate != "always":
        print(f"the adapter's own gate is {config.gate}; weights have none")
    name, revision = config.resolve_base(options.model, options.revision)
    tokenizer = load_tokenizer(name, revision)
    reft_model = PrefixReftModel.from_pretrained(
        source, load_model(name, revision, LoadingOptions(dtype=options.dtype))
    )
    merged = merge(reft_model, options.every_token)
    folder = claim_output_dir(options)
    write_files(folder, merged.save_pretrained)
    write_files(folder, tokenizer.save_pretrained)
    write_merged_card(folder, absolute_name(name), config)
    write_json(folder / RESULTS_NAME, {**provenance(options), "base": name, "adapter": dataclasses.asdict(config)})
    print(f"{name} has {config.intervention} at {config.site} in its weights now, at every token")
    print(f"model: {folder}")


if __name__ == "__main__":
    run(main, MergeOptions, __doc__)
