"""Some of the documents of a source: what is held out, and what is not.

Which documents are held out depends on their numbers and the share alone, not
on names, seeds or settings: those with the smallest hashes. So a smaller share
is a part of a larger one, and documents added at the end move few of the others
to the other side.
"""

import typing

import numpy as np

from data import chunk
from data.sources import records

_BLOCK = 1 << 20


def held_out(num_documents: int, share: float) -> np.ndarray:
  """Which documents are kept from training.

  Args:
    num_documents: of the source.
    share: of them, above 0 and below 1; at least one is kept, and one is left.

  Returns:
    bool [num_documents].

  Raises:
    ValueError: there are fewer than two documents.
  """
  if num_documents < 2:
    raise ValueError(
      f"held_out is {share}, but there are {num_documents} documents, which"
      " cannot be divided; give an eval_path instead"
    )
  count = min(max(round(share * num_documents), 1), num_documents - 1)
  starts = range(0, num_documents, _BLOCK)
  blocks = [(start, min(start + _BLOCK, num_documents)) for start in starts]
  # Few of the hashes are kept at a time: there may be 1e9 documents.
  bound, smallest = share, np.empty(0, np.uint64)
  while len(smallest) < count:
    bound = min(1.1 * bound + 10 / num_documents, 1.0)
    limit = np.uint64(min(int(bound * 2.0**64), (1 << 64) - 1))
    hashes = (_hashes(*block) for block in blocks)
    smallest = np.concatenate([some[some <= limit] for some in hashes])
  # No two hashes are the same.
  last = np.partition(smallest, count - 1)[count - 1]
  return np.concatenate([_hashes(*block) <= last for block in blocks])


class TokenSubset:
  """Some documents of a source of tokens, laid end to end in their order.

  Attributes:
    document_lengths: int64 tokens of each.
    document_starts: where each begins in `flat`; only if the source has that.
  """

  def __init__(self, source: chunk.TokenSource, chosen: np.ndarray):
    """A view.

    Args:
      source: of all documents.
      chosen: bool, of each document.
    """
    lengths = source.document_lengths
    self._source = source
    self.document_lengths = lengths[chosen]
    if getattr(source, "flat", None) is not None:
      starts = np.cumsum(lengths, dtype=np.int64) - lengths
      self.document_starts = starts[chosen]
    # Neighbours are read as one: runs of chosen documents, here and there.
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[edges]
    lengths = ends[1::2] - ends[::2]
    self._offsets = np.concatenate([[0], np.cumsum(lengths)])
    self._shifts = ends[::2] - self._offsets[:-1]

  @property
  def flat(self) -> np.ndarray | None:
    """The tokens of all documents, if the source has them in one array."""
    return getattr(self._source, "flat", None)

  @property
  def num_tokens(self) -> int:
    return int(self._offsets[-1])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the chosen documents, in the source's dtype.

    Raises:
      ValueError: the range is outside the stream.
    """
    if not 0 <= start <= stop <= self.num_tokens:
      raise ValueError(
        f"[{start}, {stop}) is outside [0, {self.num_tokens}), the tokens of"
        " the chosen documents"
      )
    if start == stop:
      return self._source.read(0, 0)
    run = int(np.searchsorted(self._offsets, start, "right")) - 1
    parts = []
    while True:
      shift = self._shifts[run]
      end = self._offsets[run + 1]
      if stop <= end:
        last = self._source.read(int(start + shift), int(stop + shift))
        return np.concatenate([*parts, last]) if parts else last
      parts.append(self._source.read(int(start + shift), int(end + shift)))
      start, run = end, run + 1


class RecordSubset:
  """Some rows of a source of rows."""

  def __init__(
    self, source: records.RecordSource, chosen: np.ndarray, *, digest: str
  ):
    """A view.

    Args:
      source: of all rows.
      chosen: bool, of each row.
      digest: of the view.
    """
    self._source = source
    self._rows = np.flatnonzero(chosen)
    self.digest = digest

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, typing.Any]:
    return self._source[self._row(index)]

  def name_of(self, index: int) -> str:
    """File and place of a row."""
    return self._source.name_of(self._row(index))

  def _row(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f"row {index} is outside [0, {len(self)})")
    return int(self._rows[index])


def _hashes(first: int, stop: int) -> np.ndarray:
  """Of numbers, uint64: the finalizer of SplitMix64, which is a bijection."""
  x = np.arange(first + 1, stop + 1, dtype=np.uint64)
  x *= np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
