"""Write a bias at block as a control vector of llama.cpp, for llama-server's --control-vector.

    uv run train/export_control_vector.py --adapter results/bias/adapter --output results/bias.gguf

The server adds it at every token, of the prompt too, in all requests. docs/engines.md says what else engines can do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reft_math.commands.output_folder import check_output_file
from reft_math.commands.run import run
from reft_math.errors import require, require_one_process


@dataclass(frozen=True)
class ControlVectorOptions:
    adapter: str | None = field(default=None, metadata={"help": "Adapter: folder or hub id."})
    model: str | None = field(
        default=None, metadata={"help": "Base: hub id, folder or .gguf file; only its shape is read (the adapter's)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    every_token: bool = field(
        default=False, metadata={"help": "Write an adapter with gate prompt, which then acts at every token."}
    )
    output: str = field(default="results/control_vector.gguf", metadata={"help": "Path of the file."})

    def __post_init__(self) -> None:
        require(self, "adapter", bool, "an adapter's folder or hub id")
        require_one_process("a control vector")


def main(options: ControlVectorOptions) -> None:
    path = Path(options.output)
    check_output_file(path)

    from interventions import PrefixReftConfig, PrefixReftModel
    from reft_math.files.atomic import make_folder
    from reft_math.models.base import load_skeleton
    from reft_math.models.config import ADAPTER_CONFIG
    from reft_math.models.control_vector import check_exportable, write_control_vector
    from reft_math.models.hub import fetch

    assert options.adapter is not None  # checked
    source = fetch(options.adapter, ADAPTER_CONFIG)
    config = PrefixReftConfig.from_pretrained(source)
    check_exportable(config, options.every_token)
    if config.gate != "always":
        print(f"the adapter's own gate is {config.gate}; llama.cpp has none")
    skeleton = load_skeleton(*config.resolve_base(options.model, options.revision))
    reft_model = PrefixReftModel.from_pretrained(source, skeleton)
    make_folder(path.parent)
    write_control_vector(reft_model, path, options.every_token)
    print(f"control vector: {path}")


if __name__ == "__main__":
    run(main, ControlVectorOptions, __doc__)
