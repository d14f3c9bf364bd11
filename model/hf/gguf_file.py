"""A GGUF file as the tensors and the config of its Hugging Face model.

Names, shapes and numbers are those that `transformers` would load: quantized
weights come dequantized to float32, others as they are stored, and llama.cpp's
order of the rows of q and k (for interleaved RoPE) is undone.
"""

import math
import pathlib
from typing import Any

import gguf
import numpy as np

from model.hf import gguf_config
from model.hf import gguf_header
from model.hf import tensors

_Kind = gguf.GGMLQuantizationType
_PLAIN = {
  _Kind.F16: np.dtype(np.float16),
  _Kind.BF16: tensors.BFLOAT16,
  _Kind.F32: np.dtype(np.float32),
  _Kind.F64: np.dtype(np.float64),
}
_INTEGERS = (_Kind.I8, _Kind.I16, _Kind.I32, _Kind.I64)
# Numbers that are dequantized in one go; gguf needs several times their room.
_BLOCK = 1 << 20


class GgufFile(tensors.Tensors):
  """The tensors of a GGUF file; made by `open_gguf`.

  Attributes:
    config: what config.json says of the model.
    metadata: the file's own, for the tokenizer (gguf_tokenizer.py) and licence.
  """

  def __init__(self, header: gguf_header.Header):
    self._header = header
    self.metadata = header.metadata
    for name, tensor in header.tensors.items():
      _check_kind(header.file, name, tensor)
    model = gguf_config.model_of(header, self._read_own)
    self._theirs = {ours: theirs for theirs, ours in model.names.items()}
    self._num_permuted_heads = model.num_permuted_heads
    super().__init__(
      {
        ours: tensors.Info(
          shape=header.tensors[theirs].shape,
          dtype=_dtype(header.tensors[theirs]),
          file=header.file,
        )
        for theirs, ours in model.names.items()
      }
    )
    largest = max(self.values(), key=lambda info: info.num_bytes)
    self.config: dict[str, Any] = {
      **model.config,
      "torch_dtype": str(largest.dtype),
    }

  def _read_rows(self, name: str, start: int, array: np.ndarray) -> None:
    tensor = self._header.tensors[self._theirs[name]]
    num_rows = tensor.shape[0]
    row_bytes = tensor.num_bytes // max(num_rows, 1)
    rows_at_once = max(1, _BLOCK // max(1, math.prod(tensor.shape[1:])))
    heads = self._num_permuted_heads.get(name)
    whole = None
    if heads:
      # A head's rows are spread over it.
      whole = np.empty((num_rows, row_bytes), np.uint8)
      tensors.read_into(whole, self._header.file, tensor.offset)
      whole = _unpermute(whole, heads)[start : start + len(array)]
      start = 0
    for first in range(0, len(array), rows_at_once):
      part = array[first : first + rows_at_once]
      if whole is not None:
        raw = whole[first : first + len(part)]
      else:
        raw = np.empty((len(part), row_bytes), np.uint8)
        offset = tensor.offset + (start + first) * row_bytes
        tensors.read_into(raw, self._header.file, offset)
      part[...] = _decode(raw, tensor.kind).reshape(part.shape)

  def _read_own(self, name: str) -> np.ndarray:
    """A tensor by its name in the file."""
    tensor = self._header.tensors[name]
    raw = np.empty(tensor.num_bytes, np.uint8)
    tensors.read_into(raw, self._header.file, tensor.offset)
    return _decode(raw, tensor.kind).reshape(tensor.shape)


def open_gguf(path: str | pathlib.Path) -> GgufFile:
  """Opens a .gguf file, or the only one of a folder; reads its header.

  Raises:
    ValueError: there is no such file, it is not whole, or has an architecture,
      metadata or tensors that are not known. It names the file and a way out.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
      names = ", ".join(file.name for file in files) or "none"
      raise ValueError(
        f"{path} must have one .gguf, but has {names}; give the file itself"
      )
    path = files[0]
  if not path.is_file():
    raise ValueError(f"{path} does not exist; give a .gguf or its folder")
  return GgufFile(gguf_header.read(path))


def _check_kind(
  file: pathlib.Path, name: str, tensor: gguf_header.Tensor
) -> None:
  """Raises unless numbers of this kind can be read."""
  kind = tensor.kind
  if kind in _PLAIN:
    return
  _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  try:
    if kind in _INTEGERS or len(tensor.shape) < 2:
      raise NotImplementedError
    gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
  except NotImplementedError:
    raise ValueError(
      f"{file}: {name} (of shape {tensor.shape}) is stored as {kind.name},"
      " which can not be dequantized; get the model with another quantization"
      " (Q8_0, F16, BF16), or its safetensors"
    ) from None


def _dtype(tensor: gguf_header.Tensor) -> np.dtype:
  return _PLAIN.get(tensor.kind, np.dtype(np.float32))


def _decode(raw: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
  """The numbers of rows of bytes."""
  if kind in _PLAIN:
    return raw.view(_PLAIN[kind])
  return gguf.dequantize(raw, kind)


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows in the order of halves, from that of interleaved RoPE.

  llama.cpp turns a pair of dims that are half a head apart into neighbours.
  """
  pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
