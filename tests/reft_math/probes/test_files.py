from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reft_math.errors import UserError
from reft_math.probes.files import load_probes, save_probes
from reft_math.probes.number import Probe

SOUND = {f"number.identity.{name}": np.array(1.0) for name in ("weight", "intercept", "penalty")}


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


@pytest.mark.parametrize(
    "tensors",
    [
        {"number.identity.weight": np.ones(3)},  # without an intercept
        {**SOUND, "number.identity.penalty": np.ones(3)},
        {**SOUND, "number.identity.weight": np.array([np.nan])},
        {**SOUND, "number": np.ones(3)},
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(SOUND, path)
    assert load_probes(path).keys() == {("number", "identity")}
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"a\.safetensors does not hold this run's probes"):
        load_probes(path)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.safetensors does not hold this run's probes"):
        load_probes(path)
