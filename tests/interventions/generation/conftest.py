"""The tiny models of generation's tests have two layers: these tests run many passes of them."""

from __future__ import annotations

from functools import partial

import pytest
from gated_batches import TinyModel


@pytest.fixture
def tiny_model(tiny_model: TinyModel) -> TinyModel:
    return partial(tiny_model, num_hidden_layers=2)
