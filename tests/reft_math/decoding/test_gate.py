from __future__ import annotations

import pytest

from reft_math.decoding.gate import Gate, parse_gate
from reft_math.errors import UserError


@pytest.mark.parametrize(
    ("text", "num_tokens"), [("off", 0), ("always", None), ("tokens:1", 1), ("tokens:10", 10), ("tokens:512", 512)]
)
def test_a_gate_is_read_and_written_in_the_same_words(text: str, num_tokens: int | None) -> None:
    assert parse_gate(text) == Gate(num_tokens)
    assert str(Gate(num_tokens)) == text


WRONG_KINDS = ("", "on", "Off", " off", "off:", "always:3", "kl:2", "tokens")
WRONG_NUMBERS = ("tokens:", "tokens:0", "tokens:-1", "tokens:+1", "tokens:1.5", "tokens: 1", "tokens:1:2", "tokens:²")


@pytest.mark.parametrize("text", WRONG_KINDS + WRONG_NUMBERS)
def test_anything_else_is_an_error_that_gives_the_rule_and_what_came(text: str) -> None:
    with pytest.raises(UserError, match="'off', 'always' or 'tokens:N'") as caught:
        parse_gate(text)
    assert str(caught.value).endswith(f"got {text!r}")
