"""Hostile completions, none of them right for its gold: made by rule from a seed, so that no file need hold them.

    python tests/hostile_answers.py

scores all of them by number and by math-verify, within two seconds each, and prints how they fared. Golds are chosen to
be what a careless reader would take out of the completion: 18 for "1e18", 234 for "1'234".
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CANARY = Path(tempfile.gettempdir(), "reft-math-canary")


class Hostile(NamedTuple):
    kind: str
    gold: str
    completion: str


# Around what is hostile: as models state answers.
FRAMES = ("{}", "${}$", r"\boxed{{{}}}", "The answer is {}.", "#### {}", r"So \( {} \)", "**{}**")

CODE = (
    f"__import__('os').system('touch {CANARY}')",
    f"open('{CANARY}','w').write('x')",
    f"().__class__.__bases__[0].__subclasses__()[140].__init__.__globals__['system']('touch {CANARY}')",
    f"exec(\"open('{CANARY}','w')\")",
    f'eval(\'__import__("pathlib").Path("{CANARY}").touch()\')',
    f"[x for x in [__import__('subprocess').run(['touch','{CANARY}'])]]",
    f"lambda: __import__('os').system('touch {CANARY}')",
    f"Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('{CANARY}','w')",
    f'S(\'__import__("os").system("touch {CANARY}")\')',
    f"$(touch {CANARY})",
    f"; touch {CANARY} #",
    rf"\immediate\write18{{touch {CANARY}}}",
    r"\input{/etc/passwd}",
    r"\csname @@input\endcsname /etc/passwd",
    f"{{{{config.__class__.__init__.__globals__['os'].popen('touch {CANARY}')}}}}",
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    rf"\operatorname{{__import__('os').system('touch {CANARY}')}}(1)",
    rf"\text{{__import__('os').system('touch {CANARY}')}}",
    r"\mathrm{exit}(1)\cup \{\text{__import__('os')._exit(7)}\}",
    rf"f(\text{{open('{CANARY}','w')}})",
    "raise SystemExit(7)",
    "while True: pass",
    "<script>alert(1)</script>",
    "'; DROP TABLE records; --",
)

# Where a reader of ASCII digits, or of the first that comes, finds the gold.
TRAPS = {
    "exponent": [
        *((str(n), f"1e{n}") for n in (3, 18, 400, 999999, 10**9)),
        *(("1", f"1e{sign}{n}") for sign in ("", "+", "-") for n in (5, 308, 999999, "9" * 30)),
        *(("0", f"1e-{n}") for n in (5, 400, 999999)),
        *((str(n), f"10^{{{n}}}") for n in (2, 6, 999)),
        *((str(n), f"10^{n}") for n in (2, 6)),
        ("2", "5²"), ("5", "5²"), ("10", "10⁻³"), ("3", "10⁻³"), ("12", "3¹²"), ("5", "5^2"), ("2", "5**2"),
    ],
    "digits": [
        *(("1", f"1{digit}") for digit in "８٨۸८৮꘨𝟖𝟠𝟪"),
        *(("8", f"{digit}8") for digit in "１١۱१১꘡𝟏𝟙𝟣"),
        *(("3", f"3{fraction}") for fraction in "½¼¾⅓⅛"), ("2", "½"), ("1", "½"), ("3", "⅔"),
        ("12", "12٫5"), ("5", "12٫5"), ("234", "1٬234"), ("1", "1٬234"), ("8", "XVIII8²"), ("18", "⑱²"),
    ],
    "invisible": [
        *(
            (gold, f"1{mark}8")
            for mark in ("\u200b", "\u200d", "\u200e", "\u200f", "\u202e", "\u2066", "\ufeff", "\u00ad", "\0", "\x1b")
            for gold in ("1", "8", "81")
        ),
        ("18", "\u202e81\u202c"), ("12", "\u206721\u2069"), ("5", "\u202d-5\u202c"),
    ],
    "thousands": [
        *((gold, f"1{gap}234") for gap in ("'", "’", "\u00a0", "\u2009", "\u202f", r"\,") for gold in ("1", "234")),
        *((gold, f"1{gap}234{gap}567") for gap in ("'", ".", " ", "\u202f") for gold in ("1", "567", "1234", "1.234")),
        ("56", "1.234,56"), ("567", "12,34,567"), ("34567", "12,34,567"), ("234", "1_234"), ("5", "12,5"),
        ("12", "12,5"),
    ],
    "fractions": [
        ("3", "3 1/2"), ("2", "3 1/2"), ("1", "3 1/2"), ("8", "5/8"), ("5", "5/8"), ("8", r"\frac{5}{8}"),
        ("5", r"\frac{5}{8}"),
        ("8", r"\dfrac58"), ("3", r"3\frac{1}{2}"), ("2", r"3\frac{1}{2}"), ("8", r"5 / 8"), ("1.5", r"3\frac{1}{2}"),
        ("16", r"\sqrt{16}"), ("3", r"\sqrt[3]{8}"), ("8", r"\sqrt[3]{8}"), ("5", "√5"), ("8", "5⁄8"),
    ],
    "units": [
        ("2", "5 m^2"), ("2", "5 m²"), ("3", "5 cm^{3}"), ("15", "150%"), ("5", "0.5%"), ("30", "10:30"),
        ("10", "10:30"),
        ("2", r"5\text{ m}^2"), ("3", r"\text{3 apples or } 4"),
    ],
    "words": [
        *((gold, word) for word in ("NaN", "nan", "inf", "-Infinity", "None", "null", r"\infty", r"\text{nan}")
          for gold in ("0", "1")),
        *((gold, expression) for expression in (r"\frac{0}{0}", r"\frac{1}{0}", r"\int", "0^{-1}")
          for gold in ("0", "1")),
        ("1", r"\lim_{x\to 0}"),
    ],
    "several": [
        ("7", r"\boxed{\boxed{8}}"), ("7", r"\boxed{7} no, \boxed{8}"), ("3", r"\boxed{3,4}"),
        ("3", r"\boxed{3} or \boxed{4}"),
        ("3", r"3\text{ or }4"), ("3", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("0", r"\begin{bmatrix}1&0\\0&1\end{bmatrix}"),
        ("1", r"\left[1,2\right]"), ("1", r"(1,2)"), ("1", r"\{1,2,3\}"), ("1", r"[1,2) \cup (2,3]"), ("5", r"5 = 6"),
        ("5", r"5 \neq 6"), ("4", r"x > 5"), ("3", r"x \in \{3, 4\}"), ("0", r"\emptyset"), ("1", r"\mathbb{R}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"), (r"\{1,2\}", r"\{1,3\}"),
        (r"[1,2)", r"(1,2]"), (r"[1,2]", r"[1,2)"), (r"(1,2)", r"(2,1)"), (r"(-\infty,1)", r"(1,\infty)"),
        ("x=1", "x=2"),
        (r"\frac{1}{3}", "0.3334"), (r"\text{even}", r"\text{odd}"), (r"\text{(A)}", r"\text{(B)}"), ("2x+1", "2x-1"),
    ],
}  # fmt: skip


def hostile_answers(seed: int = 0, size: int = 100_000) -> list[Hostile]:
    """All of them, the long ones of so many characters, in an order that mixes the kinds."""
    drawn = random.Random(seed)
    found = [*_trapped(), *_code(), *_costly(), *_long(size), *_unbalanced(drawn), *_noise(drawn)]
    drawn.shuffle(found)
    return found


def _trapped() -> Iterator[Hostile]:
    """Each in two frames, the math one and another."""
    others = [frame for frame in FRAMES if frame != "${}$"]
    for kind, traps in TRAPS.items():
        for number, (gold, text) in enumerate(traps):
            yield Hostile(kind, gold, f"${text}$")
            yield Hostile(kind, gold, others[number % len(others)].format(text))


def _code() -> Iterator[Hostile]:
    """Text that some interpreter or other would run."""
    for text in CODE:
        for frame in FRAMES[:4]:
            yield Hostile("code", "6", frame.format(text))


def _costly() -> Iterator[Hostile]:
    """What would take longer than the universe, or more memory than there is, to compute."""
    for base in (2, 3, 9):
        for height in (3, 4, 6):
            tower = "^{".join([str(base)] * height) + "}" * (height - 1)
            yield Hostile("tower", "1", f"${tower}$")
            yield Hostile("tower", "1", "^".join([str(base)] * height))
    yield Hostile("tower", "1", "**".join("9999"))
    yield Hostile("tower", "1", r"$10^{10^{10}}+1-10^{10^{10}}$")
    yield Hostile("tower", "1", r"$(1+10^{-10^{10}})^{10^{10^{10}}}$")
    for number in ("10^{9}", "10^{18}", "999999999", "3!!!!!", "10^{10^{10}}"):
        yield Hostile("factorial", "1", f"$({number})!$")
        yield Hostile("factorial", "1", rf"$\binom{{{number}}}{{10^8}}$")
    for text in (
        r"\sum_{n=1}^{10^{12}} \frac{1}{n!}",
        r"\prod_{n=1}^{10^{9}} n",
        r"\int_0^1 \sin(x^{x^{x^x}}) e^{\tan x} dx",
        r"\lim_{n\to\infty} \frac{n!}{n^{n^n}}",
        r"\sqrt[10^{10}]{10^{10^{10}}}",
        r"10^{10^{10}} \pmod{10^{9}}",
        r"\sin(10^{10^{10}})",
        r"\lfloor 10^{10^9} \pi \rfloor",
        r"\gcd(10^{10^8}, 7^{10^8})",
    ):
        yield Hostile("computation", "2", f"${text}$")
        yield Hostile("computation", "2", rf"The answer is \boxed{{{text}}}")


def _long(size: int) -> Iterator[Hostile]:
    """Much of one thing, in a row or within itself."""
    for unit in (
        "$1+",
        r"\frac{1}{",
        r"\sqrt{",
        "(",
        "{",
        "$",
        r"\boxed{",
        r"\boxed{7} ",
        "#### ",
        "answer is ",
        "x^",
        "1,",
        "1 ",
    ):
        yield Hostile("long", "2", unit * (size // len(unit)))
    for unit in (
        "9",
        "1.",
        "-",
        "1,234,",
        "1'234'",
        "0",
        " ",
        "\n",
        "\\",
        "\0",
        "\u200b",
        "é",
        "٣",
        "²",
        "½",
        r"\,",
        "=",
        "!",
    ):
        yield Hostile("long", "2", f"$7{unit * (size // len(unit))}$")
    yield Hostile("long", "2", "$" + "+".join(["1"] * (size // 2)) + "$")
    yield Hostile("long", "2", "$" + " ".join([r"\alpha\beta"] * (size // 12)) + "$")
    yield Hostile("long", "3", r"\begin{pmatrix}" + r"1&2\\" * (size // 5) + r"\end{pmatrix}")
    yield Hostile("long", "2", "9" * (12 * size))  # more than decimal's exponents
    yield Hostile("long", "0.3333333333", "9" * (12 * size))
    for depth in (50, 500, 5000):
        yield Hostile("deep", "2", "$" + r"\frac{1}{" * depth + "1" + "}" * depth + "$")
        yield Hostile("deep", "2", "$" + r"\sqrt{" * depth + "7" + "}" * depth + "$")
        yield Hostile("deep", "2", "(" * depth + "7" + ")" * depth)
        yield Hostile("deep", "2", "$" + "(" * depth + "7" + ")" * depth + "$")
        yield Hostile("deep", "2", "$" + "|" * depth + "7" + "|" * depth + "$")
        yield Hostile("deep", "2", r"\boxed{" * depth + "7" + "}" * depth)


def _unbalanced(drawn: random.Random, count: int = 60) -> Iterator[Hostile]:
    parts = (
        "{",
        "}",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "$",
        "$$",
        r"\boxed{",
        r"\frac{",
        "7",
        "x",
        r"\left(",
        r"\right.",
        r"\\",
        "&",
    )
    for _ in range(count):
        yield Hostile("unbalanced", "8", "".join(drawn.choices(parts, k=drawn.randrange(5, 60))))


def _noise(drawn: random.Random, count: int = 60) -> Iterator[Hostile]:
    """Any characters but digits, lone surrogates among them, around a wrong number."""
    for _ in range(count):
        noise = [
            drawn.choice((drawn.randrange(32, 127), drawn.randrange(0x110000))) for _ in range(drawn.randrange(3, 80))
        ]
        text = "".join(char for char in map(chr, noise) if not char.isnumeric())
        yield Hostile("noise", "9", f"{text} 7 {text[::-1]}")


def main(time_limit: float = 2.0) -> None:
    from reft_math.scoring.math_equivalence import MathVerifier
    from reft_math.scoring.numeric import last_number, score_numeric

    answers = hostile_answers()
    CANARY.unlink(missing_ok=True)
    by_number = [answer for answer in answers if last_number(answer.gold) == answer.gold]
    seconds, wrong = [], []
    for answer in by_number:
        start = time.perf_counter()
        score = score_numeric(answer.completion, answer.gold)
        seconds.append((time.perf_counter() - start, answer.kind))
        wrong += [answer] if score["strict"] or score["flexible"] else []
    print(f"by number: {len(by_number)}, slowest {max(seconds)}, falsely correct {len(wrong)}")
    for answer in wrong:
        print("  ", answer.kind, answer.gold, ascii(answer.completion[:80]))

    seconds, verdicts = [], []
    with MathVerifier(num_workers=1, time_limit=time_limit) as verifier:
        verifier.score([("1", "1")])
        for answer in answers:
            start = time.perf_counter()
            verdicts += verifier.score([(answer.gold, answer.completion)])
            seconds.append((time.perf_counter() - start, answer.kind))
    pairs = list(zip(answers, verdicts, strict=True))
    judged = [second for second, verdict in zip(seconds, verdicts, strict=True) if not verdict.unscored]
    print(f"by math-verify: {len(pairs)}, slowest that was judged {max(judged)}, slowest {max(seconds)}")
    print(f"  total {sum(second for second, _ in seconds):.0f} s")
    print("  timed out:", dict(Counter(answer.kind for answer, verdict in pairs if verdict.timed_out)))
    print("  died twice:", dict(Counter(a.kind for a, v in pairs if v.unscored and not v.timed_out)))
    print(f"  falsely correct {sum(verdict.is_correct for verdict in verdicts)}")
    for answer, verdict in pairs:
        if verdict.is_correct or (verdict.unscored and answer.kind not in ("long", "deep", "tower", "factorial")):
            print("  ", verdict.is_correct, answer.kind, answer.gold, ascii(answer.completion[:80]), verdict.prediction)
    print("kinds:", dict(Counter(answer.kind for answer in answers)))
    sys.exit(f"{CANARY} was written: code was run" if CANARY.exists() else 0)


if __name__ == "__main__":
    main()
