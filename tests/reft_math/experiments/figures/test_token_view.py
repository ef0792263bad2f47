from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from reft_math.experiments.figures.token_view import (
    Answer,
    AnsweredProblem,
    Token,
    colour_level,
    token_texts,
    token_view,
)

HOSTILE = "</p><script>document.title='taken'</script><img src=http://example.invalid/x>\"'&amp;"
TEXTS = ["Let", " us", "\n", HOSTILE, ".\n\n", " a\r\x00b", "\ttab", " ↵", " €", " end"]
NATS = [1.7, 1e-4, 0.0, 0.02, 0.3, 7.5, 4.0, 1e-9, 0.8, 2.2]


def answer(decoder: str, nats: list[float], closing: int | None = None, threshold: float = math.inf) -> Answer:
    """The ten texts and an end token, of which as many are measured as there are ``nats``."""
    kl = [*nats, *[None] * (len(TEXTS) + 1 - len(nats))]
    tokens = [Token(100 + place, f"Ġ{text}", text, kl[place]) for place, text in enumerate([*TEXTS, ""])]
    return Answer(decoder, tokens, closing is not None, closing_position=closing, threshold=threshold)


GATED = answer("gated", NATS[:6], 5, 9.5)
PROBLEM = AnsweredProblem(
    f"set/{HOSTILE}",
    f"How many? {HOSTILE}",
    f"5{HOSTILE}",
    [answer("base", []), GATED, answer("always on", [*NATS, 20.0])],
)
PAGE = token_view([PROBLEM], {"dataset": "gsm8k", "gate": f"kl:9.5{HOSTILE}"}, {"commit": "abc"})


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, *marks: str) -> list[Node]:
        """Descendants, in order, of a tag or with an attribute that is among ``marks``."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                found += [child] if {child.tag, *child.attributes} & set(marks) else []
                found += child.all(*marks)
        return found


class Tree(HTMLParser):
    """A page's elements; every one that is opened must be closed, in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open = [Node("", {})]
        self.feed(page)
        self.close()
        (self.root,) = self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag != "meta":
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


@pytest.fixture
def articles() -> list[Node]:
    return Tree(PAGE).root.all("article")


def test_tokens_in_order_are_the_completion(articles: list[Node]) -> None:
    """Control characters stand as the signs for them, for HTML has no NUL and reads CR as LF."""
    expected = "".join(TEXTS).replace("\r", "␍").replace("\x00", "␀")
    for article in articles:
        tokens = article.all("data-position")
        assert [token.attributes["data-position"] for token in tokens] == [str(place) for place in range(11)]
        assert "".join(token.text() for token in tokens) == expected
        assert [len(token.all("i")) for token in tokens] == [text.count("\n") for text in [*TEXTS, ""]]


def test_the_mark_stands_before_the_token_that_the_base_drew_first(articles: list[Node]) -> None:
    base, gated, always_on = articles
    assert base.all("mark") == always_on.all("mark") == []
    sequence = gated.all("mark", "data-position")
    assert [node.tag for node in sequence] == [*["span"] * 5, "mark", *["span"] * 6]
    (mark,) = gated.all("mark")
    assert mark.attributes["data-closing"] == "5"
    assert mark.text() == "gate closed at token 5, C = 9.52 nats > 9.5"


@pytest.mark.parametrize(
    ("nats", "threshold", "text"),
    [
        ([1.0, 1.41], 2.0, "C = 2.41 nats > 2"),
        ([1.0, 1.00004], 2.0, "C = 2.00004 nats > 2"),
        ([0.1, 0.2], 0.3, "C = 0.30000000000000004 nats > 0.3"),
        ([1.0, math.inf], 2.0, "C = inf nats > 2"),
        ([1.0], 2.0, "by count, C = 1 nats"),
        ([], math.inf, "by count, C = 0 nats"),
    ],
)
def test_the_mark_says_why_the_gate_closed(nats: list[float], threshold: float, text: str) -> None:
    closing = 1 if nats else 0
    problem = replace(PROBLEM, answers=[answer("gated", nats, closing, threshold)])
    (mark,) = Tree(token_view([problem], {}, {})).root.all("mark")
    assert mark.text() in (f"gate closed at token {closing}, {text}", f"gate closed at token {closing} {text}")


