"""Documents in files: plain text, JSONL, Parquet and Arrow.

A reader gives the documents that begin in a byte range of a file, so that work
is split evenly however the text is spread over files. Consecutive ranges give
every document exactly once. A row of Parquet or Arrow has no byte position of
its own: row r of n counts as beginning at byte size * r // n. Text and lines
may be compressed (.gz, .bz2, .zst): such a file can only be read from its
start, so all its documents count as beginning at byte 0.

A file is a path or any URL that fsspec opens.
"""

import collections.abc
import contextlib
import dataclasses
import enum
import glob
import io
import json
import os
import pathlib
import typing

import fsspec
from fsspec import core
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet


class Format(enum.StrEnum):
  """How a file holds documents."""

  AUTO = "auto"  # by the file's suffix
  TEXT = "text"  # the file is one document
  LINES = "lines"  # every line is one document
  JSONL = "jsonl"  # every line is an object with a text field
  PARQUET = "parquet"  # every row has a text column
  ARROW = "arrow"  # the same; a stream, as Hugging Face datasets has, or a file


_FORMATS = {
  ".txt": Format.TEXT,
  ".md": Format.TEXT,
  ".py": Format.TEXT,
  ".jsonl": Format.JSONL,
  ".parquet": Format.PARQUET,
  ".arrow": Format.ARROW,
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_ARROW_FILE_START = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """The documents that begin in bytes [start, stop) of a file."""

  path: str
  format: Format
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A text and where it is from, as "file:line", for messages."""

  origin: str
  text: str


def find(
  paths: collections.abc.Iterable[str | pathlib.Path], *, name: str = "input"
) -> list[str]:
  """The files that the paths name, in the order of their names for each.

  Args:
    paths: of files, folders (with all below them) and globs; URLs too.
    name: of the field with the paths, for messages.

  Raises:
    ValueError: a path does not exist or holds no file, or all files are empty.
  """
  files: list[str] = []
  for path in map(str, paths):
    found = _find_remote(path) if is_remote(path) else _find_local(path)
    if not found:
      reason = "has no files" if pathlib.Path(path).is_dir() else "is no file"
      if not is_remote(path) and not pathlib.Path(path).exists():
        reason = "does not exist"
      raise ValueError(f"{name} {path!r} {reason}; give a file or folder")
    files += found
  if not any(map(size_of, files)):
    raise ValueError(
      f"{name} {', '.join(files[:9]) or '(nothing)'} is empty; give files with"
      " text"
    )
  return files


def is_remote(path: str) -> bool:
  """Whether a path is a URL, which fsspec has to open."""
  return "://" in path


def size_of(path: str) -> int:
  """Size of a file in bytes."""
  if is_remote(path):
    filesystem, inner = _remote(path)
    size = filesystem.size(inner)
    if size is None:
      raise ValueError(
        f"{path}: its server does not tell its size; copy the file to this"
        " machine"
      )
    return int(size)
  return pathlib.Path(path).stat().st_size


def version_of(path: str) -> list[typing.Any]:
  """What changes when a file is written anew: its size, and time or key."""
  if is_remote(path):
    filesystem, inner = _remote(path)
    return [size_of(path), str(filesystem.ukey(inner))]
  stat = pathlib.Path(path).stat()
  return [stat.st_size, stat.st_mtime_ns]


def split(files: list[str], *, format: Format, parts: int) -> list[list[Span]]:
  """Cuts the files, laid end to end, into `parts` equal runs of bytes."""
  formats = [_format_of(file, format) for file in files]
  sizes = [size_of(file) for file in files]
  total = sum(sizes)
  borders = [total * part // parts for part in range(1, parts + 1)]
  runs: list[list[Span]] = [[] for _ in borders]
  begin = part = 0
  for file, kind, size in zip(files, formats, sizes, strict=True):
    start = 0
    while start < size:
      while begin + start >= borders[part]:
        part += 1
      stop = min(borders[part] - begin, size)
      runs[part].append(Span(path=file, format=kind, start=start, stop=stop))
      start = stop
    begin += size
  return runs


def check(files: list[str], *, format: Format, field: str) -> None:
  """Reads the first document of one file of each format.

  So that a field that no file has is told at once.

  Raises:
    ValueError: it cannot be read.
  """
  seen = {Format.TEXT}  # The file is the document, and has no field.
  for file in files:
    kind = _format_of(file, format)
    if kind not in seen and (size := size_of(file)):
      seen.add(kind)
      span = Span(path=file, format=kind, start=0, stop=size)
      next(read(span, field=field), None)


def read(span: Span, *, field: str) -> collections.abc.Iterator[Document]:
  """The documents of a span.

  Args:
    span: part of a file.
    field: JSONL field, or column, with the text.

  Raises:
    ValueError: the file is not what its format says, naming the line.
  """
  match span.format:
    case Format.TEXT:
      # It begins at byte 0, so in the first span of the file.
      if span.start == 0:
        with open_binary(span.path) as stream:
          raw = stream.read()
        yield Document(origin=span.path, text=_utf8(raw, span.path, 0))
    case Format.PARQUET:
      yield from _read_parquet(span, field)
    case Format.ARROW:
      yield from _read_arrow(span, field)
    case Format.LINES | Format.JSONL:
      yield from _read_lines(span, field)
    case _:
      raise ValueError(f"format {span.format!r} cannot be read; split() first")


@contextlib.contextmanager
def open_binary(path: str) -> collections.abc.Iterator[typing.IO[bytes]]:
  """Opens a file, decompressed by its suffix.

  Raises:
    ValueError: it cannot be read, or is not compressed as its name says.
  """
  with contextlib.ExitStack() as stack:
    try:
      stream: typing.IO[bytes]
      if is_remote(path):
        remote: typing.Any = fsspec.open(path, "rb")
        stream = stack.enter_context(remote)
      else:
        stream = stack.enter_context(open(path, "rb"))
      compression = _compression(path)
      if compression:
        source = pa.PythonFile(stream, mode="r")
        raw: typing.Any = pa.CompressedInputStream(source, compression)
        stream = io.BufferedReader(stack.enter_context(raw), 1 << 20)
      yield stream
    except OSError as error:
      raise ValueError(
        f"{path} cannot be read ({error}); replace it or correct its name"
      ) from error


def _find_local(path: str) -> list[str]:
  if not os.path.exists(path) and glob.has_magic(path):
    found = [pathlib.Path(file) for file in glob.glob(path, recursive=True)]
  elif os.path.isdir(path):
    found = list(pathlib.Path(path).rglob("*"))
  else:
    return [path] if os.path.isfile(path) else []
  return [str(file) for file in sorted(found) if _is_input(file)]


def _find_remote(path: str) -> list[str]:
  filesystem, inner = _remote(path)
  try:
    if filesystem.isfile(inner):
      found = [inner]
    elif glob.has_magic(inner):
      found = [f for f in filesystem.glob(inner) if filesystem.isfile(f)]
    else:
      found = filesystem.find(inner)
  except FileNotFoundError:
    found = []
  return [
    filesystem.unstrip_protocol(name)
    for name in sorted(map(str, found))
    if not name.rpartition("/")[2].startswith(".")
  ]


def _remote(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
  try:
    return core.url_to_fs(path)
  except (ValueError, ImportError) as error:
    raise ValueError(
      f"{path!r} cannot be opened ({error}); correct the URL, or install the"
      " package that fsspec needs for it"
    ) from error


def _is_input(path: pathlib.Path) -> bool:
  return path.is_file() and not path.name.startswith(".")


def _compression(path: str) -> str:
  """The codec that the name of a file tells; empty if none."""
  return _COMPRESSIONS.get(pathlib.Path(path).suffix, "")


def _format_of(file: str, format: Format) -> Format:
  if format is not Format.AUTO:
    return format
  bare = pathlib.Path(file)
  suffix = (bare.with_suffix("") if _compression(file) else bare).suffix
  if suffix not in _FORMATS:
    raise ValueError(
      f"input {file!r}: the suffix {suffix!r} does not tell the format; set"
      f" --format to one of {', '.join(f.value for f in Format)}"
    )
  return _FORMATS[suffix]


def _read_lines(span: Span, field: str) -> collections.abc.Iterator[Document]:
  whole = bool(_compression(span.path))
  if whole and span.start:
    return
  with open_binary(span.path) as stream:
    position = span.start
    if span.start:
      # A line belongs to the span with its first byte: finish the line that
      # holds the byte before ours.
      stream.seek(span.start - 1)
      position += len(stream.readline()) - 1
    after = position
    while (whole or after < span.stop) and (line := stream.readline()):
      position, after = after, after + len(line)
      if not line.strip():
        continue
      text = _utf8(line, span.path, position)
      if span.format is Format.JSONL:
        text = _json_text(text, field, span.path, position)
      else:
        text = text.rstrip("\r\n")
      yield Document(origin=f"{span.path} at byte {position}", text=text)


def _json_text(line: str, field: str, path: str, position: int) -> str:
  try:
    value = json.loads(line)
  except ValueError as error:
    raise ValueError(
      f"{_line(path, position)}: not valid JSON ({error}); correct the line"
    ) from error
  if not isinstance(value, dict) or field not in value:
    names = ", ".join(value) if isinstance(value, dict) else repr(value)[:60]
    raise ValueError(
      f"{_line(path, position)}: no field {field!r} in {names}; set --field"
    )
  text = value[field]
  if not isinstance(text, str):
    raise ValueError(
      f"{_line(path, position)}: field {field!r} is"
      f" {type(text).__name__}, not a string; set --field or correct the line"
    )
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{_line(path, position)}: field {field!r} has half of a surrogate pair"
      f" at character {error.start}, which UTF-8 cannot hold; remove it"
    ) from error
  return text


def _utf8(raw: bytes, path: str, position: int) -> str:
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{_line(path, position + error.start)}: byte {position + error.start} is"
      " not UTF-8; convert the file"
    ) from error


def _line(path: str, position: int) -> str:
  """Place of a byte as file:line; only errors pay for counting the lines."""
  number = 1
  with open_binary(path) as stream:
    while position and (block := stream.read(min(position, 1 << 24))):
      number += block.count(b"\n")
      position -= len(block)
  return f"{path}:{number}"


def _read_parquet(span: Span, field: str) -> collections.abc.Iterator[Document]:
  size = size_of(span.path)
  with _open_columns(span.path, "Parquet") as stream:
    with _failures(span.path, "Parquet"):
      file = parquet.ParquetFile(stream)
    _check_column(file.schema_arrow, field, span.path)
    row, num_rows = 0, file.metadata.num_rows
    for group in range(file.num_row_groups):
      end = row + file.metadata.row_group(group).num_rows
      if row == end or _begins(end - 1, num_rows, size) < span.start:
        row = end
        continue
      if _begins(row, num_rows, size) >= span.stop:
        return
      with _failures(span.path, "Parquet"):
        for batch in file.iter_batches(
          1024, row_groups=[group], columns=[field]
        ):
          for text in batch.column(0):
            if span.start <= _begins(row, num_rows, size) < span.stop:
              origin = f"{span.path} row {row}"
              yield Document(origin=origin, text=_string(text, field, origin))
            row += 1


def _read_arrow(span: Span, field: str) -> collections.abc.Iterator[Document]:
  size = size_of(span.path)
  with _open_columns(span.path, "Arrow") as stream:
    with _failures(span.path, "Arrow"):
      is_file = stream.read(len(_ARROW_FILE_START)) == _ARROW_FILE_START
      if not is_file:
        # Cut between two batches, a stream would read as a shorter one.
        stream.seek(max(size - len(_ARROW_STREAM_END), 0))
        if stream.read() != _ARROW_STREAM_END:
          raise pa.ArrowInvalid("its end is missing")
      stream.seek(0)
      # Mapped, so no column is read before it is looked at.
      reader = ipc.open_file(stream) if is_file else ipc.open_stream(stream)
      table = reader.read_all()
    _check_column(table.schema, field, span.path)
    first, last = (
      -(-position * table.num_rows // size)
      for position in (span.start, span.stop)
    )
    rows = table.column(field).slice(first, last - first)
    for row, text in enumerate(rows, start=first):
      origin = f"{span.path} row {row}"
      yield Document(origin=origin, text=_string(text, field, origin))


@contextlib.contextmanager
def _open_columns(
  path: str, kind: str
) -> collections.abc.Iterator[pa.NativeFile]:
  """Opens a file for pyarrow: mapped if it is on this machine."""
  if is_remote(path):
    with fsspec.open(path, "rb") as stream:
      yield pa.PythonFile(stream, mode="r")
  else:
    with _failures(path, kind):
      stream = pa.memory_map(path)
    with stream:
      yield stream


@contextlib.contextmanager
def _failures(path: str, kind: str) -> collections.abc.Iterator[None]:
  try:
    yield
  except (pa.ArrowException, OSError) as error:
    article = "an" if kind == "Arrow" else "a"
    raise ValueError(
      f"{path}: not {article} {kind} file ({error}); set --format or replace it"
    ) from error


def _check_column(schema: pa.Schema, field: str, path: str) -> None:
  if field not in schema.names:
    raise ValueError(
      f"{path}: no column {field!r} in {', '.join(schema.names)}; set --field"
    )
  kind = schema.field(field).type
  if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    raise ValueError(
      f"{path}: column {field!r} is {kind}, not string; set --field"
    )


def _string(value: pa.Scalar, field: str, origin: str) -> str:
  if not value.is_valid:
    raise ValueError(f"{origin}: column {field!r} is null; remove the row")
  try:
    return value.as_py()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{origin}: column {field!r} is not UTF-8 at byte {error.start}; convert"
      " the text"
    ) from error


def _begins(row: int, num_rows: int, size: int) -> int:
  return size * row // num_rows
