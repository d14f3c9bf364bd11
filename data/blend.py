"""Which source gives the sample at every global index.

Samples are dealt by Tijdeman's chairman assignment (R. Tijdeman, "The chairman
assignment problem", 1980): with n sources, after any number of samples every
source has given its exact share to within 1 - 1/(2n - 2) of a sample. The
weights are exact fractions, so the deal repeats after a whole number of
samples, and one table of that length answers any index in O(1).

Seen as scheduling: sample j of source i becomes allowed at a release index and
must be given by a deadline; giving the allowed sample with the earliest
deadline meets all of them.
"""

import collections.abc
import fractions
import heapq
import math

from jaxtyping import Int
import numpy as np

from data import ragged

MAX_PERIOD = 1_000_000

_BLOCK = 1 << 16


class Blend:
  """A weighted mixture of sources.

  Args:
    weights: positive, any scale. A float counts as the decimal it prints as.

  Attributes:
    counts: samples of each source in one period.
    period: samples after which the deal repeats.
  """

  def __init__(
    self, weights: collections.abc.Sequence[float | int | str]
  ) -> None:
    self.counts = _integer_weights(weights)
    self.period = sum(self.counts)
    self._counts = np.array(self.counts)
    self._order = _deal(self.counts)
    # The places of each source, one source after another, and where in that
    # list each source's begin.
    places = np.argsort(self._order, kind="stable")
    self._places = places.astype(np.int32)
    self._first = np.cumsum(self._counts) - self._counts
    # How often the source of a place has given before, in this period.
    self._rank = np.empty(self.period, np.int32)
    self._rank[places] = ragged.ramp(self._counts)

  def locate(
    self, indices: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each global index, and how many samples it gave before."""
    cycle, place = np.divmod(np.asarray(indices, np.int64), self.period)
    sources = self._order[place].astype(np.int64)
    samples = cycle * self._counts[sources] + self._rank[place]
    return sources, samples

  def index(self, source: int, sample: int) -> int:
    """Global index at which a source gives a sample (`locate` undone)."""
    cycle, rank = divmod(sample, self.counts[source])
    return cycle * self.period + int(self._places[self._first[source] + rank])

  def given(self, length: int) -> list[int]:
    """How many samples each source gives in the first `length` indices."""
    cycle, rest = divmod(length, self.period)
    begun = np.bincount(self._order[:rest], minlength=len(self.counts))
    pairs = zip(self.counts, begun.tolist(), strict=True)
    return [cycle * count + extra for count, extra in pairs]


def _integer_weights(weights) -> list[int]:
  """The smallest integers in the same ratio."""
  if not weights:
    raise ValueError("weights is empty; give one for each source")
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  if min(exact) <= 0:
    raise ValueError(
      f"weights are {list(weights)}; every weight must be positive"
    )
  scale = math.lcm(*(weight.denominator for weight in exact))
  integers = [int(weight * scale) for weight in exact]
  divisor = math.gcd(*integers)
  integers = [integer // divisor for integer in integers]
  if sum(integers) > MAX_PERIOD:
    raise ValueError(
      f"weights are {list(weights)}, which repeat only after"
      f" {sum(integers)} samples, and may after {MAX_PERIOD} at most. Weights"
      f" that do, close to these: {_nearest(exact)} (they need not sum to 1)"
    )
  return integers


def _nearest(weights: list[fractions.Fraction]) -> list[int]:
  """Integers that sum to MAX_PERIOD, about in the ratio of the weights."""
  left = MAX_PERIOD - len(weights)
  shares = [left * weight / sum(weights) for weight in weights]
  whole = [math.floor(share) for share in shares]
  by_rest = sorted(range(len(weights)), key=lambda i: (whole[i] - shares[i], i))
  for index in by_rest[: left - sum(whole)]:
    whole[index] += 1
  return [1 + count for count in whole]


def _deal(counts: list[int]) -> Int[np.ndarray, "P"]:
  """The source of every index of one period."""
  # A source has one sample allowed at most, as each must be given before the
  # next is released: numbers of samples by priority are all that is compared.
  period, slack = sum(counts), 2 * len(counts) - 2
  dtype = np.min_scalar_type(len(counts))
  if not slack:
    return np.zeros(period, dtype)
  sources = np.repeat(np.arange(len(counts)), counts)
  samples = ragged.ramp(np.array(counts))
  # In units of 1/slack samples all times are integers over `spans`.
  spans = slack * np.array(counts)[sources]
  releases = -(-period * (1 + slack * samples) // spans)
  deadlines, parts = np.divmod(period * (slack - 1 + slack * samples), spans)
  # Two parts differ by 1 / (slack * count * count) or are equal: quotients in
  # double precision keep their order, as the period is at most MAX_PERIOD.
  by_deadline = np.lexsort((sources, parts / spans, deadlines))
  del deadlines, parts, spans, samples
  priority = np.empty(period, np.int64)
  priority[by_deadline] = np.arange(period)
  by_release = np.argsort(releases, kind="stable")
  released = np.searchsorted(
    releases[by_release], np.arange(1, period + 1), "right"
  )
  del releases
  return sources[by_deadline[_serve(priority[by_release], released)]].astype(
    dtype
  )


def _serve(
  waiting: Int[np.ndarray, "P"], released: Int[np.ndarray, "P"]
) -> Int[np.ndarray, "P"]:
  """Takes the first of those in the queue, once for each index.

  Args:
    waiting: priorities, in the order of their release.
    released: how many are released by each index.

  Returns:
    The priority taken at each index.
  """
  taken = np.empty(len(waiting), np.int64)
  queue: list[int] = []
  push, pop, exchange = heapq.heappush, heapq.heappop, heapq.heappushpop
  position = 0
  # In blocks: Python's integers take ten times the room of NumPy's.
  for first in range(0, len(waiting), _BLOCK):
    until = released[first : first + _BLOCK].tolist()
    ready = iter(waiting[position : until[-1]].tolist())
    block = []
    for count in until:
      if count == position:
        block.append(pop(queue))
        continue
      while count > position + 1:
        push(queue, next(ready))
        position += 1
      block.append(exchange(queue, next(ready)))
      position += 1
    taken[first : first + _BLOCK] = block
  return taken
