from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from reft_math.errors import UserError
from reft_math.files.schema import from_json


@dataclass(frozen=True)
class Settings:
    name: Literal["a", "b"]
    count: int | None
    share: float
    is_on: bool
    layers: str | tuple[int, ...]
    bounds: tuple[float, float] | None
    versions: dict[str, str]


GOOD: dict[str, Any] = {
    "name": "a",
    "count": 3,
    "share": 1,
    "is_on": False,
    "layers": [0, 2],
    "bounds": [0, 1.5],
    "versions": {"torch": "2"},
}


@pytest.mark.parametrize(
    "changes", [{}, {"count": None, "layers": "all", "bounds": None, "share": 0.5}, {"layers": []}]
)
def test_what_json_made_of_a_dataclass_becomes_it_again(changes: dict[str, Any]) -> None:
    values = {**GOOD, **changes}
    settings = from_json(Settings, values)
    assert asdict(settings) == {name: tuple(it) if isinstance(it, list) else it for name, it in values.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "c"}, "name must be 'a' or 'b'; got 'c'"),
        ({"name": ["a"]}, r"name must be 'a' or 'b'; got \['a'\]"),
        ({"count": 1.0}, "count must be int or null; got 1.0"),
        ({"count": True}, "count must be int or null; got True"),
        ({"count": "3"}, "count must be int or null; got '3'"),
        ({"share": "1"}, "share must be float; got '1'"),
        ({"share": None}, "share must be float; got None"),
        ({"share": float("nan")}, "share must be float; got nan"),
        ({"share": float("inf")}, "share must be float; got inf"),
        ({"share": 10**400}, "share must be float; got 1000"),
        ({"share": True}, "share must be float; got True"),
        ({"is_on": 1}, "is_on must be bool; got 1"),
        ({"layers": [0, "1"]}, r"layers must be str or tuple\[int, \.\.\.\]; got \[0, '1'\]"),
        ({"layers": [True]}, r"layers must be .* got \[True\]"),
        ({"layers": {"0": 1}}, "layers must be"),
        ({"bounds": [1]}, r"bounds must be tuple\[float, float\] or null; got \[1\]"),
        ({"bounds": [1, 2, 3]}, "bounds must be"),
        ({"bounds": [1, None]}, "bounds must be"),
        ({"versions": {"torch": 2}}, r"versions must be dict\[str, str\]; got \{'torch': 2\}"),
        ({"versions": []}, r"versions must be dict\[str, str\]; got \[\]"),
        ({"colour": "red"}, "its fields are name, count, .* versions; unknown: colour"),
        ({"name": "b" * 10**6}, "got 'b{199}$"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(Settings, {**GOOD, **changes})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match=r"missing: count, share$"):
        from_json(Settings, {name: value for name, value in GOOD.items() if name not in ("count", "share")})
