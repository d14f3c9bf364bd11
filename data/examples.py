"""Tokenized conversations on disk: made once, then mapped into memory.

    tokens.bin      int32: the examples' tokens, one after another
    targets.bin     a byte for each token: whether the model is to learn it
    examples.npz    length, row and first target of each example; the rows that
                    nothing is learnt from
    digest.txt      sha256 of these files, written last: the folder is whole

The folder is in the cache, under a name that is a digest of all that decides
what is in it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from typing import Any
import zipfile

import numpy as np
import tqdm

from data import config as config_lib
from data import directory_lock
from data import manifest
from data import messages
from data import rows as rows_lib
from data import turns
from data.sources import records as records_lib
from data.sources import storage

# Of the layout, and of what the code makes of a row.
_VERSION = 1
_BATCH_ROWS = 256
_FILES = ("tokens.bin", "targets.bin", "examples.npz")
_DIGEST = "digest.txt"
_NAMED = 5

# Examples of each of some rows, or why there are none.
Encode = Callable[
  [Sequence[Mapping[str, Any]]], list[list[turns.Example] | ValueError]
]


class Examples:
  """All examples of a source; a token source for `pack.Packs`.

  Attributes:
    document_lengths: Tokens of each example that are used.
    document_starts: Where each begins.
    rows: Of each example, the row that it was made from.
    first_targets: Place of each example's first target, 1 or more.
    untrainable: Rows that no example was made from.
    num_cut: Examples that were longer.
    digest: Changes when any token does.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.digest = (folder / _DIGEST).read_text(encoding="utf-8").strip()
    with np.load(folder / _FILES[2]) as arrays:
      self.document_lengths = arrays["lengths"]
      self.rows = arrays["rows"]
      self.first_targets = arrays["first_targets"]
      self.untrainable = arrays["untrainable"]
      self.num_cut = int(arrays["num_cut"])
    ends = np.cumsum(self.document_lengths)
    self.document_starts = ends - self.document_lengths

  @property
  def num_tokens(self) -> int:
    """All tokens of the examples that are used."""
    return int(self.document_lengths.sum())

  @functools.cached_property
  def flat(self) -> np.ndarray:
    return _mapped(self._folder / _FILES[0], np.int32)

  @functools.cached_property
  def targets(self) -> np.ndarray:
    return _mapped(self._folder / _FILES[1], np.bool_)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens from `start` to `stop`, where `document_starts` counts."""
    return self.flat[start:stop]

  def __getstate__(self) -> dict[str, Any]:
    # Another process maps the files for itself.
    state = dict(self.__dict__)
    state.pop("flat", None)
    state.pop("targets", None)
    return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What became of the rows of a source.

  Attributes:
    num_rows: Of the source.
    num_examples: That are trained on.
    num_untrainable: Rows without a target, or whose targets were cut off.
    num_dropped: Rows with an example that is left out, being too long.
    num_cut: Examples that were cut, being too long.
  """

  num_rows: int
  num_examples: int
  num_untrainable: int
  num_dropped: int
  num_cut: int


def make(
  records: records_lib.RecordSource,
  *,
  name: str,
  encode: Encode,
  key: Mapping[str, Any],
) -> Examples:
  """The examples of a source, from the cache or made now.

  Args:
    records: The rows.
    name: Of the source, for messages.
    encode: Makes the examples of some rows.
    key: What decides what it makes.

  Raises:
    ValueError: A row cannot be read, or the cache cannot be written.
  """
  content = {"version": _VERSION, "rows": records.digest, **key}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
  folder = storage.cache_dir() / "conversations" / digest.hexdigest()
  if not _is_whole(folder):
    with directory_lock.hold(folder):
      if not _is_whole(folder):
        _write(folder, records, name=name, encode=encode)
  return Examples(folder)


