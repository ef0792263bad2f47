"""A language model as a regressor: prompts in, numbers out, trained by any of the losses."""

from reft_math.regressor.config import RegressorConfig
from reft_math.regressor.model import Regressor

__all__ = ["Regressor", "RegressorConfig"]
