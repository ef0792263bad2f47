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
        ("5² 10⁻¹²", "5^2 {10}^{-12}"),
        ("½ 3½ −3½ 3 3/4", "1/2 (3+1/2) -(3+1/2) (3+3/4)"),
        ("10^{6} x^{2} 2x^{2} 10:30", "{10}^{6} x^{2} 2x^{2} {10}:30"),
        ("\u22125 12٫5 1٬234", "-5 12.5 1,234"),
    ],
)
def test_numbers_have_one_spelling(text: str, expected: str) -> None:
    assert plain_numbers(text) == expected


def test_what_is_plain_stays() -> None:
    text = r"Let $x_1 = \frac{1}{2}$, so 1,234.50 * 2 = 2469. #### 2,469"
    assert plain_numbers(text) == text
