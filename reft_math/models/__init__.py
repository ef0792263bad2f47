"""Bases, and adapters on them."""

from reft_math.models.base import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]
