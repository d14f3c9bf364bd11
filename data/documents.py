"""Documents in files: plain text, JSONL and Parquet.

A reader gives the documents that begin in a byte range of a file, so that work
is split evenly however the text is spread over files. Consecutive ranges give
every document exactly once. A Parquet row has no byte position of its own: row
r of n counts as beginning at byte size * r // n.
"""

import collections.abc
import dataclasses
import enum
import json
import pathlib

import pyarrow as pa
from pyarrow import parquet


class Format(enum.StrEnum):
  """How a file holds documents."""

  AUTO = "auto"  # by the file's suffix
  TEXT = "text"  # the file is one document
  LINES = "lines"  # every line is one document
  JSONL = "jsonl"  # every line is an object with a text field
  PARQUET = "parquet"  # every row has a text column


_FORMATS = {
  ".txt": Format.TEXT,
  ".md": Format.TEXT,
  ".py": Format.TEXT,
  ".jsonl": Format.JSONL,
  ".parquet": Format.PARQUET,
}


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


def find(paths: collections.abc.Iterable[str | pathlib.Path]) -> list[str]:
  """The files at the paths, and in the directories among them, in name order.

  Raises:
    ValueError: a path does not exist or holds no file, or all files are empty.
  """
  files: list[pathlib.Path] = []
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      found = sorted(p for p in path.rglob("*") if _is_input(p))
    else:
      found = [path] if path.is_file() else []
    if not found:
      reason = "has no files" if path.is_dir() else "does not exist"
      raise ValueError(f"input {str(path)!r} {reason}; give a file or folder")
    files += found
  if not any(file.stat().st_size for file in files):
    raise ValueError(
      f"input {', '.join(map(str, files)) or '(nothing)'} is empty; give files"
      " with text"
    )
  return [str(file) for file in files]


def split(files: list[str], *, format: Format, parts: int) -> list[list[Span]]:
  """Cuts the files, laid end to end, into `parts` equal runs of bytes."""
  formats = [_format_of(file, format) for file in files]
  sizes = [pathlib.Path(file).stat().st_size for file in files]
  total = sum(sizes)
  runs: list[list[Span]] = []
  for part in range(parts):
    first, last = total * part // parts, total * (part + 1) // parts
    run, begin = [], 0
    for file, kind, size in zip(files, formats, sizes, strict=True):
      start, stop = max(first - begin, 0), min(last - begin, size)
      if start < stop:
        run.append(Span(path=file, format=kind, start=start, stop=stop))
      begin += size
    runs.append(run)
  return runs


def read(span: Span, *, field: str) -> collections.abc.Iterator[Document]:
  """The documents of a span.

  Args:
    span: part of a file.
    field: JSONL field or Parquet column with the text.

  Raises:
    ValueError: the file is not what its format says, naming the line.
  """
  match span.format:
    case Format.TEXT:
      # It begins at byte 0, so in the first span of the file.
      if span.start == 0:
        raw = pathlib.Path(span.path).read_bytes()
        yield Document(origin=span.path, text=_utf8(raw, span.path, 0))
    case Format.PARQUET:
      yield from _read_parquet(span, field)
    case Format.LINES | Format.JSONL:
      yield from _read_lines(span, field)
    case _:
      raise ValueError(f"format {span.format!r} cannot be read; split() first")


def _is_input(path: pathlib.Path) -> bool:
  return path.is_file() and not path.name.startswith(".")


def _format_of(file: str, format: Format) -> Format:
  if format is not Format.AUTO:
    return format
  suffix = pathlib.Path(file).suffix
  if suffix not in _FORMATS:
    raise ValueError(
      f"input {file!r}: the suffix {suffix!r} does not tell the format; set"
      f" --format to one of {', '.join(f.value for f in Format)}"
    )
  return _FORMATS[suffix]


def _read_lines(span: Span, field: str) -> collections.abc.Iterator[Document]:
  with open(span.path, "rb") as stream:
    if span.start:
      # A line belongs to the span with its first byte: finish the line that
      # holds the byte before ours.
      stream.seek(span.start - 1)
      stream.readline()
    while (position := stream.tell()) < span.stop:
      line = stream.readline()
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
  with open(path, "rb") as stream:
    return f"{path}:{stream.read(position).count(b'\n') + 1}"


def _read_parquet(span: Span, field: str) -> collections.abc.Iterator[Document]:
  size = pathlib.Path(span.path).stat().st_size
  try:
    file = parquet.ParquetFile(span.path)
  except (pa.ArrowInvalid, OSError) as error:
    raise ValueError(
      f"{span.path}: not a Parquet file ({error}); set --format or replace it"
    ) from error
  with file:
    if field not in file.schema_arrow.names:
      raise ValueError(
        f"{span.path}: no column {field!r} in"
        f" {', '.join(file.schema_arrow.names)}; set --field"
      )
    kind = file.schema_arrow.field(field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
      raise ValueError(
        f"{span.path}: column {field!r} is {kind}, not string; set --field"
      )
    row, num_rows = 0, file.metadata.num_rows
    for group in range(file.num_row_groups):
      end = row + file.metadata.row_group(group).num_rows
      if _begins(end - 1, num_rows, size) < span.start:
        row = end
        continue
      if _begins(row, num_rows, size) >= span.stop:
        return
      for batch in file.iter_batches(1024, row_groups=[group], columns=[field]):
        for text in batch.column(0):
          if span.start <= _begins(row, num_rows, size) < span.stop:
            origin = f"{span.path} row {row}"
            yield Document(origin=origin, text=_string(text, field, origin))
          row += 1


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
