"""Bases read from GGUF files: the model that was written, named by its digest, trained and saved like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, Repository
from transformers import AutoModelForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig
from reft_math.commands.options.evaluation import DecoderOptions
from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.models.base import absolute_name, load_skeleton
from reft_math.models.gguf_files import file_sha256

gguf = pytest.importorskip("gguf", reason="writes and reads the files")
TOKENS = torch.arange(4, 12)[None]
# In transformers' terms on the left, in llama.cpp's on the right.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, model: PreTrainedModel, architecture: str = "qwen2") -> Path:
    """The weights in float32, with a byte-level tokenizer of as many tokens as the model has embeddings."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    characters = [chr(code) for code in range(ord("!"), ord("!") + config.vocab_size - 2)]
    writer.add_token_list(["<eos>", *characters, "AB"])
    writer.add_token_types([3] + [1] * (config.vocab_size - 1))
    writer.add_token_merges(["A B"])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model("Qwen2", head_dim=8, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def file(tmp_path: Path, model: PreTrainedModel) -> str:
    return str(write_gguf(tmp_path / "tiny.gguf", model))


def test_a_file_gives_the_logits_of_the_model_that_was_written_and_can_be_saved(
    file: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    read = load_model(file)
    assert read.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(read(TOKENS).logits, model.eval()(TOKENS).logits)
    assert load_model(file, loading=LoadingOptions(dtype="bfloat16")).dtype == torch.bfloat16
    assert {name: weight.shape for name, weight in load_skeleton(file).named_parameters()} == {
        name: weight.shape for name, weight in read.named_parameters()
    }
    read.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(TOKENS).logits, read(TOKENS).logits)


def test_the_tokenizer_comes_from_the_file(file: str) -> None:
    tokenizer = load_tokenizer(file)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("A+AB")) == ["A", "+", "AB"]
    assert tokenizer.pad_token_id == 0


def test_a_folder_with_a_file_name_is_the_file(file: str) -> None:
    options = DecoderOptions(model=str(Path(file).parent), gguf_file=Path(file).name)
    assert (options.model, options.gguf_file) == (file, None)


def test_a_hub_repository_with_a_file_name_is_the_file(hub: FakeHub, file: str, model: PreTrainedModel) -> None:
    hub.repositories["user/tiny-GGUF"] = repository = Repository(private=False)
    repository.commit("main", {"q4/tiny.gguf": Path(file).read_bytes()})
    options = DecoderOptions(model="user/tiny-GGUF", gguf_file="q4/tiny.gguf")
    assert options.model is not None
    read = load_model(options.model)
    with torch.no_grad():
        assert torch.equal(read(TOKENS).logits, model.eval()(TOKENS).logits)
    config = PrefixReftConfig(base_model=absolute_name(options.model), base_revision=read.config._commit_hash)
    assert config.resolve_base(None, None) == ("user/tiny-GGUF/q4/tiny.gguf", file_sha256(Path(file)))
    assert load_tokenizer(*config.resolve_base(None, None)).encode("AB") == load_tokenizer(file).encode("AB")
    with pytest.raises(UserError, match=r"model 'user/tiny-GGUF/q8/tiny\.gguf' must be .*404") as error:
        load_model("user/tiny-GGUF/q8/tiny.gguf")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("model", "name"), [(None, "a.gguf"), ("folder", "model.safetensors")])
def test_a_file_name_needs_a_model_and_its_ending(model: str | None, name: str) -> None:
    with pytest.raises(UserError, match=r"--gguf-file names a \.gguf file of the folder or hub repository"):
        DecoderOptions(model=model, gguf_file=name)


def test_an_adapter_names_its_file_by_digest(file: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    base = load_model(file)
    config = PrefixReftConfig(base_model=absolute_name(file), base_revision=base.config._commit_hash)
    assert config.base_revision == file_sha256(Path(file))
    assert config.resolve_base(None, None) == (file, config.base_revision)
    moved = Path(file).rename(tmp_path / "moved.gguf")
    assert config.resolve_base(str(moved), None) == (str(moved), config.base_revision)
    assert not recwarn.list

    with torch.no_grad():
        base.model.norm.weight.mul_(2)
    write_gguf(Path(file), base)
    with pytest.raises(UserError, match="must be the file that the adapter was trained on, sha256:"):
        load_model(*config.resolve_base(None, None))


def test_bad_files_are_named_in_one_line(tmp_path: Path, model: PreTrainedModel) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(40))
    write_gguf(tmp_path / "unknown.gguf", model, "no-such-architecture")
    for name, reason in {
        "damaged": "",
        "unknown": "no-such-architecture",
        "missing": "there is no file",
    }.items():
        with pytest.raises(UserError, match=rf"model '.*{name}\.gguf' must be .*{reason}") as error:
            load_model(str(tmp_path / f"{name}.gguf"))
        assert "\n" not in str(error.value)
