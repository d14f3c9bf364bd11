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

import numpy as np

MAX_PERIOD = 1_000_000


class Blend:
  """A weighted mixture of sources.

  Args:
    weights: positive, any scale. A float counts as the decimal it prints as.

  Attributes:
    counts: samples of each source in one period.
    period: samples after which the deal repeats.
  """

  def __init__(self, weights: collections.abc.Sequence[float | int | str]):
    self.counts = _integer_weights(weights)
    self.period = sum(self.counts)
    self._order = np.array(list(_deal(self.counts)), np.int64)
    self._rank = np.empty(self.period, np.int64)
    for source, count in enumerate(self.counts):
      self._rank[self._order == source] = np.arange(count)

  def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source of each global index, and how many samples it gave before."""
    cycle, place = np.divmod(np.asarray(indices, np.int64), self.period)
    sources = self._order[place]
    samples = cycle * np.array(self.counts)[sources] + self._rank[place]
    return sources, samples


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
      f" {sum(integers)} samples; write them with fewer digits, so that it is"
      f" at most {MAX_PERIOD} (they need not sum to 1)"
    )
  return integers


def _deal(counts: list[int]) -> collections.abc.Iterator[int]:
  """The source of every index of one period."""
  period, slack = sum(counts), 2 * len(counts) - 2
  if not slack:
    yield from [0] * period
    return

  # Times are in units of 1/slack samples, so that all are integers over counts.
  def release(source: int, sample: int) -> int:
    """First index (1-based) at which the sample may be given."""
    return -(-period * (1 + slack * sample) // (slack * counts[source]))

  def deadline(source: int, sample: int) -> fractions.Fraction:
    time = period * (slack - 1 + slack * sample)
    return fractions.Fraction(time, slack * counts[source])

  waiting = [(release(source, 0), source, 0) for source in range(len(counts))]
  heapq.heapify(waiting)
  allowed: list[tuple[fractions.Fraction, int, int]] = []
  for index in range(1, period + 1):
    while waiting and waiting[0][0] <= index:
      _, source, sample = heapq.heappop(waiting)
      heapq.heappush(allowed, (deadline(source, sample), source, sample))
    _, source, sample = heapq.heappop(allowed)
    yield source
    if sample + 1 < counts[source]:
      heapq.heappush(waiting, (release(source, sample + 1), source, sample + 1))
