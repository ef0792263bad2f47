"""A loss on numbers, added to cross-entropy, in which near misses cost less than far ones.

Among a row's targets, ``z_1 … z_m`` are the tokens of one number, ``v_t`` and ``d_t`` their values and digits;
``q_t`` is the model's distribution at the position of ``z_t``, over the number tokens of the same form: as many
digits, a leading space or not. A number's loss is the squared error of its expectation, in units of the
variance of all numbers with as many digits, ``0 … 10^D − 1``, ``D = Σ_t d_t``:

    N = (E[y] − y*)² / ((100^D − 1) / 12)

| objective | a number is                          | E[y]                                           |
| --------- | ------------------------------------ | ---------------------------------------------- |
| `ntl`     | each number token by itself          | ``Σ_v q(v)·v``                                 |
| `raft`    | each whole number: digits in a row   | ``Σ_y p(str(y))·y`` over a grid of strings     |

A whole number's grid is its own string and, for each t, the beginnings ``z_1 … z_{t−1} v`` with another v. A
beginning stands for all numbers that start with it, and its value is their mean: each is counted exactly once.
Their probabilities, ``q_1(z_1) ⋯ q_{t−1}(z_{t−1})·q_t(v)``, need no forward pass beyond cross-entropy's. To score
every number by itself, a tokenizer with one digit per token would read 9 more tokens for a number of two digits, 99
for one of three. The price: numbers with a wrong beginning count as if all their endings were equally likely, which
moves each by at most half a unit of its first wrong place. If a number is one token, the grid is exact.

Sources: Zausinger et al., Regress, Don't Guess (arXiv 2411.02083), where expectations range over all number tokens
and have no units; Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from reft_math.data.prefix import IGNORE_INDEX
from reft_math.errors import UserError

NumericObjective = Literal["ntl", "raft"]


@dataclass(frozen=True, eq=False)
class NumberTokens:
    """Tokens that are numbers by themselves: one to three digits, with or without a leading space.

    Attributes:
        ids: ``(tokens,)`` int64, ascending.
        values: ``(tokens,)`` float64; one can occur more than once ("7", " 7", "007").
        digits: ``(tokens,)`` int64.
        spaced: ``(tokens,)`` bool: whether the token starts with a space, and so starts a new number.
    """

    ids: torch.Tensor
    values: torch.Tensor
    digits: torch.Tensor
    spaced: torch.Tensor


@dataclass(frozen=True)
class NumberCounts:
    """Counts rows, rows without a number that the loss sees, and the numbers in all rows."""

    rows: int
    rows_without: int
    number_tokens: int
    whole_numbers: int


@dataclass(frozen=True)
class NumberLoss:
    """Computes ``λ · mean_i N_i``, N_i a row's `number_loss`; its text says how many numbers it sees.

    Attributes:
        weight: λ.
        objective: ``ntl`` or ``raft``, see the module.
        tokens: The tokenizer's number tokens.
        counts: Counts of the training rows' targets.
    """

    weight: float
    objective: NumericObjective
    tokens: NumberTokens
    counts: NumberCounts

    def __str__(self) -> str:
        counts = self.counts
        text = (
            f"numbers in the targets: {counts.number_tokens:,} number tokens, {counts.whole_numbers:,} whole numbers;"
            f" {counts.rows_without:,} of {counts.rows:,} rows hold none for {self.objective}"
        )
        is_few = counts.rows_without > counts.rows / 2
        return text + ("; few rows teach numbers: a larger --k or --full-fraction has more" if is_few else "")


def number_tokens(tokenizer: PreTrainedTokenizerBase) -> NumberTokens:
    """Returns a tokenizer's number tokens.

    Raises:
        UserError: It has no number tokens.
    """
    found = []
    for token, token_id in tokenizer.get_vocab().items():
        digits = re.search(r"[0-9]{1,3}$", token)  # not "<0x37>", the byte that stands in for an unknown character
        if digits and re.fullmatch(f" ?{digits[0]}", tokenizer.decode([token_id])):
            found.append((token_id, digits[0], token != digits[0]))
    if not found:
        raise UserError("a loss on numbers needs some; the tokenizer has no token of one to three digits alone")
    ids, texts, spaced = zip(*sorted(found), strict=True)
    return NumberTokens(
        ids=torch.tensor(ids),
        values=torch.tensor([float(text) for text in texts], dtype=torch.float64),
        digits=torch.tensor([len(text) for text in texts]),
        spaced=torch.tensor(spaced),
    )


def make_number_loss(
    weight: float, objective: NumericObjective, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
) -> NumberLoss:
    """Makes the loss for training rows with these targets.

    Raises:
        UserError: It would see no number: the tokenizer or the targets have no number tokens.
    """
    tokens = number_tokens(tokenizer)
    targets = pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=IGNORE_INDEX
    )
    counts = {kind: len(find_numbers(targets, tokens, kind)[0]) for kind in ("ntl", "raft")}
    rows_with = len(find_numbers(targets, tokens, objective)[0].unique())
    if not rows_with:
        raise UserError(
            f"--numeric-weight needs numbers among the targets; the {len(rows):,} rows' {sum(map(len, rows)):,} target"
            f" tokens hold {counts['ntl']} number tokens and {counts['raft']} whole numbers: give a larger --k or"
            " --full-fraction, or leave --numeric-weight out"
        )
    return NumberLoss(
        weight, objective, tokens, NumberCounts(len(rows), len(rows) - rows_with, counts["ntl"], counts["raft"])
    )


def number_loss(
    logits: torch.Tensor, targets: torch.Tensor, tokens: NumberTokens, objective: NumericObjective
) -> torch.Tensor:
    """Returns each row's mean of N over its numbers; exactly 0, with gradient 0, for a row without numbers.

    With ``D_t = d_1 + … + d_t`` and, as fractions of the places after ``z_t``, ``r_t`` for the digits of y* and
    ``m_t = (1 − 10^(D_t − D))/2`` for the mean of all endings,

        (E[y] − y*)/10^D = Σ_t q_1(z_1) ⋯ q_{t−1}(z_{t−1}) · 10^(−D_t) · (E_{q_t}[v] − v_t + (1 − q_t(z_t))·(m_t − r_t))

    Args:
        logits: ``(all targets, vocabulary)``, row by row, any float dtype.
        targets: ``(batch, target)`` int64, `IGNORE_INDEX` after a row's last.
        tokens: The tokenizer's.
        objective: See the module.

    Returns:
        ``(batch,)`` float32, or float64 if the logits are.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    rows, columns = find_numbers(targets, tokens, objective)
    is_token = columns >= 0
    ids, kinds = tokens.ids.to(logits.device), (2 * tokens.digits + tokens.spaced).to(logits.device)
    places = rows[:, None].expand_as(columns)[is_token], columns[is_token]
    index = torch.searchsorted(ids, targets[places])
    at = (targets != IGNORE_INDEX).flatten().cumsum(dim=0).view_as(targets) - 1  # each target's row of the logits
    scores = logits[at[places][:, None], ids]
    log_q = scores.masked_fill(kinds != kinds[index][:, None], -torch.inf).log_softmax(dim=-1)
    values = tokens.values.to(logits)

    def by_number(found: torch.Tensor) -> torch.Tensor:
        """Reshapes ``(tokens found,)`` to ``(numbers, longest)``, with 0 after a number's last token."""
        return found.new_zeros(columns.shape).masked_scatter(is_token, found)

    value, gap = by_number(values[index]), by_number(log_q.exp() @ values - values[index])
    log_right = by_number(log_q.gather(-1, index[:, None])[:, 0])
    done = by_number(tokens.digits.to(logits)[index]).cumsum(dim=-1)  # D_t
    unit, digits = 10**-done, done[:, -1:]
    written = (value * unit).cumsum(dim=-1)
    rest = written[:, -1:] - written  # r_t · 10^(−D_t)
    middle = (unit - 10**-digits) / 2  # m_t · 10^(−D_t)
    reached = (log_right.cumsum(dim=-1) - log_right).exp()
    errors = (reached * (unit * gap - log_right.expm1() * (middle - rest))).sum(dim=-1)
    losses = errors**2 * 12 / (1 - 100 ** -digits[:, 0])
    by_row = losses.new_zeros(len(targets))
    return by_row.index_add(0, rows, losses) / by_row.index_add(0, rows, torch.ones_like(losses)).clamp(min=1)


