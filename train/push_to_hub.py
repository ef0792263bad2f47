"""Upload an adapter or a regressor, with its model card, to the Hugging Face hub.

    hf auth login
    uv run train/push_to_hub.py --adapter results/prefix-reft/adapter --repo-id user/name --license apache-2.0

The card names base, data and results as far as they are known; its text is yours to edit.
docs/hub.md is the guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reft_math.commands.run import run
from reft_math.errors import UserError, require, require_one_process


@dataclass(frozen=True)
class PushOptions:
    adapter: str | None = field(default=None, metadata={"help": "Folder of an adapter or a regressor."})
    repo_id: str | None = field(default=None, metadata={"help": "Repository: user/name, or name for your own account."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    license: str | None = field(
        default=None, metadata={"help": "License for the card, by its name on the hub, such as apache-2.0 (not set)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, created if missing (main)."})
    commit_message: str = field(default="Upload with reft-math", metadata={"help": "First line of the commit message."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing to main."})

    def __post_init__(self) -> None:
        require(
            self, "adapter", lambda value: value and Path(value).is_dir(), "the folder of an adapter or a regressor"
        )
        require(self, "repo_id", bool, "a repository's name, user/name")
        require_one_process("an upload")


def main(options: PushOptions) -> None:
    import shutil

    from reft_math.commands.output_folder import RESULTS_NAME, RUN_CONFIG
    from reft_math.models.adapter_card import write_adapter_card
    from reft_math.models.card import base_name
    from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
    from reft_math.models.hub import fetch, push
    from reft_math.regression.card import write_regressor_card
    from reft_math.regression.config import REGRESSOR_CONFIG, RegressorConfig
    from reft_math.training.card import notes_beside

    assert options.adapter is not None  # checked
    assert options.repo_id is not None
    source = Path(options.adapter)
    is_regressor = (source / REGRESSOR_CONFIG).is_file()
    fetch(source, REGRESSOR_CONFIG if is_regressor else ADAPTER_CONFIG)
    write_card = write_regressor_card if is_regressor else write_adapter_card
    base = (RegressorConfig if is_regressor else PrefixReftConfig).from_pretrained(source).base_model

    if outside := next(
        (path for path in source.rglob("*") if not path.resolve().is_relative_to(source.resolve())), None
    ):
        raise UserError(
            f"--adapter must hold its own files; {outside} is a link to {outside.resolve()}: copy it (cp -rL)"
        )

    def save(folder: Path) -> None:
        # Settings and results name the machine and its paths; the card holds what others need of them.
        without = shutil.ignore_patterns(RUN_CONFIG, RESULTS_NAME, "*.tmp")
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=without)
        write_card(folder, notes_beside(source))

    commit = push(
        save,
        options.repo_id,
        private=options.private or None,
        revision=options.revision,
        commit_message=options.commit_message,
        create_pr=options.create_pr,
        license=options.license,
    )
    print(f"pushed: {commit.pr_url or commit}")
    if base is not None and base_name(base) != base:
        print(f"the base is a folder of this machine, which others lack; its path stands in the config file: {base}")
    if options.license is None:
        print("the card names no license unless it did before; --license puts one in")


if __name__ == "__main__":
    run(main, PushOptions, __doc__)
