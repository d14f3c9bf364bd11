"""Writes a Hugging Face folder of safetensors, one tensor at a time.

All shapes are declared first, so the headers come first and every tensor has
its place: no more than the tensor that is being written is in memory. The files
are, byte for byte, those that the safetensors library writes.
"""

import collections.abc
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import struct

import numpy as np

from model.hf import safetensors_folder
from model.hf import tensors

# The library's order in a file, so that all are aligned; then that of names.
_DTYPE_ORDER = ("F64", "F32", "BF16", "F16")
_NAMES = {dtype: name for name, dtype in safetensors_folder.DTYPES.items()}
_METADATA = {"format": "pt"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
  file: pathlib.Path
  offset: int


class Writer:
  """Writes the tensors of a model into a new folder, all or nothing.

      with Writer(folder, specs) as writer:
        for name in specs:
          writer.write(name, array_of(name))
        (writer.partial / "config.json").write_text(...)

  Until the `with` ends well, everything is in `partial`, a folder beside the
  target; then it is flushed to the disk and renamed. After an exception it is
  removed; what a killed process leaves, the next Writer of this target removes.

  Attributes:
    partial: where to put the other files of the folder.
    num_bytes: of all the tensors.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    specs: collections.abc.Mapping[str, tensors.Spec],
    *,
    max_shard_bytes: int = 5_000_000_000,
  ):
    """Makes the files, at their full size, with their headers.

    Args:
      folder: the target; it must not exist, or be empty.
      specs: the tensors, in the order in which they are shared out to shards.
      max_shard_bytes: of tensors in a file; a larger tensor has its own.

    Raises:
      ValueError: the target is not empty or cannot be written, the disk has no
        room, or a spec is not one of safetensors.
    """
    if max_shard_bytes < 1:
      raise ValueError(
        f"max_shard_bytes is {max_shard_bytes}; it must be 1 or more"
      )
    _check_specs(specs)
    self._target = pathlib.Path(folder).absolute()
    _check_target(self._target)
    self.partial = self._target.with_name(self._target.name + ".partial")
    self.num_bytes = sum(spec.num_bytes for spec in specs.values())
    self._specs = dict(specs)
    self._places: dict[str, _Place] = {}
    self._written: set[str] = set()
    shutil.rmtree(self.partial, ignore_errors=True)
    try:
      self.partial.mkdir(parents=True)
    except OSError as error:
      raise ValueError(
        f"{self.partial} cannot be made ({error.strerror}); choose another"
        " folder or change the permissions"
      ) from error
    try:
      self._check_room()
      self._lay_out(max_shard_bytes)
    except BaseException:
      shutil.rmtree(self.partial)
      raise

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, kind, value, traceback) -> None:
    if kind is None:
      try:
        self._commit()
        return
      except BaseException:
        shutil.rmtree(self.partial, ignore_errors=True)
        raise
    shutil.rmtree(self.partial, ignore_errors=True)

  def write(self, name: str, array: np.ndarray) -> None:
    """Writes a tensor to its place; in any order, each once."""
    assert name in self._specs, name
    assert name not in self._written, f"{name} is written twice"
    spec, place = self._specs[name], self._places[name]
    assert array.shape == spec.shape, (name, array.shape, spec.shape)
    assert array.dtype == spec.dtype, (name, array.dtype, spec.dtype)
    if array.size:
      flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
      _write_at(place.file, place.offset, memoryview(flat))
    self._written.add(name)

  def _check_room(self) -> None:
    free = shutil.disk_usage(self.partial).free
    if free < self.num_bytes:
      raise ValueError(
        f"{self._target} needs {self.num_bytes:,} bytes, but its disk has"
        f" {free:,} free; make room or choose another folder"
      )

  def _lay_out(self, max_shard_bytes: int) -> None:
    """Shares the tensors out, and writes the headers and the index."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in self._specs.items():
      if shards[-1] and filled + spec.num_bytes > max_shard_bytes:
        shards.append([])
        filled = 0
      shards[-1].append(name)
      filled += spec.num_bytes
    if len(shards) == 1:
      self._write_header(safetensors_folder.SINGLE, shards[0])
      return
    weight_map = {}
    for number, names in enumerate(shards, 1):
      file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
      self._write_header(file, names)
      weight_map |= dict.fromkeys(names, file)
    index = {
      "metadata": {"total_size": self.num_bytes},
      "weight_map": weight_map,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (self.partial / safetensors_folder.INDEX).write_text(text, encoding="utf-8")

  def _write_header(self, file_name: str, names: list[str]) -> None:
    """Makes a file of its full size, with its header."""
    dtypes = {name: _NAMES[self._specs[name].dtype] for name in names}
    ordered = sorted(
      names, key=lambda name: (_DTYPE_ORDER.index(dtypes[name]), name)
    )
    sizes = [self._specs[name].num_bytes for name in ordered]
    ends = list(itertools.accumulate(sizes))
    header: dict[str, object] = {"__metadata__": _METADATA}
    for name, size, end in zip(ordered, sizes, ends, strict=True):
      header[name] = {
        "dtype": dtypes[name],
        "shape": list(self._specs[name].shape),
        "data_offsets": [end - size, end],
      }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    file, begin = self.partial / file_name, 8 + len(raw)
    with file.open("wb") as stream:
      stream.write(struct.pack("<Q", len(raw)) + raw)
      stream.truncate(begin + sum(sizes))
    for name, size, end in zip(ordered, sizes, ends, strict=True):
      self._places[name] = _Place(file=file, offset=begin + end - size)

  def _commit(self) -> None:
    missing = [name for name in self._specs if name not in self._written]
    assert not missing, f"{len(missing)} tensors are not written: {missing[:3]}"
    for path in [*self.partial.rglob("*"), self.partial]:
      _flush(path)
    try:
      self.partial.rename(self._target)
    except OSError as error:
      raise ValueError(
        f"{self.partial} cannot be renamed to {self._target}"
        f" ({error.strerror}); something was put there meanwhile: remove it and"
        " start again"
      ) from error
    _flush(self._target.parent)


def _check_specs(specs: collections.abc.Mapping[str, tensors.Spec]) -> None:
  for name, spec in specs.items():
    if spec.dtype not in _NAMES:
      raise ValueError(
        f"{name} is {spec.dtype}; safetensors are written as one of"
        f" {', '.join(str(dtype) for dtype in _NAMES)}"
      )
    if not name or name == "__metadata__":
      raise ValueError(f"a tensor is called {name!r}; give it another name")


def _check_target(target: pathlib.Path) -> None:
  if target.is_dir() and any(target.iterdir()):
    raise ValueError(
      f"{target} is not empty; remove it or choose another folder"
    )
  if target.exists() and not target.is_dir():
    raise ValueError(f"{target} is a file; choose another folder")


def _write_at(file: pathlib.Path, offset: int, view: memoryview) -> None:
  descriptor = os.open(file, os.O_WRONLY)
  try:
    done = 0
    while done < len(view):
      done += os.pwrite(descriptor, view[done:], offset + done)
  except OSError as error:
    raise ValueError(
      f"{file} cannot be written ({error.strerror}); make room on the disk or"
      " choose another folder"
    ) from error
  finally:
    os.close(descriptor)


def _flush(path: pathlib.Path) -> None:
  """Waits until a file or a folder's list of files is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
