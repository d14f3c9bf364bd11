"""Named tensors in files, read one at a time; the base of every file format.

Tensors are read with `preadv`, not through a memory map: mapped pages count as
the process's memory until the kernel wants them back, so a model that is
streamed through a map seems to hold all of it.
"""

import abc
import collections.abc
import dataclasses
import math
import os
import pathlib

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The bits of the exponent: all set in NaN and the infinities, in nothing else.
_EXPONENTS = {
  BFLOAT16: 0x7F80,
  np.dtype(np.float16): 0x7C00,
  np.dtype(np.float32): 0x7F800000,
  np.dtype(np.float64): 0x7FF0000000000000,
}
# Elements that are looked at in one go: they and a copy fit in the L2 cache.
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Shape and dtype of a tensor."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def num_bytes(self) -> int:
    """Bytes of the array."""
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info(Spec):
  """What is known of a tensor before it is read: its array's spec and file."""

  file: pathlib.Path


class Tensors(collections.abc.Mapping[str, Info]):
  """Tensors by name: `tensors[name]` describes one, `read` reads it.

  Nothing is kept open or in memory between calls, and every call may be made
  from any thread.
  """

  def __init__(self, infos: collections.abc.Mapping[str, Info]):
    self._infos = dict(infos)

  def __getitem__(self, name: str) -> Info:
    return self._infos[name]

  def __iter__(self) -> collections.abc.Iterator[str]:
    return iter(self._infos)

  def __len__(self) -> int:
    return len(self._infos)

  @property
  def num_bytes(self) -> int:
    """Bytes of all the arrays together."""
    return sum(info.num_bytes for info in self._infos.values())

  def read(self, name: str) -> np.ndarray:
    """A tensor as a new array.

    Raises:
      ValueError: there is no such tensor, or its file has changed.
    """
    info = self._info(name)
    array = np.empty(info.shape, info.dtype)
    if info.shape:
      self._read_rows(name, 0, array)
    else:
      self._read_rows(name, 0, array.reshape(1))
    return array

  def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
    """Rows start:stop of a tensor (of its first dim) as a new array.

    Raises:
      ValueError: there is no such tensor, it has no such rows, or its file has
        changed.
    """
    info = self._info(name)
    num_rows = info.shape[0] if info.shape else 0
    if not 0 <= start <= stop <= num_rows:
      raise ValueError(
        f"{info.file}: {name} has {num_rows} rows; rows {start}:{stop} are not"
        " among them"
      )
    array = np.empty((stop - start, *info.shape[1:]), info.dtype)
    self._read_rows(name, start, array)
    return array

  @abc.abstractmethod
  def _read_rows(self, name: str, start: int, array: np.ndarray) -> None:
    """Fills an array with the rows of a tensor from `start` on."""

  def _info(self, name: str) -> Info:
    if name not in self._infos:
      raise ValueError(
        f"there is no tensor {name!r}; of {len(self)} the first is"
        f" {next(iter(self), None)!r}"
      )
    return self._infos[name]


def read_into(array: np.ndarray, file: pathlib.Path, offset: int) -> None:
  """Fills a contiguous array with the bytes of a file from `offset` on.

  Raises:
    ValueError: the file cannot be read, or ends too early.
  """
  # The view as bytes exists for any dtype, bfloat16 too, but not for no bytes.
  if not array.size:
    return
  view = memoryview(array.reshape(-1).view(np.uint8))
  done = 0
  try:
    descriptor = os.open(file, os.O_RDONLY)
    try:
      while done < len(view):
        # Linux reads 2 GiB at most in a call.
        got = os.preadv(descriptor, [view[done:]], offset + done)
        if not got:
          raise ValueError(
            f"{file} ends at byte {offset + done} where"
            f" {offset + len(view)} were there when it was opened; it was"
            " changed meanwhile: start again"
          )
        done += got
    finally:
      os.close(descriptor)
  except OSError as error:
    raise ValueError(
      f"{file} cannot be read at byte {offset + done} ({error.strerror}); check"
      " its permissions and its disk"
    ) from error


def reject_pointer(file: pathlib.Path) -> None:
  """Raises a ValueError if a file is not what its name says, but a stand-in."""
  try:
    with file.open("rb") as stream:
      head = stream.read(64)
  except OSError as error:
    raise ValueError(
      f"{file} cannot be read ({error.strerror}); check that it exists and its"
      " permissions"
    ) from error
  if head.startswith(b"version https://git-lfs"):
    raise ValueError(
      f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in"
      " its folder, or download the file"
    )
  if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
    raise ValueError(
      f"{file} is a web page, not the file itself; download it again, with"
      " your access token if the model asks for one"
    )


def check_finite(name: str, array: np.ndarray) -> None:
  """Raises a ValueError if a tensor has NaN or infinite values.

  It looks at the bits of the exponents, a cache full at a time: about as fast
  as memory is read.
  """
  exponent = _EXPONENTS.get(array.dtype)
  assert exponent is not None, array.dtype
  unsigned = np.dtype(f"u{array.dtype.itemsize}")
  bits = np.ascontiguousarray(array).reshape(-1).view(unsigned)
  scratch = np.empty(min(_CHUNK, bits.size), unsigned)
  for start in range(0, bits.size, _CHUNK):
    chunk = bits[start : start + _CHUNK]
    exponents = np.bitwise_and(
      chunk, unsigned.type(exponent), out=scratch[: chunk.size]
    )
    if exponents.max() == exponent:
      num_nan, num_infinite = np.isnan(array).sum(), np.isinf(array).sum()
      first = start + int(np.argmax(exponents == exponent))
      index = tuple(int(i) for i in np.unravel_index(first, array.shape))
      raise ValueError(
        f"{name} has {num_nan} NaN and {num_infinite} infinite values of"
        f" {array.size}, the first at {list(index)}; the weights are damaged:"
        " get them again, or take an earlier checkpoint"
      )
