"""Part of the site's build (mkdocs.yml): a page for each public name that api.yaml lists, made of its docstring."""

from itertools import chain
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

GROUPS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("api.yaml").read_text(encoding="utf-8"))


# The name's own docstring, then its module's, which says what its names have in common.
PAGE = """\
::: {name}

## {module}

::: {module}
    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}
"""


def _page(name: str) -> str:
    return f"api/{name}.md"


def on_config(config: MkDocsConfig) -> None:
    pages = [{group: [{name.rpartition(".")[2]: _page(name)} for name in names]} for group, names in GROUPS.items()]
    config.nav.append({"API": pages})


def on_files(files: Files, config: MkDocsConfig) -> None:
    for name in chain(*GROUPS.values()):
        content = PAGE.format(name=name, module=name.rpartition(".")[0])
        files.append(File.generated(config, _page(name), content=content))
