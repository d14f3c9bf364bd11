"""Which documents of a job are tokenized, and why the others are not.

Each part of the input is examined by itself: lengths, language, evaluation
sets, and what tells copies from each other. Only the search for copies then
sees all parts, in their order. So what is kept depends on files and rows alone,
and of copies the first one stays.

A document is dropped by the first of these that holds: too short, too long, in
another language, contaminated, a copy, a near copy.

    PART.screened.json      of a part that was examined
    PART.reasons            uint8 `Reason` of each document
    PART.digests            128 bits of the sha256 of each
    PART.signatures         MinHash of each
    PART.contamination      a line for each document that has some
    PART.kept.npy           the result: bool, is each document kept
"""

import collections.abc
import contextlib
import dataclasses
import enum
import functools
import itertools
import json
import os
import pathlib
from typing import Any, IO, Protocol

import numpy as np

from data import contamination
from data import dedup
from data import documents
from data import filters as filters_lib
from data import manifest
from data import worker_pool

# What is left of contamination when the job is done.
CONTAMINATION = "contamination.jsonl"
_REPORTED_BYTES = 1 << 20
_SUFFIXES = ("reasons", "digests", "signatures", "contamination")


class Reason(enum.IntEnum):
  """Why a document is left out."""

  KEPT = 0
  EMPTY = 1  # Without text; counted by the tokenizer.
  TOO_SHORT = 2
  TOO_LONG = 3
  LANGUAGE = 4
  CONTAMINATED = 5
  COPY = 6
  NEAR_COPY = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
  """What to look for.

  Attributes:
    filters: of lengths and languages.
    evaluations: evaluation sets that should not be in the text.
    drop_copies: leave out documents with the same text as an earlier one.
    near_copies: leave out documents as similar as this to an earlier one, 0 to
      1, as the share of the runs of five words that they have in common; 0:
      none. 0.8 is usual.
  """

  filters: filters_lib.Filters = filters_lib.Filters()
  evaluations: contamination.Evaluations = contamination.Evaluations()
  drop_copies: bool = False
  near_copies: float = 0.0

  def __post_init__(self):
    if not 0 <= self.near_copies <= 1:
      raise ValueError(
        f"near_copies is {self.near_copies}; it must be a similarity, 0 (none"
        " is left out) to 1"
      )

  @property
  def is_on(self) -> bool:
    """Whether anything is looked for."""
    return bool(self.reasons() or self.evaluations.paths)

  def reasons(self) -> list[Reason]:
    """Those for which documents may be left out, in their order."""
    chosen = {
      Reason.TOO_SHORT: self.filters.min_chars,
      Reason.TOO_LONG: self.filters.max_chars,
      Reason.LANGUAGE: self.filters.languages,
      Reason.CONTAMINATED: self.evaluations.drop,
      Reason.COPY: self.drop_copies,
      Reason.NEAR_COPY: self.near_copies,
    }
    return [reason for reason, is_chosen in chosen.items() if is_chosen]

  def identity(self) -> dict[str, Any]:
    """What decides the result, besides the documents."""
    content = dataclasses.asdict(self)
    files = contamination.files(self.evaluations)
    content["evaluations"]["versions"] = [
      [file, *documents.version_of(file)] for file in files
    ]
    if self.near_copies:
      content["near_copies_by"] = dedup.version()
    # As it is read back.
    return json.loads(json.dumps(content))