def test_colours_grow_with_divergence_and_only_measured_tokens_drawn_with_interventions_have_one(
    articles: list[Node],
) -> None:
    base, gated, always_on = (article.all("data-position") for article in articles)
    assert ["style" in token.attributes for token in base] == [False] * 11
    assert ["style" in token.attributes for token in gated] == [True] * 5 + [False] * 6
    by_kl = sorted(always_on, key=lambda token: float(token.attributes["data-kl"]))
    levels = [float(token.attributes["style"].removeprefix("--level: ")) for token in by_kl]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 1)
    assert (colour_level(0), colour_level(1), colour_level(4), colour_level(math.inf)) == (0, 0.5, 1, 1)


def test_tooltips_and_table_hold_the_figures(articles: list[Node]) -> None:
    _, gated, always_on = articles
    titles = [token.attributes["title"] for token in gated.all("data-position")]
    assert titles[1] == "“ us”\ntoken 1, id 101\nD = 0.0001 nats, C = 1.7 nats"
    assert titles[5] == "“ a␍␀b”\ntoken 5, id 105\nD = 7.5 nats, C = 9.52 nats\ndrawn by the base"
    assert titles[6] == "“\ttab”\ntoken 6, id 106\ndrawn by the base"
    assert titles[10].startswith("“Ġ”")
    rows = [[cell.text() for cell in row.all("td")] for row in always_on.all("tbody")[0].all("tr")]
    assert rows[1] == ["1", " us", "101", "0.0001", "1.7"]
    assert len(rows) == 11


def test_head_and_verdicts(articles: list[Node]) -> None:
    root = Tree(PAGE).root
    assert root.all("html")[0].attributes["lang"] == "en"
    assert root.all("title")[0].text() == f"Token view: gsm8k, kl:9.5{HOSTILE}"
    assert [node.text() for node in root.all("dd")][2:] == ["base 0 of 1, gated 1 of 1, always on 0 of 1", "abc"]
    assert [article.all("h3")[0].text() for article in articles] == [
        "base ✗ wrong",
        "gated ✓ right",
        "always on ✗ wrong",
    ]
    assert "KL(p_base ‖ p_mod)" in token_view([PROBLEM], {}, {}, "base||mod")


def test_text_is_never_markup_and_nothing_is_loaded() -> None:
    root = Tree(PAGE).root
    assert root.all("script", "img", "link", "iframe", "object", "src", "href") == []
    style = root.all("style")[0].text()
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style


