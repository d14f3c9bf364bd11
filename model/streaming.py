"""Checkpoints written and read one slice at a time.

For programs that convert models larger than memory: `Writer` makes a checkpoint
that `checkpoint.load` reads like any other, from slices in any order; `Reader`
gives slices of one that a trainer or a Writer wrote. A slice is an array's
element on its leading, stacked dims: `q_DNH` of one layer, `gate_EDF` of one
expert of one layer.

Dims: L layers, E experts.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from model import checkpoint
from model import sharding

# Bytes on their way to the disk at a time; a larger slice goes alone.
_MAX_PENDING_BYTES = 256 * 2**20
# Slices in memory at a time.
_MAX_WORKERS = 4
# Elements that are digested in one go, by one compiled function for all; in
# numpy where that is sooner done.
DIGEST_CHUNK = 1 << 20
DIGEST_SMALL = 1 << 16


class Writer:
  """Writes `<folder>/<step>/` slice by slice; a context manager.

  The checkpoint is built beside its place and renamed into it by `finish`; on
  an exception nothing is left.

  Attributes:
    num_elements: Parameters in all.
  """

  def __init__(
    self, folder: pathlib.Path, shapes: dict[str, Any], *, step: int = 0
  ):
    """Opens an array for each leaf of `shapes`.

    Args:
      folder: Gets a step directory.
      shapes: The parameter tree as ShapeDtypeStructs.
      step: What the checkpoint is called.

    Raises:
      ValueError: There is a checkpoint of that step already, the folder cannot
        be written, or its disk has no room.
    """
    self._final = (folder / str(step)).absolute()
    if self._final.exists():
      raise ValueError(
        f"{self._final} exists; name another --output or remove it."
      )
    self._work = self._final.with_name(f"{step}.writing")
    shutil.rmtree(self._work, ignore_errors=True)
    self._shapes = sharding.named_leaves(shapes)
    self._arrays: dict[str, Any] = {}
    self._digests = {name: np.zeros(2, np.uint32) for name in self._shapes}
    self._missing = {
      name: math.prod(leaf.shape) for name, leaf in self._shapes.items()
    }
    self.num_elements = sum(self._missing.values())
    self._pending: list[tuple[int, Any]] = []
    self._lock = threading.Lock()
    try:
      (self._work / "params").mkdir(parents=True)
    except OSError as error:
      raise ValueError(
        f"{self._work} cannot be made ({error.strerror}); choose another "
        "folder or change the permissions."
      ) from error
    needed = sum(
      math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
      for leaf in self._shapes.values()
    )
    free = shutil.disk_usage(self._work).free
    if free < needed:
      shutil.rmtree(self._work)
      raise ValueError(
        f"{self._final} needs {needed:,} bytes, but its disk has {free:,} "
        "free; make room or choose another folder."
      )

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *exception) -> None:
    if self._work.exists():
      for _, future in self._pending:
        # Whatever became of it; it must not write after the removal.
        future.exception()
      shutil.rmtree(self._work)

  def dtype(self, name: str) -> np.dtype:
    """What slices of a parameter must be given as."""
    return np.dtype(self._shapes[name].dtype)

  def write(self, name: str, index: tuple[int, ...], value: np.ndarray) -> None:
    """Writes one slice; from any thread.

    Args:
      name: Dotted name of the parameter.
      index: Of the slice on the array's leading dims; () is the whole array.
      value: The slice, of the parameter's dtype.
    """
    leaf = self._shapes[name]
    assert value.shape == leaf.shape[len(index) :], (name, index, value.shape)
    assert value.dtype == leaf.dtype, (name, value.dtype, leaf.dtype)
    value_digest = digest(value, index, leaf.shape)
    with self._lock:
      if name not in self._arrays:
        self._arrays[name] = self._create(name, leaf, len(index))
      self._digests[name] += value_digest
      self._missing[name] -= value.size
      self._wait(_MAX_PENDING_BYTES - value.nbytes)
      future = self._arrays[name][index].write(value)
      self._pending.append((value.nbytes, future))

  def finish(
    self, values: dict[str, Any], *, tokenizer: dict[str, bytes]
  ) -> pathlib.Path:
    """Completes the checkpoint; the rest as in `checkpoint.pack_meta`.

    Returns:
      The step directory.
    """
    missing = [name for name, size in self._missing.items() if size]
    assert not missing, missing
    self._wait(0)
    (self._work / "params" / "_METADATA").write_text(
      json.dumps(self._orbax_metadata())
    )
    digests = {
      f"params.{name}": checkpoint.to_hex(sums)
      for name, sums in self._digests.items()
    }
    meta = checkpoint.pack_files(values, digests, tokenizer=tokenizer)
    checkpoint.write_files(self._work / "meta", meta)
    for path in [*self._work.rglob("*"), self._work]:
      _flush(path)
    os.rename(self._work, self._final)
    _flush(self._final.parent)
    return self._final

  def _create(self, name, leaf, num_leading: int):
    """A zarr array, a chunk for each slice: a layer is a file of its own."""
    chunks = (1,) * num_leading + leaf.shape[num_leading:]
    return ts.open(
      {
        "driver": "zarr",
        "kvstore": {
          "driver": "file",
          "path": str(self._work / "params" / name) + "/",
        },
        "metadata": {
          "shape": list(leaf.shape),
          "chunks": list(chunks),
          "dtype": _zarr_dtype(leaf.dtype),
          "compressor": None,
          "dimension_separator": ".",
        },
        # Or a chunk of zeros would not be stored.
        "store_data_equal_to_fill_value": True,
        "create": True,
      }
    ).result()

  def _wait(self, pending_bytes: int) -> None:
    """Until at most so many bytes are on their way."""
    while self._pending and sum(n for n, _ in self._pending) > pending_bytes:
      self._pending.pop(0)[1].result()

  def _orbax_metadata(self) -> dict[str, Any]:
    """What Orbax reads to know the tree and how its arrays are stored."""
    tree = {}
    for name, leaf in self._shapes.items():
      keys = tuple(name.split("."))
      tree[str(keys)] = {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        "value_metadata": {
          "value_type": "jax.Array",
          "skip_deserialize": False,
          "write_shape": list(leaf.shape),
        },
      }
    return {
      "tree_metadata": tree,
      "use_ocdbt": False,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }


class Reader:
  """Slices of a checkpoint's parameters, as numpy arrays."""

  def __init__(self, step_folder: pathlib.Path):
    """Opens `<step_folder>/params`, and checks nothing but its metadata."""
    params = step_folder.absolute() / "params"
    try:
      metadata = json.loads((params / "_METADATA").read_bytes())
      self.names = tuple(
        ".".join(entry["key"] for entry in value["key_metadata"])
        for value in metadata["tree_metadata"].values()
      )
      self._use_ocdbt = metadata["use_ocdbt"]
    except (OSError, ValueError, KeyError) as error:
      raise checkpoint.CorruptCheckpointError(
        f"{params} cannot be read: {error}."
      ) from error
    self._params = params

  @contextlib.contextmanager
  def open(self, name: str) -> Iterator["Slices"]:
    """One parameter; what lies in one piece on disk is read once meanwhile.

    Raises:
      CorruptCheckpointError: It cannot be opened.
    """
    if self._use_ocdbt:
      kvstore = {
        "driver": "ocdbt",
        "base": f"file://{self._params}/",
        "path": f"{name}/",
      }
    else:
      kvstore = {"driver": "file", "path": str(self._params / name) + "/"}

    def open_array(cached_bytes: int):
      pool = {"cache_pool": {"total_bytes_limit": cached_bytes}}
      return ts.open(
        {"driver": "zarr", "kvstore": kvstore},
        context=ts.Context(pool),
        open=True,
        read=True,
      ).result()

    try:
      array = open_array(0)
      chunk = array.chunk_layout.read_chunk.shape
      if chunk and (chunk[0] or 0) > 1:
        # A chunk holds several slices.
        array = open_array(2**40)
    except ValueError as error:
      raise checkpoint.CorruptCheckpointError(
        f"{self._params}: {name} cannot be opened: {error}."
      ) from error
    yield Slices(array, name)