class Part(Protocol):
  """A part of the input: spans of files, examined by one process."""

  @property
  def name(self) -> str: ...

  @property
  def size(self) -> int: ...

  @property
  def output(self) -> pathlib.Path: ...

  @property
  def spans(self) -> list[documents.Span]: ...

  @property
  def field(self) -> str: ...

  @property
  def screen(self) -> Screen: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What was found.

  Attributes:
    num_kept: documents with text that are not left out.
    dropped: documents that are left out, by the name of each reason for which
      that was asked.
    evaluations: by path: examples, those too short to be looked for, and
      documents that have some of it.
  """

  num_kept: int
  dropped: dict[str, int]
  evaluations: dict[str, dict[str, int]]


def run(
  parts: collections.abc.Sequence[Part],
  *,
  runner: worker_pool.Runner,
) -> Result:
  """Decides of every document whether it is kept; writes PART.kept.npy.

  Args:
    parts: all of the input, in order; all with the same output and screen.
    runner: examines the parts.

  Raises:
    ValueError: an input or evaluation set cannot be read.
  """
  output, screen = parts[0].output, parts[0].screen
  if screen.evaluations.paths:
    _index(screen.evaluations)  # Its errors come before any work.
  missing = [part for part in parts if not _is_examined(part)]
  if missing:
    size = sum(part.size for part in parts)
    runner(
      examine,
      missing,
      label="Screening " + "/".join(output.parts[-2:]),
      bytes_done=size - sum(part.size for part in missing),
    )
  worker_pool.check_made(_file(part, "screened.json") for part in missing)
  counts = [
    json.loads(_file(part, "screened.json").read_text())["num_documents"]
    for part in parts
  ]
  reasons = np.concatenate([_load(part, "reasons", np.uint8) for part in parts])
  if screen.drop_copies:
    digests = np.concatenate(
      [_load(part, "digests", np.uint64).reshape(-1, 2) for part in parts]
    )
    copies = dedup.copies(digests, reasons == Reason.KEPT)
    reasons[copies] = Reason.COPY
  if screen.near_copies:
    reasons[_near_copies(parts, reasons, screen)] = Reason.NEAR_COPY
  borders = np.cumsum(counts)[:-1]
  for part, own in zip(parts, np.split(reasons, borders), strict=True):
    kept = (own == Reason.KEPT) | (own == Reason.EMPTY)
    np.save(_file(part, "kept.npy"), kept, allow_pickle=False)
  numbers = np.bincount(reasons, minlength=len(Reason))
  dropped = {
    reason.name.lower(): int(numbers[reason]) for reason in screen.reasons()
  }
  return Result(
    num_kept=int(numbers[Reason.KEPT]),
    dropped=dropped,
    evaluations=_evaluations(parts, screen),
  )


def examine(part: Part) -> None:
  """Looks at each document of a part by itself; notes what the search needs."""
  note = _file(part, "screened.json").name
  with worker_pool.attempt(part.output, name=part.name, note=note) as folder:
    with contextlib.ExitStack() as stack:
      streams = {
        suffix: stack.enter_context(
          (folder / _file(part, suffix).name).open("wb")
        )
        for suffix in _SUFFIXES
      }
      count = _examine(part, streams)
    sizes = {
      suffix: (folder / _file(part, suffix).name).stat().st_size
      for suffix in _SUFFIXES
    }
    content = json.dumps({"num_documents": count, "sizes": sizes})
    manifest.write_atomically(folder / note, content)


def _examine(
  part: Part, streams: collections.abc.Mapping[str, IO[bytes]]
) -> int:
  """Writes what is found of each document; how many there are."""
  screen = part.screen
  index = _index(screen.evaluations) if screen.evaluations.paths else None
  count = num_bytes = 0
  for document in itertools.chain.from_iterable(
    documents.read(span, field=part.field) for span in part.spans
  ):
    text = document.text
    reason = _reason(text, screen.filters)
    if reason is Reason.KEPT and index is not None:
      matches = index.find(text)
      if matches:
        line = {
          "document": document.origin,
          "found": [dataclasses.asdict(match) for match in matches],
        }
        streams["contamination"].write(
          json.dumps(line, ensure_ascii=False).encode() + b"\n"
        )
        if screen.evaluations.drop:
          reason = Reason.CONTAMINATED
    streams["reasons"].write(bytes([reason]))
    if screen.drop_copies:
      streams["digests"].write(dedup.digest(text).tobytes())
    if screen.near_copies:
      compared = text if reason is Reason.KEPT else ""
      streams["signatures"].write(dedup.signature(compared).tobytes())
    count += 1
    num_bytes += len(text.encode())
    if num_bytes > _REPORTED_BYTES:
      worker_pool.report(num_bytes)
      num_bytes = 0
  return count


def kept(part: Part) -> np.ndarray:
  """bool of each document of a part, after `run`."""
  return np.load(_file(part, "kept.npy"), allow_pickle=False)


def dropped(part: Part) -> int:
  """How many documents of a part are left out, after `run`."""
  return int((~kept(part)).sum())


def clean(parts: collections.abc.Sequence[Part]) -> None:
  """Removes what only the job itself needs; keeps the report."""
  for part in parts:
    for suffix in (*_SUFFIXES, "kept.npy", "screened.json"):
      _file(part, suffix).unlink(missing_ok=True)
  (parts[0].output / "signatures").unlink(missing_ok=True)


def _reason(text: str, chosen: filters_lib.Filters) -> Reason:
  if not text:
    return Reason.EMPTY
  if chosen.is_short(text):
    return Reason.TOO_SHORT
  if chosen.is_long(text):
    return Reason.TOO_LONG
  if chosen.is_foreign(text):
    return Reason.LANGUAGE
  return Reason.KEPT


def _near_copies(
  parts: collections.abc.Sequence[Part], reasons: np.ndarray, screen: Screen
) -> np.ndarray:
  """bool of each document: is it a near copy of an earlier one."""
  # One file, mapped: signatures of 1e8 documents take 51 GB.
  joined = parts[0].output / "signatures"
  with joined.open("wb") as stream:
    for part in parts:
      with _file(part, "signatures").open("rb") as own:
        while block := own.read(1 << 24):
          stream.write(block)
  if not os.path.getsize(joined):
    return np.zeros(len(reasons), bool)
  signatures = np.memmap(joined, np.uint32, mode="r")
  signatures = signatures.reshape(-1, dedup.NUM_HASHES)
  # Without words there is nothing to compare.
  compared = (reasons == Reason.KEPT) & signatures.any(axis=1)
  return dedup.near_copies(signatures, compared, threshold=screen.near_copies)


def _evaluations(
  parts: collections.abc.Sequence[Part], screen: Screen
) -> dict[str, dict[str, int]]:
  """Writes the report; counts by evaluation set."""
  if not screen.evaluations.paths:
    return {}
  index = _index(screen.evaluations)
  found = dict.fromkeys(screen.evaluations.paths, 0)
  report = parts[0].output / CONTAMINATION
  partial = report.with_name(report.name + ".partial")
  with partial.open("wb") as stream:
    for part in parts:
      with _file(part, "contamination").open("rb") as lines:
        for line in lines:
          stream.write(line)
          for match in json.loads(line)["found"]:
            found[match["evaluation"]] += 1
  partial.replace(report)
  return {
    path: {
      "num_examples": index.num_examples[path],
      "num_too_short": index.num_too_short[path],
      "num_documents": found[path],
    }
    for path in screen.evaluations.paths
  }


def _index(evaluations: contamination.Evaluations) -> contamination.Index:
  files = contamination.files(evaluations)
  return _load_index(
    evaluations, tuple(str(documents.version_of(file)) for file in files)
  )


# A process examines many parts.
@functools.lru_cache(maxsize=1)
def _load_index(
  evaluations: contamination.Evaluations, versions: tuple[str, ...]
) -> contamination.Index:
  del versions  # Other files are another index.
  return contamination.load(evaluations)


def _is_examined(part: Part) -> bool:
  note = _file(part, "screened.json")
  if not note.is_file():
    return False
  sizes = json.loads(note.read_text(encoding="utf-8"))["sizes"]
  return all(
    _file(part, suffix).is_file() and _file(part, suffix).stat().st_size == size
    for suffix, size in sizes.items()
  )


def _load(part: Part, suffix: str, dtype: type) -> np.ndarray:
  return np.fromfile(_file(part, suffix), dtype)


def _file(part: Part, suffix: str) -> pathlib.Path:
  return part.output / f"{part.name}.{suffix}"
