"""Evaluate a model, with or without an adapter, through lm-eval's command line and our decoding under a gate.

    uv run eval/harness.py --adapter results/prefix-reft/adapter --gate kl:0.5 --tasks gsm8k --use_cache results/answers

All other options are lm-eval's own: ``lm-eval run --help`` lists them. Without an adapter, or with ``--gate off``, the
numbers equal those of lm-eval's ``hf`` model. ``docs/lm-eval.md`` says what a gate means for log-likelihoods. A stopped
run resumes from the answers in ``--use_cache``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from reft_math.commands.options.evaluation import DecoderOptions
from reft_math.commands.run import run
from reft_math.errors import UserError


@dataclass(frozen=True)
class HarnessOptions(DecoderOptions):
    HANDS_ON: ClassVar[bool] = True  # passes unknown options on to lm-eval


def main(options: HarnessOptions) -> None:
    import json
    import sys

    from reft_math.commands.parser import make_parser
    from reft_math.commands.processes import leave_process_group

    try:
        from lm_eval.__main__ import cli_evaluate

        import reft_math.scoring.lm_eval  # noqa: F401  (registers the model)
    except ModuleNotFoundError as error:
        raise UserError(f"lm-eval is needed, and {error.name} is not installed: uv sync --extra harness") from None
    _, theirs = make_parser(HarnessOptions, None).parse_known_args(sys.argv[1:])
    ours = {name: value for name, value in asdict(options).items() if value is not None}
    ours = {"pretrained" if name == "model" else name: value for name, value in ours.items()}
    sys.argv = ["lm-eval", "run", "--model", "reft_math", "--model_args", json.dumps(ours), *theirs]
    try:
        cli_evaluate()
    except UserError:
        raise
    except ValueError as error:  # unknown tasks, settings that exclude each other
        raise UserError(f"lm-eval: {error}") from error
    leave_process_group()


if __name__ == "__main__":
    run(main, HarnessOptions, __doc__)
