"""YAML that anybody may have written. Heavy to import: commands without ``--config`` do without it."""

from __future__ import annotations

from typing import Any

import yaml


class _NamedOnce(yaml.SafeLoader):
    """PyYAML itself takes the last of two values for one name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = dict(super().construct_mapping(node, deep))
        if len(values) < len(node.value):
            raise ValueError("a name stands twice")
        return values


def parse_yaml(text: str) -> Any:
    """The value, made of plain types only.

    Raises:
        ValueError: It is no such YAML, or a name stands twice; the reason in one line.
    """
    try:
        return yaml.load(text, _NamedOnce)
    except RecursionError:
        raise ValueError("lists or mappings within one another, too deep to read") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
