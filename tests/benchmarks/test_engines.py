"""What the benchmark computes, against a small server on loopback; real engines are `.ci/engines`' to start."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks.common.gguf_writing import embedded_gguf, float_gguf
from benchmarks.common.servers import llama_command, serving, vllm_command
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer

gguf = pytest.importorskip("gguf", reason="writes and reads the files")
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"logprobs": LOGPROBS}], "asked": body}).encode())
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
VLLM = {"top_logprobs": [{"token_id:7": -0.5, "token_id:12": -1.5}]}
LLAMA = {"content": [{"id": 7, "top_logprobs": [{"id": 7, "logprob": -0.5}, {"id": 12, "logprob": -1.5}]}]}


@pytest.mark.parametrize("answer", [VLLM, LLAMA])
def test_both_engines_log_probabilities_are_read_from_a_server_that_is_ended(
    command: Callable[[str], ModuleType], tmp_path: Path, answer: dict[str, object]
) -> None:
    code = SERVER.replace("LOGPROBS", repr(answer))
    with serving([sys.executable, "-c", code], tmp_path / "log") as address:
        assert command("benchmarks/engines.py").top_log_probs(address, [1, 2]) == {7: -0.5, 12: -1.5}
    with pytest.raises(OSError, match="refused"):
        command("benchmarks/engines.py").top_log_probs(address, [1, 2])


def test_a_server_that_ends_at_once_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"must serve its model within .*; see .*log: no such model$"),
        serving([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path / "log"),
    ):
        pass


def test_servers_are_started_in_float32(tmp_path: Path) -> None:
    assert "--dtype float32" in " ".join(vllm_command("python", tmp_path))
    gated = vllm_command("python", tmp_path, {"red": tmp_path / "red"})
    assert gated[:3] == ["python", "-m", "reft_math.engines.vllm.served"]
    assert gated[-1] == f"--reft=red={tmp_path}/red"
    plain = llama_command("llama-server", tmp_path / "model.gguf", 4)
    assert "--parallel 4 --ctx-size 1024" in " ".join(plain)
    assert "--cache-type-k f32 --cache-type-v f32" in " ".join(plain)
    vector = llama_command("llama-server", tmp_path / "model.gguf", 4, tmp_path / "vector.gguf")
    assert vector == [*plain, "--control-vector", str(tmp_path / "vector.gguf")]


@pytest.mark.parametrize(
    ("theirs", "index"),
    [("two and three", 0), ("one", 1), ("one two", 2), ("one two three more", 2), ("", 0)],
)
def test_the_first_token_that_differs(command: Callable[[str], ModuleType], theirs: str, index: int) -> None:
    """The last one, the end, where an engine's text goes on; and the one after an engine's end."""
    texts = ["one", "one two", "one two three"]
    assert command("benchmarks/engines.py").first_difference(texts, theirs) == index


def test_a_quantised_file_becomes_the_same_in_float32(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("w", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    float_gguf(tmp_path / "small.gguf", tmp_path / "float.gguf")
    reader = gguf.GGUFReader(tmp_path / "float.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {tensor.tensor_type for tensor in found.values()} == {gguf.GGMLQuantizationType.F32}
    same = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(found["w"].data, same)
    assert np.array_equal(found["norm"].data, weights[0])
    said = {name: entry.contents() for name, entry in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "tokenizer.ggml.tokens": ["a", "b"],
        "general.file_type": gguf.LlamaFileType.ALL_F32,
    }


def test_the_embedded_model_in_8_bits_reads_back_as_itself(tmp_path: Path) -> None:
    """Up to the rounding of its weights; and a token's text is what our tokenizer decodes it to."""
    path = embedded_gguf(tmp_path / "embedded.gguf")
    prompt = load_tokenizer("arithmetic")("Anna has 47 books.", return_tensors="pt").input_ids
    with torch.no_grad():
        there, here = load_model(str(path))(prompt).logits, load_model("arithmetic")(prompt).logits
    assert (there - here).abs().max() < 0.02 * here.abs().max()
    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    text = "".join(tokens[index] for index in prompt[0, 1:])
    assert text.replace("Ġ", " ") == "Anna has 47 books."


def test_the_table_tells_the_largest_gap(command: Callable[[str], ModuleType]) -> None:
    row = {
        **{"engine": "vLLM", "gate": "tokens:8", "equal": 98, "completions": 100, "different": {3: 1e-5, 8: 2e-4}},
        **{"handed_over": 90, "log_prob_difference": 1e-5, "log_prob_difference_by_the_edit": None},
        **{"tokens_a_second": 50.0, "tokens_a_second_here": 25.0},
    }
    benchmark = command("benchmarks/engines.py")
    rows = benchmark.table([row, {**row, "different": {}}])
    assert [len(line) for line in rows] == [len(benchmark.COLUMNS)] * 2
    assert [line[5] for line in rows] == ["0.0002", "-"]


def test_tensors_are_put_in_place_of_a_files_and_beside_them(tmp_path: Path) -> None:
    embedded_gguf(tmp_path / "embedded.gguf")
    changes = {"blk.0.ffn_up.weight": np.ones((4, 2), np.float32), "blk.0.ffn_up.bias": np.full(4, 2.0, np.float32)}
    reader = gguf.GGUFReader(float_gguf(tmp_path / "embedded.gguf", tmp_path / "float.gguf", changes))
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert all(np.array_equal(found[name], array) for name, array in changes.items())
    assert len(found) == len(gguf.GGUFReader(tmp_path / "embedded.gguf").tensors) + 1


@pytest.mark.parametrize("arguments", ["", "--llama a --model folder", "--llama a --max-new-tokens 8"])
def test_a_mistake_is_one_line(call: Callable[[str], None], capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    with pytest.raises(SystemExit):
        call(f"benchmarks/engines.py {arguments}")
    assert json.dumps(capsys.readouterr().err).count("error: ") == 1
