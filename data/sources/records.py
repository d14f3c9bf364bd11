"""Rows of JSONL, Parquet and Arrow files, read at any place.

What chat and preference data are: a row is a dict, and the files stay as they
are. A JSONL file gets an index of its lines in the cache folder, and a
compressed one a copy that is not; the other two formats carry an index.
"""

import bisect
import collections.abc
import hashlib
import itertools
import json
import mmap
import pathlib
import shutil
import typing

import numpy as np
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet

from data import documents
from data.sources import storage

# Formats whose rows can be read, in the words of `SourceConfig.format`.
FORMATS = ("jsonl", "parquet", "arrow")

_BLOCK = 1 << 26
_GROUPS_KEPT = 4
# The end of an Arrow stream that was written whole, and the start of a file.
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_FILE_START = b"ARROW1"


class RecordSource(typing.Protocol):
  """Rows of one source."""

  @property
  def digest(self) -> str:
    """Changes when the content of the files does."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, typing.Any]:
    """Row `index`, from 0; ValueError if it cannot be read."""
    ...

  def name_of(self, index: int) -> str:
    """File and place of a row, for messages."""
    ...


class Records:
  """The rows of files, one file after another.

  Files are opened on first use in each process, so that this can be sent to
  another one.
  """

  def __init__(
    self, files: collections.abc.Sequence[storage.File], *, format: str
  ):
    """Opens the files.

    Args:
      files: in their order.
      format: one of FORMATS.

    Raises:
      ValueError: a file is missing, damaged, or not what the format says, or
        there is no row at all.
    """
    kind = {"jsonl": _Lines, "parquet": _Parquet, "arrow": _Arrow}[format]
    self._files = [
      kind(file.name, path)
      for file, path in zip(files, storage.fetch(files), strict=True)
    ]
    lengths = [len(file) for file in self._files]
    self._starts = [0, *itertools.accumulate(lengths)]
    if not len(self):
      names = ", ".join(file.name for file in files[:3])
      raise ValueError(f"{names} has no rows; give files with some")
    content = [format]
    content += [file.digest for file in self._files]
    self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> dict[str, typing.Any]:
    file, row = self._find(index)
    return file[row]

  def name_of(self, index: int) -> str:
    """File and line, or row, of a row."""
    file, row = self._find(index)
    return file.name_of(row)

  def _find(self, index: int) -> "tuple[_Lines | _Parquet | _Arrow, int]":
    if not 0 <= index < len(self):
      raise IndexError(f"row {index} is outside [0, {len(self)})")
    number = bisect.bisect_right(self._starts, index) - 1
    return self._files[number], int(index) - self._starts[number]


class _File:
  """A file of rows.

  Attributes:
    name: of the file, for messages.
    digest: sha256 of its content.
  """

  def __init__(self, name: str, path: pathlib.Path):
    self.name = name
    self.digest = storage.fingerprint(path)
    self._path = path
    self._state = self._stat()

  def _require_same(self) -> pathlib.Path:
    """The path of the file, which is still as it was when it was opened."""
    if self._stat() != self._state:
      raise ValueError(
        f"{self.name} was changed or removed while it was in use; start the run"
        " again"
      )
    return self._path

  def _stat(self) -> tuple[int, int] | None:
    try:
      stat = self._path.stat()
    except OSError:
      return None
    return stat.st_size, stat.st_mtime_ns


class _Lines(_File):
  """The rows of a JSONL file; empty lines are none."""

  def __init__(self, name: str, path: pathlib.Path):
    super().__init__(name, path)
    if path.suffix in storage.COMPRESSED:
      self._path = _unpack(path, self.digest)
      self._state = self._stat()
    self._starts = _line_starts(self._path, name)
    self._content = None

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, row: int) -> dict[str, typing.Any]:
    content = self._map()
    start = int(self._starts[row])
    end = content.find(b"\n", start)
    line = content[start : end if end >= 0 else len(content)]
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f"{self.name_of(row)}: not valid JSON ({error}); correct the line"
      ) from error
    if b"\\u" in line:
      _require_utf8(value, self.name_of, row)
    if not isinstance(value, dict):
      raise ValueError(
        f"{self.name_of(row)}: {repr(value)[:60]} is not an object; correct the"
        " line"
      )
    return value

  def name_of(self, row: int) -> str:
    """File and line; only errors pay for counting the lines."""
    return f"{self.name}:{_line(self._map(), int(self._starts[row]))}"

  def _map(self) -> mmap.mmap:
    if self._content is None:
      self._content = _map(self._require_same())
    return self._content

  def __getstate__(self):
    return {**self.__dict__, "_content": None}


class _Parquet(_File):
  """The rows of a Parquet file, decoded a row group at a time."""

  def __init__(self, name: str, path: pathlib.Path):
    super().__init__(name, path)
    with self._open() as reader:
      groups = [
        reader.metadata.row_group(group).num_rows
        for group in range(reader.num_row_groups)
      ]
    self._starts = [0, *itertools.accumulate(groups)]
    self._tables: dict[int, pa.Table] = {}

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, row: int) -> dict[str, typing.Any]:
    group = bisect.bisect_right(self._starts, row) - 1
    table = self._tables.get(group)
    if table is None:
      try:
        with self._open() as reader:
          table = reader.read_row_group(group)
      except (pa.ArrowException, OSError) as error:
        raise ValueError(
          f"{self.name}: row group {group} cannot be read ({error}); replace"
          " the file"
        ) from error
      # Several threads may read: replace the dict, never change it.
      newest = list(self._tables.items())[1 - _GROUPS_KEPT :]
      self._tables = dict([*newest, (group, table)])
    return _row(table, row - self._starts[group], self.name_of(row))

  def name_of(self, row: int) -> str:
    return f"{self.name} row {row}"

  def _open(self) -> parquet.ParquetFile:
    try:
      return parquet.ParquetFile(self._require_same())
    except (pa.ArrowException, OSError) as error:
      raise ValueError(
        f"{self.name}: not a whole Parquet file ({error}); replace it"
      ) from error

  def __getstate__(self):
    return {**self.__dict__, "_tables": {}}


class _Arrow(_File):
  """The rows of an Arrow stream or file, mapped into memory."""

  def __init__(self, name: str, path: pathlib.Path):
    super().__init__(name, path)
    self._table = None
    self._num_rows = self._open().num_rows

  def __len__(self) -> int:
    return self._num_rows

  def __getitem__(self, row: int) -> dict[str, typing.Any]:
    return _row(self._open(), row, self.name_of(row))

  def name_of(self, row: int) -> str:
    return f"{self.name} row {row}"

  def _open(self) -> pa.Table:
    if self._table is None:
      self._table = read_arrow(self._require_same(), self.name)
    return self._table

  def __getstate__(self):
    return {**self.__dict__, "_table": None}


def read_arrow(path: pathlib.Path, name: str) -> pa.Table:
  """An Arrow stream or file as a table in mapped memory.

  Args:
    path: of the file.
    name: for messages.

  Raises:
    ValueError: it is neither, or was cut.
  """
  try:
    content = pa.memory_map(str(path))
    start = content.read(len(_FILE_START))
    content.seek(0)
    if start == _FILE_START:
      return ipc.open_file(content).read_all()
    # A stream that was cut between two batches would read as a shorter one.
    if content.size() >= len(_STREAM_END):
      end = content.size() - len(_STREAM_END)
      if content.read_at(len(_STREAM_END), end) != _STREAM_END:
        raise pa.ArrowInvalid("its end is missing")
    return ipc.open_stream(content).read_all()
  except (pa.ArrowException, OSError) as error:
    raise ValueError(
      f"{name}: not a whole Arrow stream or file ({error}); replace it"
    ) from error


def _row(table: pa.Table, row: int, name: str) -> dict[str, typing.Any]:
  try:
    (value,) = table.slice(row, 1).to_pylist()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{name}: byte {error.start} of a text is not UTF-8; convert it"
    ) from error
  return value


def _unpack(path: pathlib.Path, digest: str) -> pathlib.Path:
  """The file, decompressed; kept in the cache folder.

  Raises:
    ValueError: it is not compressed as its name says.
  """
  unpacked = storage.cache_dir() / "unpacked" / f"{digest}.jsonl"
  if not unpacked.is_file():
    with (
      storage.new_file(unpacked) as partial,
      documents.open_binary(str(path)) as source,
      partial.open("wb") as stream,
    ):
      shutil.copyfileobj(source, stream, _BLOCK)
  return unpacked


def _require_utf8(
  value: typing.Any, name_of: collections.abc.Callable[[int], str], row: int
) -> None:
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{name_of(row)}: half of a surrogate pair, which UTF-8 cannot hold;"
      " remove it"
    ) from error


def _line_starts(path: pathlib.Path, name: str) -> np.ndarray:
  """Where each line that is not empty begins; kept in the cache folder."""
  file = storage.cache_dir() / "lines" / f"{storage.fingerprint(path)}.npy"
  try:
    return np.load(file, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError):
    starts = _scan(path, name)
  with storage.new_file(file) as partial:
    np.save(partial, starts, allow_pickle=False)
  return starts


def _scan(path: pathlib.Path, name: str) -> np.ndarray:
  """The same, from the file; checks that it is UTF-8.

  Raises:
    ValueError: it is not, naming the line.
  """
  if not path.stat().st_size:
    return np.empty(0, np.int64)
  content = _map(path)
  starts = []
  position = 0
  while position < len(content):
    # Whole lines, so that no character is torn.
    end = content.rfind(b"\n", position, position + _BLOCK) + 1
    if not end:
      end = content.find(b"\n", position) + 1 or len(content)
    if len(content) - position <= _BLOCK:
      end = len(content)
    block = content[position:end]
    try:
      block.decode()
    except UnicodeDecodeError as error:
      at = position + error.start
      raise ValueError(
        f"{name}:{_line(content, at)}: byte {at} is not UTF-8; convert the file"
      ) from error
    values = np.frombuffer(block, np.uint8)
    begins = np.flatnonzero(values[:-1] == ord("\n")) + 1
    begins = np.concatenate([[0], begins])
    starts.append(position + begins[~_empty(block, values, begins)])
    position = end
  content.close()
  return np.concatenate(starts).astype(np.int64)


def _empty(block: bytes, values: np.ndarray, begins: np.ndarray) -> np.ndarray:
  """Which of the lines that begin there have nothing but white space."""
  empty = values[begins] == ord("\n")
  for line in np.flatnonzero(~empty & (values[begins] <= ord(" "))).tolist():
    stop = begins[line + 1] if line + 1 < len(begins) else len(block)
    empty[line] = not block[begins[line] : stop].strip()
  return empty


def _map(path: pathlib.Path) -> mmap.mmap:
  with path.open("rb") as stream:
    return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _line(content: mmap.mmap, position: int) -> int:
  """Number of the line, from 1, that holds a byte."""
  return content[:position].count(b"\n") + 1
