"""Targets and padding of a source's samples, counted without drawing them all.

Samples of `chunk` and of Megatron have equally many. Those of packs and
conversations differ, but not from epoch to epoch: an epoch is counted once, and
what a run takes besides whole epochs. Counting reads the samples, so of very
many it reads some, spread evenly, and what it says is an estimate.
"""

import fractions
import typing

import numpy as np

from data import chunk
from data import plan as plan_lib
from data import rows as rows_lib
from data.megatron import mixture as megatron

# Places of rows that are read at a time, and at most, of a source.
_BLOCK = 1 << 20
_MOST = 1 << 25


class Counter(typing.Protocol):
  """Counts what is in the samples of a source."""

  @property
  def tokens_of_epoch(self) -> int:
    """As they come in sequences."""
    ...

  @property
  def is_estimated(self) -> bool:
    """Whether some of what it said is not exact."""
    ...

  def count(self, first: int, stop: int, seq_len: int) -> tuple[int, int]:
    """Targets, and places of padding, of samples [first, stop)."""
    ...

  def epochs(self, num_samples: int, seq_len: int) -> fractions.Fraction:
    """How often the source is read by so many samples."""
    ...


def make(plan: plan_lib.Plan, source: int) -> Counter:
  """The counter of a source of a run, by its index."""
  if isinstance(plan.mixture, megatron.Mixture):
    made = plan.mixture.split.indices[source].plan
    return Even(made.num_tokens, missing=1 - made.extra)
  sequences = plan.sequences(0)[source]
  if isinstance(sequences, chunk.Chunks):
    each_token = sequences.section(seq_len=1, begin=0, limit=None)
    return Even(each_token.num_samples(1))
  return Uneven(sequences, seq_len=plan.stages[0].seq_len)


class Even:
  """Counts in samples of tokens laid end to end.

  Args:
    tokens_of_epoch: of the source.
    missing: places of each row without a target.
  """

  is_estimated = False

  def __init__(self, tokens_of_epoch: int, *, missing: int = 0):
    self.tokens_of_epoch = tokens_of_epoch
    self._missing = missing

  def count(self, first: int, stop: int, seq_len: int) -> tuple[int, int]:
    """Targets, and places of padding (none), of samples [first, stop)."""
    return (stop - first) * (seq_len - self._missing), 0

  def epochs(self, num_samples: int, seq_len: int) -> fractions.Fraction:
    """How often the source is read by so many samples."""
    return fractions.Fraction(num_samples * seq_len, self.tokens_of_epoch)


class Uneven:
  """Counts in samples that differ, but of which all epochs have the same.

  Args:
    sequences: of the source.
    seq_len: tokens of a row.
    most: places of rows to read for each part that is counted; more are
      estimated.
  """

  def __init__(
    self, sequences: rows_lib.Sequences, *, seq_len: int, most: int = _MOST
  ):
    self.is_estimated = False
    self._sequences = sequences
    self._seq_len = seq_len
    self._most = most
    self._length = sequences.num_samples(1)
    self._epoch = self._counted(0, self._length)
    # Targets and padding of an epoch's samples up to some numbers.
    self._known = {0: np.zeros(2, np.int64)}

  @property
  def tokens_of_epoch(self) -> int:
    return int(self._epoch[2])

  def count(self, first: int, stop: int, seq_len: int) -> tuple[int, int]:
    """Targets, and places of padding, of samples [first, stop)."""
    assert seq_len == self._seq_len
    targets, padding = (self._before(stop) - self._before(first)).tolist()
    return targets, padding

  def epochs(self, num_samples: int, seq_len: int) -> fractions.Fraction:
    """How often the source is read by so many samples."""
    assert seq_len == self._seq_len
    return fractions.Fraction(num_samples, self._length)

  def _before(self, end: int) -> np.ndarray:
    """Targets, and places of padding, of the first samples."""
    epochs, rest = divmod(end, self._length)
    if rest and end not in self._known:
      # From the nearest number that is known, in the same epoch.
      base = end - rest
      near = max((n for n in self._known if base <= n < end), default=base)
      start = self._known.get(near, epochs * self._epoch[:2])
      self._known[end] = start + self._counted(near, end)[:2]
    return self._known[end] if rest else epochs * self._epoch[:2]

  def _counted(self, first: int, stop: int) -> np.ndarray:
    """As `count_reference`; an estimate where they are too many."""
    samples = np.arange(first, stop)
    each = getattr(self._sequences, "rows_per_sample", 1)
    few = max(1, self._most // (each * self._seq_len))
    if len(samples) > few:
      self.is_estimated = True
      samples = first + (stop - first) * np.arange(few) // few
    counts = count_reference(self._sequences, samples, seq_len=self._seq_len)
    scale = fractions.Fraction(stop - first, max(1, len(samples)))
    return np.array([round(count * scale) for count in counts])


def count_reference(
  sequences: rows_lib.Sequences, samples: np.ndarray, *, seq_len: int
) -> tuple[int, int, int]:
  """Counts in the samples themselves.

  Args:
    sequences: of a source.
    samples: their numbers.
    seq_len: tokens of a row.

  Returns:
    Targets, places of padding, and tokens, the last target of a row included.
  """
  each = getattr(sequences, "rows_per_sample", 1)
  size = max(1, _BLOCK // (each * seq_len))
  targets, padding, tokens = 0, 0, 0
  for begin in range(0, len(samples), size):
    some = samples[begin : begin + size]
    rows = rows_lib.empty(len(some) * each, seq_len)
    sequences.fill(some, rows, np.arange(len(some)) * each)
    is_token = rows.segment_ids > 0
    targets += int(rows.is_target[:, 1:].sum())
    padding += int((~is_token[:, :-1]).sum())
    tokens += int(is_token.sum())
  return targets, padding, tokens