def find_numbers(
    targets: torch.Tensor, tokens: NumberTokens, objective: NumericObjective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the targets' numbers.

    A whole number is the longest sequence of number tokens; a space starts a new number. A number at the end of its row
    is left out: more digits may have been cut off.

    Args:
        targets: ``(batch, target)`` int64, `IGNORE_INDEX` after a row's last.
        tokens: The tokenizer's.
        objective: See the module.

    Returns:
        The numbers' rows, ``(numbers,)``, and columns, ``(numbers, longest)``, −1 after a number's end; both int64.
    """
    is_number = torch.isin(targets, tokens.ids.to(targets.device))
    goes_on = is_number & ~torch.isin(targets, tokens.ids[tokens.spaced].to(targets.device))
    goes_on[:, 1:] &= is_number[:, :-1]
    goes_on[:, :1] = False
    if objective == "ntl":
        goes_on = torch.zeros_like(goes_on)
    rows, columns = is_number.nonzero(as_tuple=True)
    starts = ~goes_on[rows, columns]
    number = starts.cumsum(dim=0) - 1
    offset = columns - columns[starts][number]
    found = columns.new_full((int(starts.sum()), int(offset.max()) + 1 if len(offset) else 1), -1)
    found[number, offset] = columns
    rows = rows[starts]
    if objective == "raft":
        after = F.pad(targets, (0, 1), value=IGNORE_INDEX)[rows, found.amax(dim=1) + 1]
        rows, found = rows[after != IGNORE_INDEX], found[after != IGNORE_INDEX]
    return rows, found
