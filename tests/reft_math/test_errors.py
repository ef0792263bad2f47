from __future__ import annotations

from reft_math.errors import UserError


def test_a_mistake_is_one_line_that_cannot_write_to_the_terminal_whatever_came() -> None:
    message = str(UserError("got é\n\x1b[2Jb\ud800\u2028\t"))
    assert message == r"got é\n\x1b[2Jb\ud800\u2028\t"
    assert len(str(UserError("a" * 10**7))) == 2000
