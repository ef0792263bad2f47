"""Makes HTML pages from templates; text from models, data and settings is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

# Control characters, which HTML forbids or changes, become their symbols (U+2400 and on); lone surrogates, which JSON
# may hold and UTF-8 cannot write, become question marks.
_SIGNS: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_SIGNS |= {0x7F: 0x2421, **dict.fromkeys(range(0xD800, 0xE000), "?")}


def render_page(name: str, **values: Any) -> str:
    """Returns a self-contained page without scripts, from ``name.html.j2`` and ``name.css``."""
    environment = Environment(
        loader=PackageLoader("reft_math.experiments.figures", ""),
        autoescape=True,
        finalize=lambda value: value.translate(_SIGNS) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{name}.html.j2").render(style=f"{name}.css", **values)
