"""HTML as a tree: text from models, data and settings goes in as text and is never markup."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

# Control characters, which HTML forbids or changes, as the signs that stand for them (U+2400 and on).
_CONTROL_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def tag(name: str, /, *children: str | Element, **attributes: str) -> Element:
    """An element; ``_`` in attribute names stands for ``-``, and one at the end for nothing (``class_``)."""
    element = Element(name)
    for attribute, value in attributes.items():
        element.set(attribute.rstrip("_").replace("_", "-"), _clean(value))
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + _clean(child)
        else:
            element.text = (element.text or "") + _clean(child)
    return element


def document(title: str, style: str, *children: str | Element) -> str:
    """A whole page that fetches nothing and runs nothing.

    Args:
        title: Of the window.
        style: Style sheet; ours, for it goes in as it is.
        children: Of the body.
    """
    # Should text ever pass for markup, it still runs and loads nothing; pictures are part of the page.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", style),
    )
    page = tag("html", head, tag("body", *children), lang="en")
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def _clean(text: str) -> str:
    """Without what UTF-8 cannot write (half a surrogate pair, which JSON may hold) and HTML cannot show."""
    return text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL_SIGNS)
