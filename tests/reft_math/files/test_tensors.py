from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reft_math.files.tensors import read_parameters


def file_of(header: dict[str, object] | bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: eight bytes that say the header's length, the header, the numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def tensor(dtype: str, shape: list[int], end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def test_numbers_come_back_in_the_dtype_they_were_saved_in(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.tensor([1.5, -2], dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_parameters(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        file_of(b"{}", length=2**63),  # a header of more bytes than any disk has
        file_of(b"{}", length=90_000_000),
        file_of(b"["),
        file_of(b"[" * 100_000),
        file_of(b"{" + b'"a":{' * 50_000),
        file_of({"a": tensor("F32", [2], 8)}, b"1234"),  # cut short
        file_of({"a": tensor("F32", [1], 4)}, b"12345678"),  # more than it says
        file_of({"a": tensor("F32", [2**40, 2**40], 4)}, b"1234"),
        file_of({"a": tensor("F32", [2], 4)}, b"1234"),
        file_of({"a": tensor("F99", [1], 4)}, b"1234"),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        file_of({"a": tensor("F32", [1], 4), "b": tensor("F32", [1], 4)}, b"1234"),  # the same bytes twice
        file_of({"a": tensor("I64", [1], 8)}, b"12345678"),
        file_of({"a": tensor("F8_E4M3", [1], 1)}, b"1"),
        file_of({"a": tensor("F32", [1], 4)}, b"\x00\x00\xc0\x7f"),  # NaN
        file_of({"a": tensor("F16", [1], 2)}, b"\x00\xfc"),  # -Inf
    ],
)
def test_a_damaged_or_hostile_file_is_a_value_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        read_parameters(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_is_wrong_with_a_tensor_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"bias": torch.tensor([1])}, path)
    with pytest.raises(ValueError, match=r"bias must be of floating numbers; it is torch\.int64"):
        read_parameters(path)
    for bad in (torch.tensor([torch.inf]), torch.tensor([1e300], dtype=torch.float64)):  # the latter in float32
        save_file({"bias": bad}, path)
        with pytest.raises(ValueError, match="bias is NaN or infinite"):
            read_parameters(path)
