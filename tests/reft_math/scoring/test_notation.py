from __future__ import annotations

import pytest

from reft_math.scoring.notation import plain_numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("１８ and ١٨ and 𝟏𝟖", "18 and 18 and 18"),
        ("1\u200b8 1\0008 \u202e81\u202c \ufeff5", "18 18 81 5"),
        ("2\u20623", "2\u20623"),  # invisible times
        ("a\tb\nc\r\n", "a\tb\nc\r\n"),
        ("1'234; 1’234'567; 1\u202f234; 1 234 567", "1,234; 1,234,567; 1,234; 1,234,567"),
        (r"$1\,234$", "$1,234$"),
        ("1.234.567", "1,234,567"),
        ("1.234 1'23 12 34 0 123 1'234'56 x1 234", "1.234 1'23 12 34 0 123 1'234'56 x1 234"),
        ("f'(3) = 1", "f'(3) = 1"),
        ("1.5e3 2E-2 1e+2", "1500 0.02 100"),
        ("1e999999 1e41 x1e5 1e5x", r"\text{1e999999} \text{1e41} x1e5 1e5x"),
        ("5² 10⁻¹²", "5^2 10^{-12}"),
        ("½ 3½ −3½ 3 3/4", "1/2 (3+1/2) -(3+1/2) (3+3/4)"),
        ("\u22125 12٫5 1٬234", "-5 12.5 1,234"),
        ("–5; ‑5; ‒5; ‐5; －5; 5∕8; 5／8; 1．5; 1，234", "-5; -5; -5; -5; -5; 5/8; 5/8; 1.5; 1,234"),
        ("1\u2007234; 1\u2000234; 1\u200a234; 1\u205f234; 1\u3000234", "1,234; 1,234; 1,234; 1,234; 1,234"),
        (r"1\ 234; 1\;234; 1\:234; 1\!234", "1,234; 1,234; 1,234; 1,234"),
        (r"0.\overline{3} -0.1\overline{6} 2.\overline{12} 0.\overline{9}", "(1/3) -(1/6) (70/33) (1)"),
    ],
)
def test_numbers_have_one_spelling(text: str, expected: str) -> None:
    assert plain_numbers(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5⁄8; ⅓; ⅞; 5³; 5⁰; 5⁷; 5⁺²", "5/8; 1/3; 7/8; 5^3; 5^0; 5^7; 5^{+2}"),
        ("1\u00a0234; 10 234; 120 234; 12.345.678. Then", "1,234; 10,234; 120,234; 12,345,678. Then"),
        ("13 1/2; 3  1/2; 3 11/2; 3 1/16", "(13+1/2); (3+1/2); (3+11/2); (3+1/16)"),
        (r"12.\overline{3}", "(37/3)"),
        ("15e3 1.25e3", "15000 1250"),
        ("1e40", "1" + 40 * "0"),
    ],
)
def test_numbers_of_any_length_have_one_spelling(text: str, expected: str) -> None:
    assert plain_numbers(text) == expected


def test_invisible_characters_are_taken_out() -> None:
    marks = "\0\x08\x0e\x1f\x7f\x84\x86\x9f\u00ad\u061c\u180e\u200b\u200f\u202a\u202e\u2060\u2066\u206f\ufeff"
    assert plain_numbers("".join(f"1{mark}8 " for mark in marks)) == "18 " * len(marks)


@pytest.mark.parametrize(
    "text",
    [
        r"Let $x_1 = \frac{1}{2}$, so 1,234.50 * 2 = 2469. #### 2,469",
        "0.5 678; 12,5 678; = 234; 1234 567; 1 2345",  # no thousands
        ".234.567; 1234.567.890; 1.234.5678; 1.234.567.8; 1.234.567,8",
        "x3 1/2; 0.3 1/2; 12,3 1/2; 5/3 1/2; 2^3 1/2; 3 1/2x; 3 1/2/5",  # no mixed numbers
        "1.2.5e3; 1,5e3",
        r"1.2.\overline{3}; 1,234.\overline{3}",
        r"1234567890.\overline{3}; 0.1234567890\overline{3}; 0.\overline{1234567890}",
    ],
)
def test_what_is_plain_or_something_else_stays(text: str) -> None:
    assert plain_numbers(text) == text