class Slices:
  """One parameter on disk.

  Attributes:
    shape: Of the whole array.
  """

  def __init__(self, array: Any, name: str):
    self.shape = tuple(array.shape)
    self._array = array
    self._name = name

  def read(self, index: tuple[int, ...]) -> np.ndarray:
    """A slice; () is the whole array.

    Raises:
      CorruptCheckpointError: It cannot be read.
    """
    try:
      return self._array[index].read().result()
    except ValueError as error:
      raise checkpoint.CorruptCheckpointError(
        f"{self._name} cannot be read: {error}."
      ) from error


def for_each(function: Callable[[Any], None], items: Iterable[Any]) -> None:
  """Calls `function` with each item, on all cores, a few at a time.

  The first exception ends it.
  """
  workers = min(_MAX_WORKERS, os.cpu_count() or 1)
  queue = iter(items)
  with futures.ThreadPoolExecutor(workers) as pool:
    running = collections.deque(
      pool.submit(function, item) for item in itertools.islice(queue, workers)
    )
    try:
      while running:
        running.popleft().result()
        running.extend(
          pool.submit(function, item) for item in itertools.islice(queue, 1)
        )
    except BaseException:
      for future in running:
        future.cancel()
      raise


def digest(
  value: np.ndarray, index: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
  """What a slice adds to its array's digest (checkpoint.digest): two uint32."""
  first = sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))
  unsigned = np.dtype(f"u{value.dtype.itemsize}")
  bits = np.ascontiguousarray(value).reshape(-1).view(unsigned)
  sums = np.zeros(2, np.uint32)
  for start in range(0, bits.size, DIGEST_CHUNK):
    chunk = bits[start : start + DIGEST_CHUNK]
    position = np.uint32((first + start) % 2**32)
    if chunk.size < DIGEST_SMALL:
      sums += _digest_small(chunk, position)
    else:
      size = np.uint32(chunk.size)
      if size < DIGEST_CHUNK:
        chunk = np.pad(chunk, (0, DIGEST_CHUNK - chunk.size))
      sums += np.asarray(_digest_chunk(chunk, position, size))
  return sums


