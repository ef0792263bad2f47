"""Import and export as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.models import load_model, load_tokenizer

TOKENS = torch.arange(3, 11)[None]


@pytest.fixture
def delta_vector(tmp_path: Path) -> Path:
    """BREP's file for the two layers of `tiny_base`."""
    torch.manual_seed(0)
    prefixes = [f"model.layers.{layer}.mlp.up_proj.delta_vector.activation_" for layer in range(2)]
    scales = {f"{prefix}scaling": 1 + 0.5 * torch.randn(1, 48).bfloat16() for prefix in prefixes}
    torch.save(
        {**scales, **{f"{prefix}bias": torch.randn(1, 48).bfloat16() for prefix in prefixes}}, tmp_path / "d.pth"
    )
    return tmp_path / "d.pth"


def test_an_import_is_evaluated_and_merged(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_base: str,
    delta_vector: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    imported, merged = tmp_path / "imported", tmp_path / "merged"
    said = {"model_path": tiny_base, "op_position": "ffn_up", "template_index": "llama3"}
    (delta_vector.parent / "train_config.json").write_text(json.dumps(said))  # names the base, whose folder is here
    line = f"train/import_checkpoint.py --source {delta_vector} --gate tokens:9"
    call(f"{line} --output-dir {imported}")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("red at ffn_up, width 48, layers (0, 1)")
    assert printed[1:3] == ["as told: gate tokens:9", "not given, taken as: positions all"]
    assert printed[3].startswith(f"train_config.json: base {tiny_base}, site ffn_up, prompt llama3 (template chat/1 is")
    assert printed[4].endswith("evaluate with --handoff keep")
    results = json.loads((imported / "results.json").read_text())
    assert results["adapter"]["base_model"] == tiny_base
    assert (results["adapter"]["gate"], results["adapter"]["template"]) == ("tokens:9", "chat/1")
    evaluation = f"eval/arithmetic.py --adapter {imported} --limit 2 --max-new-tokens 2"
    call(f"{evaluation} --output-dir {tmp_path}/evaluation")
    call(f"train/merge_adapter.py --adapter {imported} --output-dir {merged}")
    assert "the adapter's own gate is tokens:9; weights have none" in capsys.readouterr().out
    assert "**in its weights**: RED at `ffn_up`, layers 0, 1" in (merged / "README.md").read_text()
    assert not any(tiny_base in (folder / "README.md").read_text() for folder in (imported, merged))
    reft_model = PrefixReftModel.from_pretrained(imported, load_model(tiny_base))
    plain = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, reft_model(TOKENS).logits, rtol=1e-5, atol=1e-5)
        assert not torch.equal(plain(TOKENS).logits, load_model(tiny_base)(TOKENS).logits)
    text = "Anna has 47 books."
    assert AutoTokenizer.from_pretrained(merged)(text)["input_ids"] == load_tokenizer(tiny_base)(text)["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model {base}", "--source must be a folder or a file to import"),
        ("--source {delta}", "--model must be the base that the adapter was trained on"),
        ("--source {delta}.gone --model nobody/nothing", "is neither"),
        (
            "--source {delta} --model nobody/nothing --gate always --act-fn relu",
            "act_fn and dropout are LoReFT's and DiReFT's",
        ),
        ("--source {delta} --model nobody/nothing --gate half", "a gate is"),
        ("--source {delta} --model nobody/nothing", "the gate has to be said: tokens:N+1"),
        ("--source {delta} --model arithmetic --gate always", "this one is for ffn_up of width 48"),
    ],
)
def test_a_mistake_in_an_import_is_one_line_and_nothing_is_written(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_base: str,
    delta_vector: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    """All but the last before a model is looked for."""
    arguments = arguments.format(base=tiny_base, delta=delta_vector)
    with pytest.raises(SystemExit):
        call(f"train/import_checkpoint.py {arguments} --output-dir {tmp_path}/run")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "--adapter must be an adapter's folder or hub id; got None"),
        ({"site": "block", "base_model": "nobody/nothing"}, "site block is a sum"),
        ({"gate": "prompt", "base_model": "nobody/nothing"}, "--every-token"),
        ({"positions": "prompt", "base_model": "nobody/nothing"}, "acts on prompt positions only"),
    ],
)
def test_a_mistake_in_a_merge_is_one_line_and_nothing_is_written(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_base: str,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, str] | None,
    message: str,
) -> None:
    adapter = ""
    if config is not None:
        get_prefix_reft_model(load_model(tiny_base), PrefixReftConfig(**config)).save_pretrained(tmp_path / "adapter")  # type: ignore[arg-type]
        adapter = f"--adapter {tmp_path}/adapter"
    with pytest.raises(SystemExit):
        call(f"train/merge_adapter.py {adapter} --output-dir {tmp_path}/run")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_gate_of_the_prompt_is_merged_on_request_and_another_base_is_named(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str
) -> None:
    config = PrefixReftConfig(gate="prompt", base_model="nobody/nothing")
    get_prefix_reft_model(load_model(tiny_base), config).save_pretrained(tmp_path / "adapter")
    line = f"train/merge_adapter.py --adapter {tmp_path}/adapter --model {tiny_base} --every-token"
    with pytest.warns(UserWarning, match="trained on nobody/nothing, and is put on"):
        call(f"{line} --output-dir {tmp_path}/run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_control_vector_is_written_without_the_bases_weights(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_base: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gguf = pytest.importorskip("gguf", reason="writes and reads the file")
    config = PrefixReftConfig(intervention="bias", site="block", layers="1", gate="tokens:9", base_model=tiny_base)
    reft_model = get_prefix_reft_model(load_model(tiny_base), config)
    torch.nn.init.normal_(reft_model.interventions[next(iter(reft_model.interventions))].bias)
    reft_model.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("reft_math.models.base.AutoModelForCausalLM.from_pretrained", None)
    path = tmp_path / "new" / "vector.gguf"
    call(f"train/export_control_vector.py --adapter {tmp_path}/adapter --output {path}")
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["the adapter's own gate is tokens:9; llama.cpp has none", f"control vector: {path}"]
    (tensor,) = gguf.GGUFReader(path).tensors
    assert torch.equal(torch.from_numpy(tensor.data.copy()), next(reft_model.interventions.parameters()).detach())


def test_an_adapter_that_no_control_vector_holds_is_refused_in_one_line(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PrefixReftConfig(intervention="bias", site="block", base_model="nobody/nothing")
    get_prefix_reft_model(load_model(tiny_base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(SystemExit):
        call(f"train/export_control_vector.py --adapter {tmp_path}/adapter --output {tmp_path}/vector.gguf")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "begin at layer 1; the adapter acts on layer 0 too" in errors[0]
    assert not (tmp_path / "vector.gguf").exists()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("train/import_checkpoint.py --source none --model none --output-dir {folder}/run", "an import"),
        ("train/merge_adapter.py --adapter none --output-dir {folder}/run", "a merged model"),
        ("train/export_control_vector.py --adapter none --output {folder}/run/vector.gguf", "a control vector"),
        ("train/push_to_hub.py --adapter {folder} --repo-id user/name", "an upload"),
        ("train/arithmetic.py --output-dir {folder}/run", "the embedded model"),
        ("eval/token_view.py --adapter none --output {folder}/run/page.html", "a page"),
    ],
)
def test_what_one_process_makes_is_refused_under_torchrun(
    call: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    what: str,
) -> None:
    """Two would write the same files at once."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        call(line.format(folder=tmp_path))
    assert capsys.readouterr().err == f"error in process 1: {what} is made by one process; run it without torchrun\n"
    assert not (tmp_path / "run").exists()
