"""The embedded world: problems, tokenizer, and a tiny Llama that has learnt to solve them."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_MODEL = "arithmetic"  # its name as a model
EMBEDDED_FOLDER = Path(__file__).parent / "model"
