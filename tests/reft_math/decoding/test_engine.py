"""The hand-off against a server that speaks the protocol, well and badly."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from itertools import chain
from typing import Any

import pytest
from fake_engine import DROP, GOOD, HANG, FakeEngine, Reply, completion

from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.decoding.engine import Continuation, Engine, ServedAdapter
from reft_math.errors import Unfinished, UserError

TOKENIZER = build_tokenizer()
PROMPTS = [list(TOKENIZER(text).input_ids) for text in ("12+3=", "7-1=", "40*2=")]
EXPECTED = [Continuation(f" {len(prompt)}", 2, finished=True) for prompt in PROMPTS]
KEY = "sk-our-secret-0123"


def ask(engine: Engine, sampling: dict[str, Any] | None = None) -> list[Continuation]:
    return engine.complete(PROMPTS, [10, 20, 30], [2, 5], sampling or {}, seed=100)


def test_token_ids_and_settings_reach_the_server_and_answers_keep_their_order(engine_server: FakeEngine) -> None:
    assert ask(Engine(engine_server.url, TOKENIZER)) == EXPECTED
    sent = sorted(engine_server.requests, key=lambda body: body["max_tokens"])
    assert [body["prompt"] for body in sent] == PROMPTS
    assert [body["max_tokens"] for body in sent] == [10, 20, 30]
    for body in sent:
        assert (body["model"], body["temperature"], body["stop_token_ids"]) == ("base", 0.0, [2, 5])
        assert "seed" not in body


def test_sampling_settings_and_a_seed_for_each_row_reach_the_server(engine_server: FakeEngine) -> None:
    ask(Engine(engine_server.url, TOKENIZER), {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05})
    sent = sorted(engine_server.requests, key=lambda body: body["max_tokens"])
    assert [body["seed"] for body in sent] == [100, 101, 102]
    assert {(body["temperature"], body["top_p"], body["top_k"], body["min_p"]) for body in sent} == {
        (0.7, 0.9, 40, 0.05)
    }


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_token_ids_gets_the_text_they_stand_for(engine_server: FakeEngine, status: int) -> None:
    engine_server.one_token = Reply(status, {"detail": "prompt must be a string."})
    engine = Engine(engine_server.url, TOKENIZER)
    ask(engine)
    texts = [body["prompt"] for body in engine_server.requests]
    assert len(texts) == 3
    assert {tuple(TOKENIZER(text).input_ids) for text in texts} == {tuple(prompt) for prompt in PROMPTS}
    assert "stop_token_ids" not in engine_server.requests[1]
    assert json.loads(engine_server.requests[1]["generation_config"]) == {"eos_token_id": [2, 5], "do_sample": False}
    ask(engine, {"temperature": 0.7, "top_k": 0})
    config = json.loads(engine_server.requests[-1]["generation_config"])
    assert config == {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.7, "top_k": 0}


def test_a_prompt_that_no_text_stands_for_is_not_sent_as_text(engine_server: FakeEngine) -> None:
    """A space and a name, which the tokenizer reads as one token with the space in it."""
    unreadable = [PROMPTS[0][0], *TOKENIZER.convert_tokens_to_ids([" ", "Anna"])]
    assert list(TOKENIZER(TOKENIZER.decode(unreadable[1:])).input_ids) != unreadable
    engine_server.one_token = Reply(400, {})
    with pytest.raises(UserError, match="takes text only, and no text has the tokens"):
        Engine(engine_server.url, TOKENIZER).complete([unreadable], [5], [2], {}, 0)
    assert engine_server.requests == []


BUSY = Reply(body=b"<html>busy</html>", headers={"content-type": "text/html"})
FAULTS = {
    "status 408": Reply(408, {}),
    "status 429": Reply(429, {}),
    "status 429 that says how long": Reply(429, {}, {"retry-after": "0.01"}),
    "status 500": Reply(500, {"error": {"message": "out of memory"}}),
    "status 503 of a proxy": Reply(503, b"<html>no upstream</html>", {"content-type": "text/html"}),
    "no answer in time": HANG,
    "a connection that ends in the middle of the answer": DROP,
}
NO_COMPLETIONS = {
    "HTML": BUSY,
    "text that calls itself JSON": Reply(body=b"<html>busy</html>"),
    "half of the JSON": Reply(body=json.dumps(completion([1])).encode()[:-20]),
    "nothing": Reply(body=b""),
    "bytes": Reply(body=b"\xff\xfe\x00"),
    "a list": Reply(body=[1, 2]),
    "a number": Reply(body=3),
    "an error with status 200": Reply(body={"error": {"message": "no"}}),
    "no choices": Reply(body={"choices": []}),
    "choices of another kind": Reply(body={"choices": {"0": "text"}}),
    "choices that are text": Reply(body={"choices": ["text"]}),
    "a chat's answer": Reply(body={"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}),
    "text that is none": Reply(body={"choices": [{"text": None, "finish_reason": "stop"}]}),
    "an answer that was filtered": Reply(body=completion([1], reason="content_filter")),
    "an answer that was given up": Reply(body=completion([1], reason="abort")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_for_a_while_is_tried_again(engine_server: FakeEngine, fault: str) -> None:
    bad = FAULTS[fault]
    engine_server.replies = [bad, bad, GOOD]
    assert ask(Engine(engine_server.url, TOKENIZER, timeout=0.1 if bad == HANG else 60.0)) == EXPECTED
    assert len(engine_server.requests) == 5


@pytest.mark.parametrize("fault", FAULTS | NO_COMPLETIONS)
def test_what_stays_wrong_is_one_clear_line(engine_server: FakeEngine, fault: str) -> None:
    """Faults after the last retry, answers that are no completion at once."""
    engine_server.replies = [bad := (FAULTS | NO_COMPLETIONS)[fault]]
    engine = Engine(engine_server.url, TOKENIZER, concurrency=1, timeout=0.1 if bad == HANG else 60.0)
    with pytest.raises(UserError) as caught:
        ask(engine)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 450
    assert message.startswith(f"engine {engine_server.url} ")
    assert message.endswith("; what is recorded is kept, and the same command goes on with --resume")
    assert ("failed, tried again up to 2 times (" if fault in FAULTS else "answered what is no completion (") in message
    assert len(engine_server.requests) == (3 if fault in FAULTS else 1)
    if bad == HANG:
        assert "; --engine-timeout is 0.1 s; " in message
    if bad.status == 500:
        assert "out of memory" in message


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (302, "; it points elsewhere, which is not followed: is the address in --engine right?; "),
        (307, "; it points elsewhere, which is not followed: is the address in --engine right?; "),
        (401, "; is its key in OPENAI_API_KEY?; "),
        (403, "; is its key in OPENAI_API_KEY?; "),
        (404, "; are --engine and --engine-model right?; "),
        (413, '{"detail": "no such thing"}); what is recorded'),
    ],
)
def test_what_is_refused_is_not_tried_again(engine_server: FakeEngine, status: int, hint: str) -> None:
    engine_server.replies = [Reply(status, {"detail": "no such thing"}, {"location": engine_server.url}), GOOD]
    with pytest.raises(UserError, match=r"refused \(.*no such thing") as caught:
        ask(Engine(engine_server.url, TOKENIZER, concurrency=1))
    assert hint in str(caught.value)
    assert len(engine_server.requests) == 1


def test_a_server_that_wants_a_long_wait_is_not_pressed(engine_server: FakeEngine) -> None:
    engine_server.replies = [Reply(429, {"error": "quota"}, {"retry-after": "300"})]
    with pytest.raises(UserError, match=r"failed, .*quota"):
        ask(Engine(engine_server.url, TOKENIZER, concurrency=1))
    assert len(engine_server.requests) == 1


def test_what_was_answered_before_a_failure_is_in_the_error_and_nothing_more_is_begun(
    engine_server: FakeEngine,
) -> None:
    engine_server.replies = [GOOD, GOOD, Reply(401, {"detail": "expired"})]
    engine = Engine(engine_server.url, TOKENIZER, concurrency=1)
    with pytest.raises(Unfinished, match="expired") as caught:
        engine.complete([*PROMPTS, *PROMPTS], [10] * 6, [2], {}, 0)
    assert caught.value.done == dict(enumerate(EXPECTED[:2]))
    assert len(engine_server.requests) == 3


def test_what_is_under_way_when_another_fails_is_waited_for(engine_server: FakeEngine) -> None:
    """Both at once; the refusal is there first, for the other is tried again."""
    engine_server.replies = [Reply(500, {}), Reply(401, {}), GOOD]
    engine = Engine(engine_server.url, TOKENIZER, concurrency=2)
    with pytest.raises(Unfinished) as caught:
        ask(engine)
    assert len(caught.value.done) == 1
    assert caught.value.done.items() <= dict(enumerate(EXPECTED)).items()


def test_an_interrupted_wait_ends_though_the_server_says_nothing(engine_server: FakeEngine) -> None:
    engine_server.replies = [HANG]
    engine = Engine(engine_server.url, TOKENIZER)

    def interrupt() -> None:
        while len(engine_server.requests) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            ask(engine)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fault_of_ours_in_a_thread_is_not_taken_for_the_servers(
    engine_server: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(engine_server.url, TOKENIZER)
    monkeypatch.setattr(engine, "_continue", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(engine)


def test_tokens_that_the_server_does_not_count_are_counted_here(engine_server: FakeEngine) -> None:
    """The text's, and the end token; nor are more counted than were asked for."""
    answer = completion([1])
    for usage in (None, *({"completion_tokens": count} for count in (None, 0, 11))):
        engine_server.replies = [Reply(body={**answer, "usage": usage})]
        found = Engine(engine_server.url, TOKENIZER).complete(PROMPTS[:1], [10], [2], {}, 0)
        assert found == [Continuation(" 1", len(TOKENIZER.encode(" 1", add_special_tokens=False)) + 1, finished=True)]


