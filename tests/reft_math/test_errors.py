from __future__ import annotations

from reft_math.errors import UserError


def test_a_mistake_is_one_line_that_cannot_write_to_the_terminal_whatever_came() -> None:
    message = str(UserError("got é\n\x1b[2Jb\ud800\u2028\t"))
    assert message == r"got é\n\x1b[2Jb\ud800\u2028\t"


def test_a_long_message_keeps_the_rule_and_the_way_out() -> None:
    message = str(UserError(f"rows must be finite; got {'r/1, ' * 10**6}: take others"))
    assert len(message) == 2000
    assert message.startswith("rows must be finite; got r/1, ")
    assert message.endswith("r/1, : take others")
    assert str(UserError("a" * 2000)) == "a" * 2000
