"""Formats ``--help``: options in groups, the same names in the same order for every command."""

from __future__ import annotations

import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter
from pathlib import Path

# Groups and their options, in the order in which they are shown. Light to import: ``--help`` waits for it.
GROUPS = {
    "Model": (
        "shape hidden_size num_layers vocabulary model gguf_file revision dtype quantization device_map"
        " attn_implementation random_start bidirectional"
    ),
    "Adapter": (
        "adapter reft regressor base source every_token intervention tune site site_path layers layer positions rank"
        " alpha target_modules match act_fn dropout"
    ),
    "Data": (
        "dataset eval_dataset data data_dir split template prompt prompt_length problems limit train_size"
        " validation_size test_size noise two_sided"
    ),
    "Training": (
        "k full_fraction target_norm relative_target_norm target_norms norm_control target_scale_norm"
        " project_number_direction bias_alone numeric_weight numeric_objective estimator token_cost kl_weight epochs"
        " steps learning_rate head_learning_rate optim schedule warmup_ratio eval_steps patience"
    ),
    "Regression": "loss grid grid_texts added_tokens normalised bounds scale_targets default",
    "Decoding": (
        "gate gates handoff calibrate_gate calibration_size save opener max_new_tokens new_tokens samples temperature"
        " top_p top_k min_p sampled keep cache engine engine_model engine_adapter engine_concurrency engine_timeout"
    ),
    "Evaluation": (
        "eval_size statements runs against shared_only any_template first_turn scoring digits sums alphas only ladders"
        " rounds seconds kills processes quick peers ratios records memory vllm llama"
    ),
    "Compute": "batch_size accumulation eval_batch_size mixed_precision gradient_checkpointing prompt_cache"
    " tensor_parallel",
    "Hub": "repo_id private license commit_message create_pr",
    "Run": "seed seeds save_steps report_to results output json finds output_dir resume overwrite dry_run config help",
}
# Placeholders for values that are neither numbers, nor one of a few choices, nor names.
METAVARS = {
    "DIR": "data_dir finds output_dir results",
    "FILE": "config json output",
    "PATH": "adapter llama match only records reft regressor runs site_path source vllm",
    "GATE": "gate gates",
    "GRID": "grid",
    "LIST": "bounds grid_texts layers target_modules",
    "TEXT": "commit_message",
    "URL": "engine",
}


class Formatter(HelpFormatter):
    """Wraps paragraphs of the description; indented ones are examples and keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else "\n".join(self._split_lines(part, width)) for part in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == "?":  # a flag that also takes true and false, as in YAML
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


def arrange(parser: ArgumentParser) -> None:
    """Puts the options into their groups, under one name each, with a short usage line.

    An option in no group stays where argparse puts it, under "options".
    """
    parser.prog = "/".join(Path(sys.argv[0]).parts[-2:])
    parser.usage = "%(prog)s [options]"
    metavars = {name: metavar for metavar, names in METAVARS.items() for name in names.split()}
    by_name: dict[str, list[Action]] = {}
    for action in parser._actions:
        by_name.setdefault(action.dest, []).append(action)
        _tidy(action, metavars.get(action.dest))
    for title, names in GROUPS.items():
        actions = [action for name in names.split() for action in by_name.get(name, ())]
        parser.add_argument_group(title)._group_actions.extend(actions)
        for action in actions:
            parser._optionals._group_actions.remove(action)


def _tidy(action: Action, metavar: str | None) -> None:
    """Shows an option under one name, with hyphens (underscores work too), and its default if it has one."""
    action.option_strings = [option for option in action.option_strings if "_" not in option]
    is_flag = action.nargs in (0, "?")
    if action.choices is None and not is_flag:
        action.metavar = metavar or {int: "N", float: "X"}.get(action.type, "NAME")  # type: ignore[call-overload]
    if action.dest == "help":
        action.help = "Show this help."
    elif action.default is True:  # --no-… beside it says that it is on
        action.help = SUPPRESS
    elif action.nargs == 0:
        action.help = f"Do not {str(action.help)[0].lower()}{str(action.help)[1:]}"
    elif not any(action.default is nothing for nothing in (None, False, SUPPRESS)) and action.default != []:
        action.help = f"{action.help} [{action.default}]"
