"""The header of a GGUF file: its metadata and its table of tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf
package maps the file and keeps each token of the vocabulary as an array; this
reads the header once, with a plain stream, and checks every length against the
size of the file.
"""

import dataclasses
import math
import pathlib
import struct
from typing import Any, BinaryIO

import gguf
import numpy as np

from model.hf import tensors

_Type = gguf.GGUFValueType
# Letters that mean the same to struct and to numpy.
_SCALARS = {
  _Type.UINT8: "<B",
  _Type.INT8: "<b",
  _Type.UINT16: "<H",
  _Type.INT16: "<h",
  _Type.UINT32: "<I",
  _Type.INT32: "<i",
  _Type.UINT64: "<Q",
  _Type.INT64: "<q",
  _Type.FLOAT32: "<f",
  _Type.FLOAT64: "<d",
  _Type.BOOL: "<?",
}
_VERSIONS = (2, 3)
_MOST_DIMS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A row of the table of tensors.

  Attributes:
    shape: as numpy has it: the last dim's elements are neighbours.
    kind: how the numbers are stored.
    offset: of its first byte in the file.
    num_bytes: in the file.
  """

  shape: tuple[int, ...]
  kind: gguf.GGMLQuantizationType
  offset: int
  num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What a GGUF file says before its numbers.

  Attributes:
    file: the file.
    metadata: key -> number, truth value, string, or list of those.
    tensors: name -> where and how.
  """

  file: pathlib.Path
  metadata: dict[str, Any]
  tensors: dict[str, Tensor]


def read(file: pathlib.Path) -> Header:
  """Reads the header of a file, and checks that all of its tensors are there.

  Raises:
    ValueError: it is not a GGUF file that is whole and of a known version.
  """
  tensors.reject_pointer(file)
  with file.open("rb") as stream:
    return _Reader(file, stream).header()


class _Reader:
  """Reads a header from a stream."""

  def __init__(self, file: pathlib.Path, stream: BinaryIO):
    self._file = file
    self._stream = stream
    self._size = file.stat().st_size

  def header(self) -> Header:
    magic = self._stream.read(4)
    if magic != b"GGUF":
      raise ValueError(
        f"{self._file} is not a GGUF file (it begins with {magic!r}); get it"
        " again, or give the file that is meant"
      )
    version = self._scalar(_Type.UINT32)
    if version not in _VERSIONS:
      what = "big-endian" if not version & 0xFFFF else f"version {version}"
      raise ValueError(
        f"{self._file} is {what}; only versions {_VERSIONS} in little-endian"
        " order are read: convert the model again"
      )
    num_tensors = self._scalar(_Type.UINT64)
    num_fields = self._scalar(_Type.UINT64)
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):
      key = self._string()
      if key in metadata:
        raise self._damaged(f"{key} is there twice")
      metadata[key] = self._value(self._enum(_Type, key))
    table = [self._table_row() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
      raise self._damaged(f"general.alignment is {alignment!r}")
    begin = -(-self._stream.tell() // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, shape, kind, offset in table:
      if name in found:
        raise self._damaged(f"tensor {name} is there twice")
      found[name] = self._tensor(name, shape, kind, begin + offset)
    return Header(file=self._file, metadata=metadata, tensors=found)

  def _table_row(
    self,
  ) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
    """Name, shape, kind and offset, as the file has them."""
    name = self._string()
    num_dims = self._scalar(_Type.UINT32)
    if not 1 <= num_dims <= _MOST_DIMS:
      raise self._damaged(f"tensor {name} has {num_dims} dims")
    dims = [self._scalar(_Type.UINT64) for _ in range(num_dims)]
    kind = self._enum(gguf.GGMLQuantizationType, name)
    return name, tuple(reversed(dims)), kind, self._scalar(_Type.UINT64)

  def _tensor(
    self,
    name: str,
    shape: tuple[int, ...],
    kind: gguf.GGMLQuantizationType,
    offset: int,
  ) -> Tensor:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
      raise self._damaged(
        f"tensor {name} has shape {shape}, which are no whole blocks of {block}"
      )
    num_bytes = math.prod(shape) // block * block_bytes
    if offset + num_bytes > self._size:
      raise ValueError(
        f"{self._file} has {self._size} bytes, but {name} needs"
        f" {offset + num_bytes}; the download was cut short: get it again"
      )
    return Tensor(shape=shape, kind=kind, offset=offset, num_bytes=num_bytes)

  def _value(self, kind: gguf.GGUFValueType) -> Any:
    if kind is _Type.STRING:
      return self._string()
    if kind is not _Type.ARRAY:
      return self._scalar(kind)
    of = self._enum(_Type, "an array")
    count = self._scalar(_Type.UINT64)
    if of in _SCALARS:
      dtype = np.dtype(_SCALARS[of])
      return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
    return [self._value(of) for _ in range(count)]

  def _string(self) -> str:
    raw = self._bytes(self._scalar(_Type.UINT64))
    try:
      return raw.decode()
    except UnicodeDecodeError as error:
      raise self._damaged(f"{raw[:40]!r} is not UTF-8") from error

  def _scalar(self, kind: gguf.GGUFValueType) -> Any:
    form = _SCALARS[kind]
    (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
    return value

  def _enum(self, enum: Any, what: str) -> Any:
    value = self._scalar(_Type.UINT32)
    try:
      return enum(value)
    except ValueError as error:
      raise self._damaged(
        f"{what} has the unknown {enum.__name__} {value}"
      ) from error

  def _bytes(self, count: int) -> bytes:
    left = self._size - self._stream.tell()
    if count > left:
      raise ValueError(
        f"{self._file} has {self._size} bytes, and ends within its header; the"
        " download was cut short: get it again"
      )
    return self._stream.read(count)

  def _damaged(self, what: str) -> ValueError:
    return ValueError(
      f"{self._file}: {what}; the file is damaged or newer than what this"
      " program reads: get it again, or convert the model again"
    )
