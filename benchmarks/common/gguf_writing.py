"""GGUF files for llama.cpp to read: the embedded model in 8 bits, and any file with its weights in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BYTES = {" ": "Ġ", "\n": "Ċ"}  # as byte-level tokenizers write them; all else in the embedded vocabulary is itself


def embedded_gguf(target: Path) -> Path:
    """Writes the embedded model: matrices in 8 bits (Q8_0), and the tokenizer as far as it turns ids into text."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map
    from gguf.quants import quantize

    from reft_math.data.arithmetic import EMBEDDED_MODEL
    from reft_math.models import load_model, load_tokenizer

    model, tokenizer = load_model(EMBEDDED_MODEL), load_tokenizer(EMBEDDED_MODEL)
    config, tokens = model.config, tokenizer.convert_ids_to_tokens(range(model.config.vocab_size))
    writer = GGUFWriter(str(target), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["".join(BYTES.get(mark, mark) for mark in token) for token in tokens])
    special = tokenizer.all_special_tokens
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([f"{tokens[-2]} {tokens[-1]}"])  # there must be some; prompts come as ids
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # the embeddings
            continue
        array = tensor.float().cpu().numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbouring pairs, transformers halves
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = GGMLQuantizationType.Q8_0 if array.ndim == 2 else GGMLQuantizationType.F32
        theirs = names.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None  # a Llama's
        writer.add_tensor(theirs, quantize(array, kind), raw_dtype=kind)
    return _written(writer, target)


def float_gguf(source: Path, target: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Writes a GGUF file anew with every tensor in float32, as our loader reads it.

    Args:
        source, target: The files.
        changes: Arrays by GGUF's names, in place of the file's tensors or beside them.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(str(target), reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = entry.types[0]
            inner = entry.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), kind, inner)
    writer.add_file_type(LlamaFileType.ALL_F32)
    tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for name, array in {**tensors, **(changes or {})}.items():
        writer.add_tensor(name, array)
    return _written(writer, target)


def _written(writer: Any, target: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
