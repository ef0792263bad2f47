from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from reft_math.errors import UserError
from reft_math.experiments.report import LARGE_SVG, report_page, round_number
from reft_math.experiments.result_folders import find_result_folders
from reft_math.files.atomic import write_csv
from reft_math.scoring.evaluate import score_tables

HOSTILE = "</td></style><script>document.title='taken'</script><img src=http://example.invalid/x>\"'&amp;\ud800\x00"
SHOWN = HOSTILE.replace("\ud800", "?").replace("\x00", "␀")
MADE = {"command": "python eval/report.py", "date": "2026-11-21T10:00:00+00:00", "commit": "abc", "machine": None}
SUMMARY = {"correct": 97, "total": 500, "accuracy": 0.194, "interval_95": [0.1617, 0.231], "mean_tokens": 43.2}


def write_run(folder: Path, command: str, results: dict[str, Any] | None = None, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run_config.json").write_text(json.dumps({"command": command, **settings}))
    if results is not None:
        (folder / "results.json").write_text(json.dumps({**MADE, "config": settings, **results}))
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A training run, an analysis, a run that is not finished, figures of a command that records nothing."""
    root = tmp_path / "results"
    evaluation = {"base": SUMMARY, f"always_on{HOSTILE}": SUMMARY}
    about = {"command": f"python train/prefix_reft.py --k 10{HOSTILE}", "evaluation": evaluation, "train_rows": 2048}
    about["score_tables"] = score_tables(evaluation)
    write_run(root / "b", "PrefixReftOptions", about, model="arithmetic", data_dir=HOSTILE)
    handoff = write_run(root / "a", "HandoffOptions", {}, model="org/other")
    figure = Figure(figsize=(12, 3))
    figure.subplots().plot([0, 1])
    for path in (handoff / "wide.png", handoff / "wide.svg", root / "loose" / "only.png"):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    write_csv(handoff / "long.csv", [{"k": k, "accuracy": k / 7, "note": SHOWN} for k in range(31)])
    (handoff / "short.csv").write_text("a,b,c,d,e,f,g,h\n" + ",".join(["1234567890123"] * 8) + "\n")
    write_run(root / "c", "LoraOptions", model="arithmetic")
    return root


@pytest.fixture
def page(results: Path) -> str:
    return report_page(find_result_folders(results), f"Results {HOSTILE}", MADE)


class Reader(HTMLParser):
    """What a page holds: start tags with their attributes, and the text of each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img"):
            self._open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1], data) if self._open else ("", data))

    def all(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def test_sections_stand_in_the_order_of_experiments_and_contents_link_to_each(page: str) -> None:
    reader = Reader(page)
    titles = [text.strip() for text in reader.all("h2")]
    assert titles == ["Contents", "Prefix-trained interventions", "LoRA", "Hand-off", "loose"]
    assert reader.values("href") == ["#run-1", "#run-2", "#run-3", "#run-4"]
    sections = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert [f"#{name}" for name in sections] == reader.values("href")
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)


def test_every_figure_is_in_the_page_whole_and_as_svg_where_there_is_one(page: str, results: Path) -> None:
    images = [attributes for tag, attributes in Reader(page).tags if tag == "img"]
    kinds, data = zip(*(image["src"].split(";base64,") for image in images), strict=True)
    assert kinds == ("data:image/svg+xml", "data:image/png")
    files = [results / "a" / "wide.svg", results / "loose" / "only.png"]
    assert [base64.b64decode(text) for text in data] == [path.read_bytes() for path in files]
    assert [image["alt"] for image in images] == ["Figure wide of Hand-off: a", "Figure only of loose"]


def test_a_large_svg_gives_way_to_a_png_and_stays_where_there_is_none(results: Path) -> None:
    for path in (results / "a" / "wide.svg", results / "a" / "alone.svg"):
        path.write_text(f"<svg xmlns='http://www.w3.org/2000/svg'>{' ' * LARGE_SVG}</svg>")
    found = Reader(report_page(find_result_folders(results), "", MADE)).values("src")
    assert [source.partition(";")[0] for source in found] == [
        "data:image/svg+xml",
        "data:image/png",
        "data:image/png",
    ]


def test_every_table_is_there_and_a_long_one_is_folded_under_its_number_of_rows(page: str) -> None:
    reader = Reader(page)
    assert reader.all("summary").count("long.csv: 31 rows") == 1
    assert "short.csv" in reader.all("figcaption")
    cells = reader.all("td")
    long = [cell for k in range(31) for cell in (str(k), f"{k / 7:.4g}", SHOWN)]
    assert cells[-101:] == [*long, *["1234567890123"] * 8]
    assert reader.all("th")[-11:] == ["k", "accuracy", "note", *"abcdefgh"]


def test_scores_settings_and_command_are_shown(page: str) -> None:
    reader = Reader(page)
    cells = reader.all("td")
    assert cells[1:6] == ["97", "500", "19.4%", "16.2% - 23.1%", "-"]
    assert f"10{SHOWN}".replace(" ", "") in "".join(reader.all("span"))
    names = dict(zip(reader.all("dt"), reader.all("dd"), strict=True))
    assert names["train_rows"] == "2048"
    assert names["data_dir"] == SHOWN
    assert names["page made by"] == "python eval/report.py"
    paragraphs = " ".join(reader.all("p"))
    assert "Models: arithmetic (embedded), org/other." in paragraphs
    assert "say nothing of a large language model" in paragraphs


