"""Which source gives every sample of a blend, in Megatron's order.

Megatron gives each sample to the source that is furthest behind its share: at
sample k, to the first of those with the largest weight * max(k, 1) - given, in
doubles. The rule goes from sample to sample, and its ties are decided by
rounding, so nothing but this very arithmetic gives this very order. The
compiled helper rounds the product first on x86, and does not on ARM, where the
two operations are one (fused multiply-add): the orders differ in many places.

Here the rule is run for many blocks of samples at once. A block's start, what
each source has given before, is guessed (`_guess`) some samples ahead of it,
since orders that begin differently soon become one; then each block must end
with the counts that the next began with. The first block's start is known, so
if all agree, all are right; blocks that do not agree are run again from the end
of the one before. `reference` is the rule one by one.

Only the counts at every 2**16 samples are kept (and cached): the order between
is made again when it is asked for.

By megatron/core/datasets/helpers.cpp, Megatron-Core 0.16.1.

n sources, K samples of the blend, N samples asked about, L blocks side by side.
"""

import collections.abc
import fractions
import threading
from typing import Literal

from jaxtyping import Float, Int
import numpy as np

Rounding = Literal["x86", "fused"]

# Samples between the counts that are kept.
SPAN = 1 << 16
# Samples that are made in one go, at most.
_MOST = 1 << 22
# Samples that a block is begun ahead of its start, to forget its guess.
_AHEAD = 64
# Blocks side by side: as many as keep the arrays in the cache.
_MOST_CELLS = 1 << 15
_SPANS_KEPT = 4


def normalize(
  weights: collections.abc.Sequence[float],
) -> Float[np.ndarray, "n"]:
  """Weights that sum to about 1, by Megatron's arithmetic (NumPy's sum)."""
  array = np.array(weights, np.float64)
  return array / np.sum(array)


def reference(
  weights: collections.abc.Sequence[float] | np.ndarray,
  size: int,
  *,
  rounding: Rounding,
  limits: collections.abc.Sequence[int] | None = None,
) -> list[int]:
  """The source of each of the first `size` samples, one by one.

  Args:
    weights: of the sources, normalized.
    size: number of samples.
    rounding: of the products.
    limits: samples of each source, of which none is given more; None: no limit.
  """
  given = [0] * len(weights)
  order = []
  for sample in range(size):
    best, most = -1, -float("inf")
    for source, weight in enumerate(weights):
      if limits is not None and given[source] == limits[source]:
        continue
      if rounding == "x86":
        behind = float(weight) * float(max(sample, 1)) - float(given[source])
      else:
        exact = fractions.Fraction(float(weight)) * max(sample, 1)
        behind = float(exact - given[source])
      if behind > most:
        best, most = source, behind
    order.append(best)
    given[best] += 1
  return order