def test_pieces_of_text_add_up_where_characters_are_spread_over_tokens() -> None:
    tokenizer = Tokenizer(
        models.BPE({byte: place for place, byte in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode("7 € 🙂!").ids
    assert token_texts(ids, tokenizer.decode) == ["7", " ", "", "", "€", " ", "", "", "", "🙂", "!"]
    assert token_texts(ids[:4], tokenizer.decode) == ["7", " ", "", "\N{REPLACEMENT CHARACTER}"]
    assert token_texts([], tokenizer.decode) == []


# --- in a browser ---------------------------------------------------------------------------------------------------

# Writes into the page what only a browser knows: colours as drawn, and places.
PROBE = """<script>
const canvas = document.createElement("canvas").getContext("2d");
const drawn = colour => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const background = element => {
  const colour = drawn(getComputedStyle(element).backgroundColor);
  return colour[3] == 255 || !element.parentElement ? colour : background(element.parentElement);
};
for (const element of document.querySelectorAll("body *")) {
  if ([...element.childNodes].some(node => node.nodeType == Node.TEXT_NODE && node.data.trim()))
    element.dataset.colours = [background(element), drawn(getComputedStyle(element).color)].join(" ");
  const box = element.getBoundingClientRect();
  element.dataset.box = [box.left, box.top, box.right, box.bottom].join(" ");
  element.dataset.overflow = element.scrollWidth > element.clientWidth && element.clientWidth > 0;
}
document.body.dataset.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
</script>"""


QUIET = (
    "--disable-gpu --disable-quic --disable-sync --no-first-run --disable-background-networking"
    " --disable-component-update"
)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., Node]:
    """``browse(page, *flags)``: the tree that a headless browser makes of a page."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser to look with: none of {', '.join(names)} is on the path")

    def render(page: str, *flags: str) -> Node:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        profile, target = f"--user-data-dir={tmp_path}/user", ["--dump-dom", path.as_uri()]
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", *QUIET.split(), profile, *flags, *target],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return Tree(done.stdout).root

    return render


def probed(page: str) -> str:
    """The page with the probe at its end, and without the policy that would keep the probe from running."""
    assert page.count("Content-Security-Policy") == 1
    return page.replace("Content-Security-Policy", "x-none").replace("</body>", f"{PROBE}</body>")


def luminance(rgb: list[float]) -> float:
    """WCAG 2.2's relative luminance of an sRGB colour, 0 to 255 each."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_browser_finds_the_tokens_and_runs_nothing_of_them(browse: Callable[..., Node]) -> None:
    root = browse(PAGE)
    assert len(root.all("data-position")) == 33
    assert root.all("script", "img") == []
    assert root.all("title")[0].text().startswith("Token view")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_text_is_readable_and_colours_run_one_way(browse: Callable[..., Node], scheme: str) -> None:
    """Contrast of 4.5 (WCAG AA); in the light scheme more divergence is darker, in the dark one brighter."""
    root = browse(probed(PAGE), f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}")
    texts = [node for node in root.all("data-colours") if node.tag != "script"]
    assert len(texts) > 50
    pairs = {}
    for node in texts:
        values = [float(value) for value in node.attributes["data-colours"].replace(" ", ",").split(",")]
        pairs[id(node)] = luminance(values[:3]), luminance(values[4:7])
        low, high = sorted(pairs[id(node)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, node
    assert (pairs[id(texts[0])][0] < 0.05) == (scheme == "dark")
    tokens = [node for node in texts if {"data-position", "data-kl"} <= node.attributes.keys()]
    tokens.sort(key=lambda node: float(node.attributes["data-kl"]))
    backgrounds = [pairs[id(node)][0] for node in tokens]
    assert backgrounds == sorted(backgrounds, reverse=scheme == "light")
    assert len(set(backgrounds)) > 6


@pytest.mark.parametrize(("width", "columns"), [(1400, 3), (500, 1)])
def test_columns_stand_side_by_side_or_stack_and_nothing_sticks_out(
    browse: Callable[..., Node], width: int, columns: int
) -> None:
    root = browse(probed(PAGE), f"--window-size={width},1000")
    boxes = [[float(value) for value in node.attributes["data-box"].split()] for node in root.all("article")]
    assert len({left for left, *_ in boxes}) == columns
    assert all(before[2] <= after[0] if columns == 3 else before[3] <= after[1] for before, after in pairwise(boxes))
    assert root.all("body")[0].attributes["data-overflow"] == "false"
    (mark,) = root.all("mark")
    assert mark.all("span")[0].attributes["data-overflow"] == "false"
    _, _, right, bottom = (float(value) for value in mark.attributes["data-box"].split())
    closing = root.all("article")[1].all("data-position")[5]
    left, _, _, closing_bottom = (float(value) for value in closing.attributes["data-box"].split())
    assert right <= left + 3
    assert abs(bottom - closing_bottom) < 12
