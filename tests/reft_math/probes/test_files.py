from __future__ import annotations

from pathlib import Path

import numpy as np

from reft_math.probes.files import load_probes, save_probes
from reft_math.probes.number import Probe


def test_probes_come_back_as_they_went(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [("number", "identity"), ("number", "log2"), ("upcoming", "log2")]
    probes = {name: Probe(rng.standard_normal(5), float(rng.standard_normal()), 0.1) for name in names}
    path = tmp_path / "probes" / "block-0.safetensors"
    save_probes(path, probes)
    loaded = load_probes(path)
    assert loaded.keys() == probes.keys()
    for name, probe in probes.items():
        np.testing.assert_array_equal(loaded[name].weight, probe.weight)
        assert (loaded[name].intercept, loaded[name].penalty) == (probe.intercept, probe.penalty)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
