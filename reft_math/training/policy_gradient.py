"""Policy gradient over sampled prefixes. Pure functions of tensors.

For G prefixes ``y_i ~ π(·|x)`` of one problem with rewards ``r_i``, the loss whose gradient ascends the reward is

    L = −(1/G) Σ_i A_i · w_i · Σ_t log π(y_{i,t} | x, y_{i,<t})

with an advantage ``A_i`` and a weight ``w_i`` by estimator:

| name      | A_i                            | w_i              | expected gradient of L           |
| --------- | ------------------------------ | ---------------- | -------------------------------- |
| `rloo`    | ``r_i − mean_{j≠i} r_j``       | 1                | ``−∇E[r]``: unbiased             |
| `dr-grpo` | ``r_i − mean_j r_j``           | ``1/K``          | ``−∇E[r] · (G−1)/(G·K)``         |
| `grpo`    | ``(r_i − mean_j r_j) / std_j`` | ``1/n_i``        | biased: by spread and by length  |

``n_i`` is the length of prefix i, ``std`` that of the group (divided by G). A group whose rewards are all equal has
advantages of exactly 0. A cost ``C_i`` into which the policy's parameters enter themselves, such as a divergence, is a
part of the reward, ``r_i − C_i``, and of the loss, for ``∇E[C] = E[C · ∇log π(y)] + E[∇C]``. Prefixes are drawn from
the very policy that is differentiated, so there is no ratio to clip.

Sources: GRPO, arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783; RLOO, arXiv 2402.14740.
"""

from __future__ import annotations

from typing import Literal

import torch

Estimator = Literal["rloo", "dr-grpo", "grpo"]


def advantages(rewards: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Returns ``A``, ``(problem, G)``, of rewards ``(problem, G)``, any float dtype, with ``G ≥ 2``."""
    group = rewards.shape[1]
    # The mean of equal numbers may differ from them in the last digit, which `grpo` would blow up to ±1.
    differ = (rewards != rewards[:, :1]).any(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).where(differ, 0.0)
    if estimator == "rloo":
        return centred * group / (group - 1)
    if estimator == "dr-grpo":
        return centred
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / spread.where(differ, 1.0)


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, ignored: int, temperature: float = 1.0) -> torch.Tensor:
    """Returns ``log π(y_t)``, ``(row, K)``, 0 where ``tokens`` is ``ignored``.

    Args:
        logits: ``(row, K, vocabulary)``; float64 is kept, others are computed in float32.
        tokens: ``(row, K)`` int64.
        ignored: The mark of places after a prefix's end.
        temperature: Divides the logits.
    """
    is_drawn = tokens != ignored
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = (wide / temperature).log_softmax(dim=-1)
    chosen = log_probs.gather(-1, tokens.where(is_drawn, 0)[..., None]).squeeze(-1)
    return chosen.where(is_drawn, 0.0)


def policy_losses(
    log_probs: torch.Tensor, is_drawn: torch.Tensor, advantages: torch.Tensor, estimator: Estimator
) -> torch.Tensor:
    """Returns ``−A_i · w_i · Σ_t log π(y_{i,t})`` by row.

    Args:
        log_probs: ``(row, K)``, 0 at tokens not drawn.
        is_drawn: ``(row, K)`` bool.
        advantages: ``(row,)``; constants of the gradient.
        estimator: Sets ``w_i``.
    """
    summed = log_probs.sum(dim=1)
    if estimator == "dr-grpo":
        summed = summed / log_probs.shape[1]
    elif estimator == "grpo":
        summed = summed / is_drawn.sum(dim=1).clamp(min=1)
    return -advantages.detach() * summed


def cost_losses(costs: torch.Tensor, is_drawn: torch.Tensor, group: int, estimator: Estimator) -> torch.Tensor:
    """Returns by row the part of the loss through which ``∇C_i`` acts, in `policy_losses`' proportion.

    Args:
        costs: ``C_i``, ``(row,)``.
        is_drawn: ``(row, K)`` bool.
        group: G.
        estimator: As in `policy_losses`; under ``grpo``, which divides by a spread, the proportion is not exact.
    """
    if estimator == "dr-grpo":
        return costs * (group - 1) / (group * is_drawn.shape[1])
    if estimator == "grpo":
        return costs / is_drawn.sum(dim=1).clamp(min=1)
    return costs
