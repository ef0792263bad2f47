"""Number probes, pushes along them, and an adapter's changes along them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import reft_math.experiments.number_probe as module
from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.files.records import RecordFile
from reft_math.models import load_model
from reft_math.probes.number_texts import draw_sums
from reft_math.scoring.statistics import wilson_interval

PROBE_SUMS, SUMS = 60, 30
SETTINGS = f"--limit 8 --sums {SUMS} --alphas 0.6 0.2 --batch-size 30"


@pytest.fixture(autouse=True)
def few_probe_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE_SUMS", PROBE_SUMS)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that the command drew, by name."""
    drawn: dict[str, Figure] = {}

    def draw(name: str, original: Callable[..., Figure], *tables: Any) -> Figure:
        drawn[name] = original(*tables)
        return drawn[name]

    for name in ("probes", "pushes", "changes"):
        original = getattr(module, f"{name}_figure")
        monkeypatch.setattr(module, f"{name}_figure", partial(draw, name, original))
    return drawn


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``make_adapter(name, strength)``: RED moved at random; untouched, it changes nothing."""

    def make(name: str, strength: float, **config: Any) -> Path:
        reft_model = get_prefix_reft_model(
            load_model("arithmetic"), PrefixReftConfig(**{"gate": "tokens:4", "template": "chat/1", **config})
        )
        torch.manual_seed(len(name))
        for values in reft_model.biases().values():
            values.data += strength * torch.randn_like(values)
        reft_model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def table(folder: Path, name: str, **where: object) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == str(value) for key, value in where.items())]


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def records(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return RecordFile(folder / "records" / f"{name}.jsonl").done


def test_tables_and_figures_are_what_the_records_say(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[..., Path], figures: dict[str, Figure]
) -> None:
    folder, adapter, reft = tmp_path / "run", make_adapter("adapter", 0.5), make_adapter("reft", 0.8)
    call(f"eval/number_probe.py --adapter {adapter} --reft {reft} {SETTINGS} --output-dir {folder}")
    for name in ("probes", "pushes", "changes"):
        for ending in ("png", "svg"):
            assert (folder / f"{name}.{ending}").stat().st_size > 1000
    results = json.loads((folder / "results.json").read_text())
    assert all(results[name] for name in ("forms", "probes", "pushes", "thresholds", "shares"))
    assert results["form"] == "worked"
    assert results["reft"]["gate"] == "tokens:4"

    # Pushes: the counts are those of the recorded answers, the lines those of the table.
    truths = np.array([item.result for item in draw_sums(2, PROBE_SUMS + SUMS, 0)[PROBE_SUMS:]])
    answers = {name: np.array(row["answers"], dtype=float) for name, row in records(folder, "pushes").items()}
    assert (answers["unpushed"] == truths).all()
    places = list(dict.fromkeys(row["where"] for row in table(folder, "pushes")))
    assert len(places) == 3
    assert len(answers) == 3 * 3 * 4 + 1
    for axes, where in zip(figures["pushes"].axes, places, strict=True):
        for line, direction in zip(axes.lines, ("probe", "random", "orthogonal"), strict=False):
            rows = table(folder, "pushes", where=where, direction=direction)
            assert column(rows, "alpha") == [-0.6, -0.2, 0, 0.2, 0.6]
            for row in rows:
                name = f"{where}/{direction}/{float(row['alpha']):+}" if float(row["alpha"]) else "unpushed"
                wrong = int((answers[name] != truths).sum())
                assert int(row["wrong"]) == int(row["above"]) + int(row["below"]) + int(row["no_number"]) == wrong
                assert (float(row["low"]), float(row["high"])) == wilson_interval(wrong, SUMS)
            assert line.get_xdata().tolist() == column(rows, "alpha")
            assert line.get_ydata().tolist() == column(rows, "error_rate")
        assert int(table(folder, "pushes", where=where, alpha=0.0)[0]["wrong"]) == 0

    # Probes: the lines are those of the table, and the table holds every layer's records.
    readings = [row for place in records(folder, "probes").values() for row in place["readings"]]
    assert column(table(folder, "probes"), "error") == [row["error"] for row in readings]
    assert {row["site"] for row in readings} == {"block", "ffn_up"}, "ffn_up has a width of its own"
    axes = figures["probes"].axes[0]
    rows = table(folder, "probes", site="block", reads="number", target="identity", where="all", place="all")
    assert axes.lines[0].get_ydata().tolist() == column(rows, "r2")
    assert len(list((folder / "probes").iterdir())) == 8

    # Changes: bins and means, computed again from the records.
    norms = np.array([place["mean_norm"] for name, place in records(folder, "probes").items() if "block" in name])
    sources = {"always on": "always-on", "gate tokens:4": "gated", "ReFT, always on": "reft"}
    for index, (source, file) in enumerate(sources.items()):
        solutions = [np.array(row["projections"]) / norms for row in records(folder, f"changes-{file}").values()]
        for layer, values in enumerate(np.concatenate(solutions).T):
            bins = table(folder, "changes", source=source, layer=layer)
            edges = np.array([*column(bins, "from"), float(bins[-1]["to"])])
            counts, _ = np.histogram(values, edges)
            assert column(bins, "changes") == counts.tolist()
            drawn = figures["changes"].axes[index].patches[layer].get_data()
            np.testing.assert_allclose(drawn.values, counts / counts.sum())
            np.testing.assert_allclose(drawn.edges, edges)
        line = figures["changes"].axes[-1].lines[index]
        rows = table(folder, "positions", source=source)
        assert line.get_ydata().tolist() == column(rows, "mean")[: len(line.get_ydata())]
        first = np.mean([solution[0].sum() for solution in solutions])
        assert float(rows[0]["mean"]) == pytest.approx(first)
        gated = float(rows[5]["mean"]) == 0
        assert gated == (file == "gated"), "only the gate hands over to the base"


def test_adapters_of_zeros_change_nothing_and_a_stopped_run_goes_on(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, zero = tmp_path / "run", make_adapter("zero", 0.0)
    line = f"eval/number_probe.py --adapter {zero} --gate always {SETTINGS} --layer 0 --output-dir {folder}"
    solve_pushed = module.solve_pushed

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "solve_pushed", stop)
    with pytest.raises(KeyboardInterrupt):
        call(line)
    before = {path: path.read_bytes() for path in (folder / "probes").iterdir()}
    monkeypatch.setattr(module, "solve_pushed", solve_pushed)
    monkeypatch.setattr("reft_math.probes.number_measures.read_activations", stop)
    call(f"{line} --resume")
    assert {path: path.read_bytes() for path in (folder / "probes").iterdir()} == before
    assert set(column(table(folder, "shares"), "beyond")) == set(column(table(folder, "shares"), "size")) == {0.0}
    assert set(column(table(folder, "positions"), "mean")) == {0.0}
    assert not any(np.any(row["projections"]) for row in records(folder, "changes-always-on").values())
    assert {row["where"] for row in table(folder, "pushes")} == {"all layers", "layer 2", "layer 0"}


def test_a_base_alone_has_probes_and_pushes(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In sums that the embedded world does not hold no form is good enough, and the command says so."""
    folder = tmp_path / "run"
    call(f"eval/number_probe.py --digits 4 {SETTINGS} --output-dir {folder}")
    assert {path.stem for path in folder.glob("*.csv")} == {"forms", "probes", "pushes", "thresholds"}
    assert {path.stem for path in folder.glob("*.png")} == {"probes", "pushes"}
    assert "no prompt form reaches 95%: unpushed, the best (worked) solves 0.0% of the sums" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--adapter {narrow}", "this one is for ffn_up of width 99 (base arithmetic), the model's is 384"),
        (
            "--adapter {adapter} --reft {narrow}",
            "this one is for ffn_up of width 99 (base arithmetic), the model's is 384",
        ),
        ("--adapter {adapter} --reft {plain}", "it needs the same base and prompt template"),
        ("--reft {adapter}", "--reft is shown beside an adapter; pass --adapter too"),
        ("--adapter {adapter} --gate off", "--gate must be open then, got off"),
        ("--adapter {adapter} --gate prompt", "--gate must be open then, got prompt"),
        ("--adapter {adapter} --handoff keep", "leave --handoff out"),
        ("--layer 4", "--layer must be one of the model's, 0-3; got 4"),
        ("--alphas 0 0.1", "--alphas must be finite sizes above 0"),
        ("--alphas 0.1 nan", "--alphas must be finite sizes above 0"),
        ("--digits 1", "there are 45 sums of two numbers of 1 digits, and 1060 are needed"),
        ("--sums 0", "--sums must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    make_adapter: Callable[..., Path],
    line: str,
    message: str,
) -> None:
    folders = {name: make_adapter(name, 0.5, base_model="arithmetic") for name in ("adapter", "narrow")}
    folders["plain"] = make_adapter("plain", 0.5, base_model="arithmetic", template="plain/1")
    config = json.loads((folders["narrow"] / "reft_config.json").read_text())
    (folders["narrow"] / "reft_config.json").write_text(json.dumps({**config, "width": 99}))
    refused(f"eval/number_probe.py {line.format(**folders)} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
