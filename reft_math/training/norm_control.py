"""Controllers that hold the bias norm at a target.

The measured norm is ``n = mean_l ‖b_l‖₂`` over the intervened layers, in float32. Five controllers bring it to the
target ``n*`` and keep it there, each by a different actuator:

| name         | acts on              | how                                                           |
| ------------ | -------------------- | ------------------------------------------------------------- |
| `pid`        | the biases           | ``b_l ← f · b_l`` after every step, f by PID                  |
| `projection` | the biases           | ``b_l ← b_l · n*/n`` after every step that ends outside       |
| `penalty`    | the loss             | ``L = CE + c · (n − n*)²``                                    |
| `step-size`  | the optimiser's step | learning rate × m, m by the note's PID                        |
| `note`       | the loss             | ``L = w · CE``, w by PID (the authors', BREP)                 |

Under Adam a loss weight has little effect: Adam divides a gradient by its own size, so w slows growth only if
``w·|grad|`` is near Adam's eps, and no positive w or m can make a norm shrink.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from interventions.norms import mean_norm, project_mean_norm


class Pid:
    """PID controller: ``v ← clip(v·(1 + γ·(K_p e_t + K_i Σ_{j≤t} e_j + K_d (e_t − e_{t−1}))), lower, upper)``

    The integral does not grow while a bound limits the value (anti-windup). The first update has no derivative term.

    Args:
        value: Initial value, clipped to the bounds.
        bounds: ``(lower, upper)``.
        gains: ``(K_p, K_i, K_d)``; by default those of the method's authors.
    """

    gamma = 5.0

    def __init__(
        self, value: float, bounds: tuple[float, float], gains: tuple[float, float, float] = (0.1, 1e-4, 0.01)
    ) -> None:
        self.bounds = bounds
        self.gains = gains
        self.value = min(max(value, bounds[0]), bounds[1])
        self.integral = 0.0
        self.previous_error: float | None = None

    def update(self, error: float) -> float:
        lower, upper = self.bounds
        integral = self.integral + error
        derivative = 0.0 if self.previous_error is None else error - self.previous_error
        signal = sum(gain * term for gain, term in zip(self.gains, (error, integral, derivative), strict=True))
        wanted = self.value * (1 + self.gamma * signal)
        self.value = min(max(wanted, lower), upper)
        winds_up = (wanted > upper and error > 0) or (wanted < lower and error < 0)
        if not winds_up:
            self.integral = integral
        self.previous_error = error
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "integral": self.integral, "previous_error": self.previous_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.integral, self.previous_error = state["value"], state["integral"], state["previous_error"]


class NormController:
    """Leaves the norm free; each controller below overrides the one method through which it acts."""

    name = "none"

    def __init__(self, target: float) -> None:
        self.target = target

    @property
    def loss_weight(self) -> float:
        """Factor on the cross-entropy."""
        return 1.0

    @property
    def step_scale(self) -> float:
        """Factor on the learning rate."""
        return 1.0

    def penalty(self, biases: Sequence[torch.Tensor]) -> torch.Tensor | float:
        """Term added to the loss."""
        return 0.0

    def after_step(self, biases: Sequence[torch.Tensor]) -> None:
        """Called after every optimiser step; may change the biases in place."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class PidController(NormController):
    """``b_l ← f_t · b_l`` after every step, ``f_t = 1 + γ·(K_p e_t + K_i Σ_{j≤t} e_j + K_d (e_t − e_{t−1}))``, clipped

    ``e_t = (n* − n_t) / n*`` for the norm after the optimiser's step. f is clipped to the range between 1 and
    ``n*/n_t``, so that no correction passes the target, and to growth by 5 % per step. At these bounds the integral
    does not change, so that the approach to the target does not wind it up.

    The plant adds each step's growth to the norm and has no lag, so γ(K_p + K_d) = 1 removes the first excess at once;
    of continued growth K_p alone leaves a tenth, which the integral removes over ``K_p/K_i = 18`` steps. (With the
    authors' gains the norm overshoots by a step's growth and returns over hundreds of steps.) Norms are also pushed
    up: LoReFT's stay at a sixth of 0.54 by themselves, and RED's take thousands of steps at small learning rates.
    """

    name = "pid"
    most = 1.05

    def __init__(self, target: float) -> None:
        super().__init__(target)
        self.pid = Pid(1.0, (1.0, 1.0), gains=(0.18, 0.01, 0.02))

    def after_step(self, biases: Sequence[torch.Tensor]) -> None:
        norm = mean_norm(biases).item()
        whole = self.target / norm if norm > 0 else math.inf
        self.pid.value, self.pid.bounds = 1.0, (min(1.0, whole), max(1.0, min(self.most, whole)))
        factor = self.pid.update(1 - norm / self.target)
        with torch.no_grad():
            for bias in biases:
                bias.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        return self.pid.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pid.load_state_dict(state)


class _FactorController(NormController):
    """Applies the authors' PID to a factor, updated every 4 optimiser steps."""

    update_every = 4

    def __init__(self, target: float, start: float, bounds: tuple[float, float]) -> None:
        super().__init__(target)
        self.pid = Pid(start, bounds)
        self.steps = 0

    def after_step(self, biases: Sequence[torch.Tensor]) -> None:
        self.steps += 1
        if self.steps % self.update_every == 0:
            self.pid.update(self.target - mean_norm(biases).item())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "pid": self.pid.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.pid.load_state_dict(state["pid"])


class LossWeightController(_FactorController):
    """The authors' controller: ``L = w·CE`` with ``w_0 = 500/N`` for N training rows and w in [1e-5, 1e-1]."""

    name = "note"

    def __init__(self, target: float, num_rows: int) -> None:
        super().__init__(target, start=500 / num_rows, bounds=(1e-5, 1e-1))

    @property
    def loss_weight(self) -> float:
        return self.pid.value


class StepSizeController(_FactorController):
    """Applies the same controller to the learning rate, like a loss weight under SGD: m starts at 1, in [1e-4, 1]."""

    name = "step-size"

    def __init__(self, target: float) -> None:
        super().__init__(target, start=1.0, bounds=(1e-4, 1.0))

    @property
    def step_scale(self) -> float:
        return self.pid.value


class PenaltyController(NormController):
    """``L = CE + c·(n − n*)²``"""

    name = "penalty"
    coefficient = 10.0

    def penalty(self, biases: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.coefficient * (mean_norm(biases) - self.target) ** 2


class ProjectionController(NormController):
    """``b_l ← b_l · min(1, n*/n)`` after every step: the norm grows freely up to the target and never passes it."""

    name = "projection"

    def after_step(self, biases: Sequence[torch.Tensor]) -> None:
        project_mean_norm(biases, self.target)


CONTROLLERS = ("pid", "projection", "penalty", "step-size", "note", "none")


def make_controller(name: str, target: float, num_rows: int) -> NormController:
    """Makes the controller of that name (``loss-weight``: the note's, by its old name); ``num_rows``: training rows."""
    if not math.isfinite(target) or target <= 0:
        raise ValueError(f"a target norm must be positive; got {target}")
    if name in (LossWeightController.name, "loss-weight"):
        return LossWeightController(target, num_rows)
    simple = (NormController, PidController, StepSizeController, PenaltyController, ProjectionController)
    return {kind.name: kind for kind in simple}[name](target)
