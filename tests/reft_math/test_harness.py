from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from reft_math.errors import UserError
from reft_math.harness import RESULT_COLUMNS, load_tasks, plain, read_gen_kwargs, result_rows, write_samples


@pytest.mark.slow
def test_lm_evals_own_tasks_are_known_and_no_others(tmp_path: Path) -> None:
    """With the sympy and antlr that the MATH tasks insist on; their data needs the hub."""
    with pytest.raises(UserError, match="names that lm-eval knows, or that --include-path brings; got nope, gsm8k_no"):
        load_tasks(["gsm8k", "minerva_math500", "hendrycks_math500", "gsm8k_cot", "nope", "gsm8k_no"])
    with pytest.raises(UserError, match="--include-path must be a folder with task files"):
        load_tasks(["gsm8k"], str(tmp_path / "none"))
    from lm_eval.tasks.minerva_math.utils import is_equiv

    assert is_equiv(r"\frac{1}{2}", "0.5")
    assert not is_equiv(r"\frac{1}{2}", "0.6")


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match="uv sync --extra harness"):
        load_tasks(["gsm8k"])


def test_generation_settings_are_read_as_lm_eval_does() -> None:
    assert read_gen_kwargs("do_sample=True,temperature=0.7,max_gen_toks=5") == {
        "do_sample": True,
        "temperature": 0.7,
        "max_gen_toks": 5,
    }
    assert read_gen_kwargs(None) is None
    assert read_gen_kwargs("until=Question:") == {"until": "Question:"}
    for text in (
        *("top_p=0.5,temperature", "temprature=1", "=", "until="),
        *(
            "max_gen_toks=x",
            "max_tokens=1.5",
            "temperature=hot",
            "do_sample=1",
            "stop_strings=a",
            "num_return_sequences=2",
        ),
    ):
        with pytest.raises(UserError, match="--gen-kwargs holds settings of generate"):
            read_gen_kwargs(text)


def test_rows_hold_each_metric_under_each_filter() -> None:
    results = {
        "results": {
            "sums": {
                "alias": "sums",
                "sample_len": 8,
                "exact_match,strict": 0.25,
                "exact_match_stderr,strict": 0.125,
                "exact_match,last": 0.5,
                "exact_match_stderr,last": "N/A",
            },
            "all": {"alias": "all", "acc,none": 1.0},
        },
        "versions": {"sums": 3.0},
        "n-shot": {"sums": 5},
        "n-samples": {"sums": {"original": 50, "effective": 8}},
    }
    assert [dict(zip(RESULT_COLUMNS, row, strict=True)) for row in result_rows(results)] == [
        dict(zip(RESULT_COLUMNS, row, strict=True))
        for row in (
            ("sums", "3.0", "5", "strict", "exact_match", "0.2500", "0.1250", "8"),
            ("sums", "3.0", "5", "last", "exact_match", "0.5000", "-", "8"),
            ("all", "-", "-", "none", "acc", "1.0000", "-", "-"),
        )
    ]


def test_samples_are_lines_in_the_order_of_their_problems(tmp_path: Path) -> None:
    rows = [{"doc_id": 10, "filter": "none", "acc": np.float64(0.5)}, {"doc_id": 2, "filter": "none", "acc": 1}]
    write_samples(tmp_path / "records", {"sums": rows})
    lines = (tmp_path / "records" / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "2/none", "doc_id": 2, "filter": "none", "acc": 1},
        {"id": "10/none", "doc_id": 10, "filter": "none", "acc": 0.5},
    ]


def test_what_json_does_not_have_becomes_text_or_a_number() -> None:
    assert plain({"a": np.int64(3), "b": Path("x"), "c": (1, None)}) == {"a": 3, "b": "x", "c": [1, None]}