def test_a_server_that_is_not_there_is_one_clear_line(engine_server: FakeEngine) -> None:
    engine_server.close()
    with pytest.raises(UserError, match=r"^engine http://127.0.0.1:\d+/v1 failed, .* 2 times \(.*refused\); [^\n]+$"):
        Engine(engine_server.url, TOKENIZER)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, {"detail": "no cache"}),
        Reply(404, {}),
        BUSY,
        Reply(body=b"{"),
        Reply(body=[]),
        Reply(body={"data": [{}]}),
    ],
)
def test_a_server_that_does_not_list_its_models_must_be_told(engine_server: FakeEngine, reply: Reply) -> None:
    engine_server.models = reply
    with pytest.raises(UserError, match=r"does not list its models .*; say with --engine-model which is the base"):
        Engine(engine_server.url, TOKENIZER)
    assert ask(Engine(engine_server.url, TOKENIZER, model="base")) == EXPECTED


def test_a_wrong_key_is_told_from_a_server_that_does_not_list_its_models(engine_server: FakeEngine) -> None:
    engine_server.models = Reply(401, {"detail": "who are you?"})
    with pytest.raises(UserError, match=r"refused \(.*who are you.*is its key in OPENAI_API_KEY"):
        Engine(engine_server.url, TOKENIZER)