def _digest_small(bits: np.ndarray, first: np.uint32) -> np.ndarray:
  """`checkpoint.digest` in numpy: nothing to compile."""
  index = np.arange(bits.size, dtype=np.uint32) + first
  mixed = checkpoint.mixed(bits.astype(np.uint32), index)
  return np.array([x.sum(dtype=np.uint32) for x in mixed])


@jax.jit
def _digest_chunk(bits, first, size):
  """`checkpoint.digest` of the first `size` elements; one shape for all."""
  index = jax.lax.iota(jnp.uint32, bits.size)
  mixed = checkpoint.mixed(bits.astype(jnp.uint32), index + first)
  return jnp.stack(
    [jnp.sum(jnp.where(index < size, x, jnp.uint32(0))) for x in mixed]
  )


def _flush(path: pathlib.Path) -> None:
  """Waits until a file or a folder's list of files is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def dtypes(shapes: dict[str, Any]) -> dict[str, np.dtype]:
  """Dotted name -> dtype of each parameter of a tree."""
  leaves = sharding.named_leaves(shapes)
  return {name: np.dtype(x.dtype) for name, x in leaves.items()}


def _zarr_dtype(dtype: Any) -> str:
  name = jnp.dtype(dtype).name
  return "bfloat16" if name == "bfloat16" else np.dtype(name).str
