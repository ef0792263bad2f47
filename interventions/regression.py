"""Provides `load_regressor` at the path from which saved regressors' cards import it."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("reft_math.regression.build"), name)