def test_what_is_not_a_finished_run_says_so(page: str) -> None:
    paragraphs = " ".join(Reader(page).all("p"))
    assert paragraphs.count("Unfinished: ") == 1
    assert paragraphs.count("Figures and tables only: ") == 1
    assert Reader(page).all("small").count("unfinished") == 1


def test_text_is_never_markup_and_nothing_is_loaded(page: str) -> None:
    reader = Reader(page)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in reader.tags)
    assert all(source.startswith("data:image/") for source in reader.values("src"))
    assert all(target.startswith("#run-") for target in reader.values("href"))
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    (style,) = reader.all("style")
    assert re.search(r"url\(|@import|http", style) is None
    assert reader.all("h1") == [f"Results {SHOWN}"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("0.123456", "0.1235"),
        ("-9672.7401", "-9673"),
        ("1.312085177259197e-141", "1.312e-141"),
        ("-0.0", "0"),
        ("1e+3", "1000"),
        ("12e45678", "12e45678"),
        ("2048", "2048"),
        ("123456789", "123456789"),
        ("1cffbca1bafc", "1cffbca1bafc"),
        ("0.1.0", "0.1.0"),
        ("nan", "nan"),
        ("", ""),
    ],
)
def test_fractions_are_rounded_and_nothing_else(cell: str, shown: str) -> None:
    assert round_number(cell) == shown


@pytest.mark.parametrize(
    "results", [{"score_tables": [1]}, {"score_tables": {"evaluation": 1}}, {"machine": [2]}, {"versions": "1.0"}]
)
def test_results_in_another_form_are_named(tmp_path: Path, results: dict[str, Any]) -> None:
    write_run(tmp_path / "x", "LoraOptions", results)
    with pytest.raises(UserError, match=r"x/results\.json has not the form"):
        report_page(find_result_folders(tmp_path), "", MADE)


# --- in a browser ---------------------------------------------------------------------------------------------------

QUIET = (
    "--disable-gpu --disable-quic --disable-sync --no-first-run --disable-background-networking"
    " --disable-component-update --enable-logging=stderr"
)
# A headless window is at least 500 pixels wide; a frame may be as narrow as a phone. The frame keeps its own policy.
LOOK = """<iframe style="width: {width}px; height: 800px; border: 0"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const colour = element => frame.contentWindow.getComputedStyle(element);
  const background = element => {{
    const found = colour(element).backgroundColor;
    return found != "rgba(0, 0, 0, 0)" || !element.parentElement ? found : background(element.parentElement);
  }};
  const texts = [...page.querySelectorAll("body *")].filter(element =>
    [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
  const found = {{
    title: page.title,
    sticks_out: root.scrollWidth - root.clientWidth,
    images: [...page.images].map(image => image.complete && image.naturalWidth > 0),
    boxes: [...page.querySelectorAll(".scroll")].map(box => box.scrollWidth - box.clientWidth),
    colours: texts.map(element => [background(element), colour(element).color]),
  }};
  document.body.append(Object.assign(document.createElement("output"), {{textContent: JSON.stringify(found)}}));
}};
frame.srcdoc = {page};
</script>"""


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``look(page, width, *flags)``: what a headless browser finds in a page that wide; no error on its console."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser to look with: none of {', '.join(names)} is on the path")

    def find(page: str, width: int, *flags: str) -> dict[str, Any]:
        path = tmp_path / "look.html"
        text = json.dumps(page).replace("</", "<\\/")
        path.write_text(LOOK.format(width=width, page=text), encoding="utf-8")
        profile = f"--user-data-dir={tmp_path}/user"
        window = [f"--window-size={width + 100},1000", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", *QUIET.split(), profile, *flags, *window],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        output = re.search(r"<output>(.*)</output>", done.stdout, re.DOTALL)
        assert output is not None
        found: dict[str, Any] = json.loads(html.unescape(output[1]))
        return found

    return find


@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_all_figures_and_nothing_sticks_out(
    look: Callable[..., dict[str, Any]], page: str, width: int
) -> None:
    found = look(page, width)
    assert found["title"] == f"Results {SHOWN}"
    assert found["images"] == [True, True]
    assert found["sticks_out"] == 0
    assert any(hidden > 0 for hidden in found["boxes"]) == (width == 360)  # wide ones are moved sideways there


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_text_is_readable(look: Callable[..., dict[str, Any]], page: str, scheme: str) -> None:
    """Contrast of 4.5 (WCAG AA)."""
    found = look(page, 800, f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}")
    pairs = [sorted(map(luminance, pair)) for pair in found["colours"]]
    assert len(pairs) > 100
    assert min((high + 0.05) / (low + 0.05) for low, high in pairs) >= 4.5
    assert (luminance(found["colours"][0][0]) < 0.05) == (scheme == "dark")


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of an opaque sRGB colour."""
    values = [int(value) / 255 for value in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