def select(
  examples: Examples,
  records: records_lib.RecordSource,
  *,
  name: str,
  limit: int,
  group: int,
  config: config_lib.SequenceConfig,
) -> Summary:
  """Leaves in the examples those that are used.

  Args:
    examples: Is changed.
    records: Their rows.
    name: Of the source, for messages.
    limit: Tokens that an example may have.
    group: So many neighbouring examples stay or go together.
    config: What to do with what is too long or has no target.

  Raises:
    ValueError: There are such, or nothing is left.
  """
  lengths = examples.document_lengths
  field = f"data.sources[{name}]"
  is_long = lengths > limit
  if is_long.any() and config.too_long == "error":
    raise ValueError(
      f"{field}: {is_long.sum()} of {len(lengths)} conversations are longer"
      f" than the {limit} tokens that a sequence holds with its last target:"
      f" {_names(records, examples.rows[is_long])}; set data.sequence.too_long"
      " to 'drop', or to 'left' or 'right' to cut them, or raise seq_len"
    )
  is_dropped = _any(is_long & (config.too_long == "drop"), group)
  is_silent = _any(examples.first_targets >= limit, group) & ~is_dropped
  silent = np.union1d(examples.untrainable, examples.rows[is_silent])
  if len(silent) and not config.skip_untrainable:
    raise ValueError(
      f"{field}: {len(silent)} of {len(records)} rows have nothing to learn (no"
      " answer of the assistant, or it is cut off, or both answers are equal):"
      f" {_names(records, silent)}; correct them, or set"
      " data.sequence.skip_untrainable=True to leave them out"
    )
  keep = ~(is_dropped | is_silent)
  if not keep.any():
    raise ValueError(
      f"{field}: no conversation is left of {len(records)} rows:"
      f" {is_dropped.sum()} are longer than {limit} tokens, {len(silent)} have"
      " nothing to learn; give another source, or raise seq_len"
    )
  summary = Summary(
    num_rows=len(records),
    num_examples=int(keep.sum()),
    num_untrainable=len(silent),
    num_dropped=len(np.unique(examples.rows[is_dropped])),
    num_cut=examples.num_cut + int((is_long & keep).sum()),
  )
  examples.document_lengths = np.minimum(lengths, limit)[keep]
  examples.document_starts = examples.document_starts[keep]
  examples.rows = examples.rows[keep]
  examples.first_targets = examples.first_targets[keep]
  return summary


def with_rows(sample: rows_lib.Sample, examples: Examples) -> rows_lib.Sample:
  """The sample, its documents by their rows instead of examples."""
  return dataclasses.replace(
    sample,
    documents=tuple(
      dataclasses.replace(span, document=int(examples.rows[span.document]))
      for span in sample.documents
    ),
  )


def _write(
  folder: pathlib.Path,
  records: records_lib.RecordSource,
  *,
  name: str,
  encode: Encode,
) -> None:
  lengths, rows, first_targets, untrainable = [], [], [], []
  num_cut = 0
  (folder / _DIGEST).unlink(missing_ok=True)
  with (
    (folder / _FILES[0]).open("wb") as tokens,
    (folder / _FILES[1]).open("wb") as targets,
  ):
    for row, found in _encoded(records, name, encode):
      trainable = [e for e in found if e.is_target[1:].any()]
      if not trainable:
        untrainable.append(row)
      for example in trainable:
        tokens.write(example.tokens.astype("<i4").tobytes())
        targets.write(example.is_target.astype(np.bool_).tobytes())
        lengths.append(len(example.tokens))
        rows.append(row)
        first_targets.append(1 + int(example.is_target[1:].argmax()))
        num_cut += example.was_cut
  np.savez(
    folder / _FILES[2],
    lengths=np.array(lengths, np.int64),
    rows=np.array(rows, np.int64),
    first_targets=np.array(first_targets, np.int64),
    untrainable=np.array(untrainable, np.int64),
    num_cut=np.array(num_cut),
  )
  manifest.write_atomically(folder / _DIGEST, _digest(folder) + "\n")


def _encoded(
  records: records_lib.RecordSource, name: str, encode: Encode
) -> Iterable[tuple[int, list[turns.Example]]]:
  """Each row and its examples, showing progress."""
  with tqdm.tqdm(total=len(records), desc=f"Tokenizing {name}") as bar:
    for batch in itertools.batched(range(len(records)), _BATCH_ROWS):
      results = encode([records[row] for row in batch])
      for row, found in zip(batch, results, strict=True):
        if isinstance(found, messages.UntrainableError):
          found = []
        if isinstance(found, ValueError):
          raise ValueError(
            f"data.sources[{name}]: {records.name_of(row)}: {found}"
          ) from found
        yield row, found
      bar.update(len(batch))


def _digest(folder: pathlib.Path) -> str:
  digests = [manifest.sha256(folder / file) for file in _FILES]
  return hashlib.sha256("".join(digests).encode()).hexdigest()


def _is_whole(folder: pathlib.Path) -> bool:
  """Whether it was written to its end; the tokens are not read again."""
  if not (folder / _DIGEST).is_file():
    return False
  try:
    with (folder / _FILES[2]).open("rb") as file, np.load(file) as arrays:
      num_tokens = int(arrays["lengths"].sum())
    sizes = [(folder / name).stat().st_size for name in _FILES[:2]]
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    return False
  return sizes == [4 * num_tokens, num_tokens]


def _mapped(file: pathlib.Path, dtype: Any) -> np.ndarray:
  return np.memmap(file, dtype=dtype, mode="r")


def _any(flags: np.ndarray, group: int) -> np.ndarray:
  """Whether it is so of any of the group, for each of them."""
  return np.repeat(flags.reshape(-1, group).any(axis=1), group)


def _names(records: records_lib.RecordSource, rows: np.ndarray) -> str:
  first = np.unique(rows)[:_NAMED].tolist()
  names = ", ".join(records.name_of(row) for row in first)
  more = len(np.unique(rows)) - len(first)
  return f"{names} and {more} more" if more else names