def test_a_wrong_key_is_told_before_anything_is_written(engine_server: FakeEngine) -> None:
    engine_server.one_token = Reply(401, {"detail": "who are you?"})
    with pytest.raises(UserError, match=r"refused \(.*who are you.*is its key in OPENAI_API_KEY"):
        Engine(engine_server.url, TOKENIZER, model="base")


def test_among_several_models_the_base_must_be_named(engine_server: FakeEngine) -> None:
    engine_server.models = ["base", "other"]
    with pytest.raises(UserError, match="serves base, other; say with --engine-model which is the base"):
        Engine(engine_server.url, TOKENIZER)
    assert len(ask(Engine(engine_server.url, TOKENIZER, model="other"))) == 3
    assert {body["model"] for body in engine_server.requests} == {"other"}


def test_the_key_goes_to_the_server_only(
    engine_server: FakeEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not into errors either, whatever the server says."""
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    ask(Engine(engine_server.url, TOKENIZER))
    assert set(engine_server.keys) == {f"Bearer {KEY}"}
    said = {"error": {"message": f"Incorrect API key provided: {KEY}", "header": f"Bearer {KEY}"}}
    headers = {"www-authenticate": f"Bearer {KEY}"}
    for reply in (
        Reply(401, said, headers),
        Reply(500, said, headers),
        Reply(body=said),
        Reply(body=f"x{KEY}".encode()),
    ):
        for engine_server.models, engine_server.replies in ((["base"], [reply]), (reply, [GOOD])):
            with pytest.raises(UserError) as caught:
                ask(Engine(engine_server.url, TOKENIZER))
            chained = (caught.value, caught.value.__cause__, caught.value.__context__)
            assert "***" in str(caught.value)
            assert not any(KEY in str(error) for error in chained[:2])
    assert KEY not in "".join(chain(*capfd.readouterr()))


@pytest.mark.parametrize("key", ["sk-é", "one\ntwo", "a\x00b"])
def test_a_key_that_no_header_can_hold_is_not_repeated(
    engine_server: FakeEngine, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if "\0" in key:
        monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": key})
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY must be one line of ASCII") as caught:
        Engine(engine_server.url, TOKENIZER)
    assert key not in str(caught.value)


def test_an_empty_key_is_none(engine_server: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert ask(Engine(engine_server.url, TOKENIZER)) == EXPECTED


def test_nothing_to_write_asks_for_nothing(engine_server: FakeEngine) -> None:
    assert Engine(engine_server.url, TOKENIZER).complete([], [], [2], {}, 0) == []
    assert engine_server.requests == []


SERVED = ServedAdapter("red", "kl:2,min=1", "SHA-256 `0123`")
REPORT = {
    "kl": [0.5, 2.0],
    "cumulative_kl": 2.5,
    "closing_position": 1,
    "dead_band": 0.0,
    "parameters": "SHA-256 `0123`",
}


def with_report(report: Any) -> Reply:
    answer = completion(PROMPTS[0])
    answer["choices"][0]["reft"] = report
    return Reply(body=answer)


def test_a_served_adapter_is_asked_for_and_its_gates_report_comes_back(engine_server: FakeEngine) -> None:
    engine_server.replies = [with_report(REPORT)]
    (answer,) = Engine(engine_server.url, TOKENIZER, adapter=SERVED).complete(PROMPTS[:1], [10], [2], {}, 0)
    assert engine_server.requests[0]["reft"] == {"adapter": "red", "gate": "kl:2,min=1"}
    assert answer.report == REPORT


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (None, "answered without a gate's report; is it reft_math.engines.vllm.served?"),
        ({"kl": []}, "answered without a gate's report"),
        ({**REPORT, "parameters": "SHA-256 `4567`"}, "has another adapter as red (SHA-256 `4567`) than --adapter"),
    ],
)
def test_an_answer_that_is_not_the_adapters_stops_the_run(engine_server: FakeEngine, report: Any, why: str) -> None:
    """An ordinary server ignores fields that it does not know, and would be measured as if it had a gate."""
    engine_server.replies = [with_report(report)]
    with pytest.raises(Unfinished) as stopped:
        Engine(engine_server.url, TOKENIZER, adapter=SERVED).complete(PROMPTS[:1], [10], [2], {}, 0)
    assert why in str(stopped.value)