class Blend:
  """The order of a blend.

  Args:
    weights: of the sources, normalized.
    size: K; what comes after is not asked for.
    rounding: of the products.
    limits: samples of each source, of which none is given more (Megatron's
      exhaustive order); None: no limit.

  Attributes:
    size: K.
  """

  def __init__(
    self,
    weights: collections.abc.Sequence[float] | np.ndarray,
    size: int,
    *,
    rounding: Rounding = "x86",
    limits: collections.abc.Sequence[int] | None = None,
  ):
    self.size = size
    self._rule = _Rule(weights, rounding=rounding, limits=limits)
    self._num_sources = len(weights)
    # Before each of the first spans; the others are made as they are needed.
    self._counts = np.zeros((1, self._num_sources), np.int64)
    self._spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._lock = threading.Lock()

  def locate(
    self, rows: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each sample of the blend, and how many it gave before."""
    rows = np.asarray(rows, np.int64)
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < self.size:
      raise ValueError(
        f"samples [{rows.min()}, {rows.max()}] are not all in [0, {self.size}),"
        " those of the blend"
      )
    sources = np.empty(rows.shape, np.int64)
    numbers = np.empty(rows.shape, np.int64)
    spans = rows // SPAN
    for span in np.unique(spans).tolist():
      mine = spans == span
      places = rows[mine] - span * SPAN
      order, ranks = self._span(span)
      sources[mine] = order[places]
      numbers[mine] = ranks[places]
    return sources, numbers

  def counts_before(self, row: int) -> Int[np.ndarray, "n"]:
    """Samples of each source among the first `row` of the blend."""
    self._extend(row // SPAN)
    given = self._counts[row // SPAN]
    if row % SPAN:
      order, _ = self._span(row // SPAN)
      given = given + self._count(order[: row % SPAN])
    return given

  def counts(self) -> Int[np.ndarray, "C n"]:
    """The counts before each span: all that is worth to be kept."""
    self._extend((self.size - 1) // SPAN)
    return self._counts

  def know(self, counts: Int[np.ndarray, "C n"]) -> None:
    """Takes what `counts` gave for the same blend."""
    self._counts = counts

  def _span(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Source of each sample of a span, and how many it gave before."""
    found = self._spans.get(number)
    if found is None:
      self._extend(number)
      given, start = self._counts[number], number * SPAN
      order, after = self._rule.run(start, given, min(SPAN, self.size - start))
      with self._lock:
        if len(self._counts) == number + 1 and len(order) == SPAN:
          self._counts = np.concatenate([self._counts, after[None]])
      found = order, given[order] + ranks(order, self._num_sources)
      # Several threads may read: replace the dict, never change it.
      newest = list(self._spans.items())[1 - _SPANS_KEPT :]
      self._spans = dict([*newest, (number, found)])
    return found

  def _extend(self, span: int) -> None:
    """Makes the counts before a span."""
    with self._lock:
      while len(self._counts) <= span:
        known = len(self._counts) - 1
        size = min(_MOST, (span - known) * SPAN)
        order, _ = self._rule.run(known * SPAN, self._counts[known], size)
        parts = order.reshape(-1, SPAN)
        each = np.stack([self._count(part) for part in parts])
        new = self._counts[known] + np.cumsum(each, axis=0)
        self._counts = np.concatenate([self._counts, new])

  def _count(self, order: Int[np.ndarray, "N"]) -> Int[np.ndarray, "n"]:
    return np.bincount(order, minlength=self._num_sources)

  def __getstate__(self):
    return {**self.__dict__, "_spans": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


def ranks(
  order: Int[np.ndarray, "N"], num_sources: int
) -> Int[np.ndarray, "N"]:
  """How often the source of each sample comes before it."""
  # A stable sort puts the samples of each source together, in their order.
  by_source = np.argsort(order, kind="stable")
  counts = np.bincount(order, minlength=num_sources)
  first = np.cumsum(counts) - counts
  result = np.empty(len(order), np.int64)
  result[by_source] = np.arange(len(order)) - np.repeat(first, counts)
  return result


class _Rule:
  """Megatron's rule for many blocks at once."""

  def __init__(
    self,
    weights: collections.abc.Sequence[float] | np.ndarray,
    *,
    rounding: Rounding,
    limits: collections.abc.Sequence[int] | None,
  ):
    self._weights = np.array(weights, np.float64)
    self._fused = rounding == "fused"
    self._limits = None if limits is None else np.array(limits, np.int64)

  def run(
    self, start: int, given: Int[np.ndarray, "n"], size: int
  ) -> tuple[Int[np.ndarray, "size"], Int[np.ndarray, "n"]]:
    """The order of samples, and the counts after them.

    Args:
      start: the first.
      given: the counts before it.
      size: how many samples.
    """
    n = len(self._weights)
    dtype = np.uint8 if n <= 1 << 8 else np.uint16
    if n == 1:
      return np.zeros(size, dtype), given + size
    length = max(4 * _AHEAD, -(-size * n // _MOST_CELLS))
    num_blocks = max(1, size // length)
    length = min(length, size)
    starts = start + length * np.arange(num_blocks)
    order = np.empty((num_blocks, length), dtype)
    begin = np.empty((num_blocks, n), np.int64)
    begin[0] = given
    if num_blocks > 1:
      ahead = starts[1:] - _AHEAD
      begin[1:] = self._advance(ahead, self._guess(ahead), _AHEAD)[1]
    end = np.empty_like(begin)
    todo, num_runs = np.arange(num_blocks), 0
    while todo.size:
      order[todo], end[todo] = self._advance(
        starts[todo], begin[todo], length, dtype
      )
      num_runs += 1
      wrong = 1 + np.flatnonzero((end[:-1] != begin[1:]).any(axis=1))
      if num_runs > 2 and wrong.size == 1:
        # Orders that do not become one: sources of which a sample is rare keep
        # the difference for long. So the others behind have it, too.
        first = int(wrong[0])
        begin[first:] += end[first - 1] - begin[first]
        todo = np.arange(first, num_blocks)
      else:
        begin[wrong] = end[wrong - 1]
        todo = wrong
    given = end[-1]
    rest = size - num_blocks * length
    tail, after = self._advance(starts[-1:] + length, given[None], rest, dtype)
    return np.concatenate([order.reshape(-1), tail[0]]), after[0]

  def _guess(self, rows: Int[np.ndarray, "L"]) -> Int[np.ndarray, "L n"]:
    """Counts near what they are before the rows."""
    ideal = self._weights * rows[:, None]
    counts = np.floor(ideal).astype(np.int64)
    if self._limits is not None:
      counts = np.minimum(counts, self._limits)
    missing = rows - counts.sum(axis=1)
    # The rest goes to those furthest behind.
    behind = np.argsort(np.argsort(counts - ideal, axis=1), axis=1)
    return counts + (behind < missing[:, None])

  def _advance(
    self,
    rows: Int[np.ndarray, "L"],
    given: Int[np.ndarray, "L n"],
    size: int,
    dtype: np.typing.DTypeLike = np.uint16,
  ) -> tuple[Int[np.ndarray, "L size"], Int[np.ndarray, "L n"]]:
    """Orders of `size` samples from each of the rows on, side by side."""
    num_blocks, weights = len(given), self._weights
    # Sources by blocks: so the loops of NumPy are long.
    counts = np.ascontiguousarray(given.T, np.float64)
    flat = counts.reshape(-1)
    limits = None
    if self._limits is not None:
      limits = self._limits[:, None].astype(np.float64)
    behind = np.empty_like(counts)
    columns = np.arange(num_blocks)
    order = np.empty((size, num_blocks), dtype)
    fused = _Fused(weights, counts) if self._fused else None
    for step in range(size):
      times = np.maximum(rows + step, 1).astype(np.float64)
      if fused is None:
        np.multiply(weights[:, None], times, out=behind)
        np.subtract(behind, counts, out=behind)
      else:
        fused(times, out=behind)
      if limits is not None:
        behind[counts >= limits] = -np.inf
      best = _first_largest(behind)
      order[step] = best
      flat[best * num_blocks + columns] += 1
    return order.T, counts.T.astype(np.int64)


class _Fused:
  """weight * time - count, rounded once, for arrays.

  The product's rounding error is itself a double (Dekker, "A floating-point
  technique for extending the available precision", 1971). The rounded product
  less the count is exact where it matters: if the product is not below half of
  the count. A source with a smaller one is far ahead and never the largest.
  """

  def __init__(self, weights: np.ndarray, counts: np.ndarray):
    self._weights = weights[:, None]
    self._high, self._low = _halves(self._weights)
    self._counts = counts
    self._error = np.empty_like(counts)

  def __call__(self, times: np.ndarray, *, out: np.ndarray) -> None:
    high, low = _halves(times)
    error = self._error
    np.multiply(self._weights, times, out=out)
    np.multiply(self._high, high, out=error)
    error -= out
    error += self._high * low
    error += self._low * high
    error += self._low * low
    out -= self._counts
    out += error


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Two doubles of half the digits each, with the sum x."""
  scaled = x * 134217729.0  # 2**27 + 1
  high = scaled - (scaled - x)
  return high, x - high


def _first_largest(values: Float[np.ndarray, "n L"]) -> Int[np.ndarray, "L"]:
  """For each column the first row with the largest value."""
  if len(values) > 8:
    return values.argmax(axis=0)
  best = np.zeros(values.shape[1], np.int64)
  most = values[0].copy()
  for row in range(1, len(values)):
    better = values[row] > most
    best[better] = row
    np.maximum(most, values[row], out=most)
  return best
