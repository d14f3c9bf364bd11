import fractions

from absl.testing import absltest
import hypothesis
from hypothesis import strategies
import numpy as np

from data import weighted


def part(num_samples, weights, seq_len=8):
  return weighted.Part(
    num_samples=num_samples, seq_len=seq_len, weights=tuple(weights)
  )


def make(*parts, capacities=None, stop=False):
  """A mixture of sources with so many tokens; None: any number."""

  def capacity(source, seq_len, begin):
    if capacities is None or capacities[source] is None:
      return None
    return max(0, (capacities[source] - begin) // seq_len)

  return weighted.Weighted(parts, capacity=capacity, stop=stop)


def located(mixture, count):
  sources, samples = mixture.locate(np.arange(count))
  return list(zip(sources.tolist(), samples.tolist(), strict=True))


# Some sources rest, if not all of them.
_weights = strategies.integers(2, 100).flatmap(
  lambda n: strategies.lists(
    strategies.sampled_from([0, 0.1, 0.25, 1, 1.5, 3, 7]),
    min_size=n,
    max_size=n,
  ).filter(any)
)


class WeightedTest(absltest.TestCase):
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(weights=_weights, num_samples=strategies.integers(1, 700))
  def test_each_prefix_is_within_a_sample_of_its_share(
    self, weights, num_samples
  ):
    sources, _ = make(part(None, weights)).locate(np.arange(num_samples))
    given = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    counts = np.arange(1, num_samples + 1)
    for source, weight in enumerate(exact):
      share = weight / sum(exact)
      # |given - share * count| < 1, in integers.
      error = given[:, source] * share.denominator - share.numerator * counts
      self.assertLess(np.abs(error).max(), share.denominator)

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
    parts=strategies.lists(
      strategies.tuples(
        strategies.integers(0, 60),
        strategies.sampled_from([8, 8, 12]),
        strategies.lists(
          strategies.sampled_from([0, 1, 2, 5]), min_size=3, max_size=3
        ).filter(any),
      ),
      min_size=1,
      max_size=6,
    ),
    capacities=strategies.lists(
      strategies.none() | strategies.integers(0, 500), min_size=3, max_size=3
    ),
    stop=strategies.booleans(),
  )
  def test_samples_come_in_order_and_within_the_capacity(
    self, parts, capacities, stop
  ):
    mixture = make(
      *(part(count, weights, seq_len) for count, seq_len, weights in parts),
      capacities=capacities,
      stop=stop,
    )
    rows = located(mixture, mixture.num_rows)
    # In each section a source's samples are 0, 1, 2, ...
    firsts = [section.first for section in mixture.sections]
    tokens = [0, 0, 0]
    for section, end in zip(
      mixture.sections, [*firsts[1:], len(rows)], strict=True
    ):
      self.assertEqual(list(section.begins), tokens)
      for source in range(3):
        mine = [n for s, n in rows[section.first : end] if s == source]
        self.assertEqual(mine, list(range(len(mine))))
        tokens[source] += len(mine) * section.seq_len
        if section.limits is not None:
          self.assertEqual(section.limits[source], len(mine))
    for used, capacity in zip(tokens, capacities, strict=True):
      self.assertLessEqual(used, float("inf") if capacity is None else capacity)
    planned = sum(count for count, _, _ in parts)
    if mixture.ended_by is None:
      self.assertLen(rows, planned)
    else:
      self.assertLess(len(rows), planned)
    # What came before is counted right.
    for count in (0, len(rows) // 3, len(rows)):
      given = mixture.given(count)
      for number, first in enumerate(firsts):
        end = [*firsts, len(rows)][number + 1]
        mine = [
          source for source, _ in rows[first : max(first, min(end, count))]
        ]
        self.assertEqual(given[number], [mine.count(s) for s in range(3)])

  def test_later_parts_change_nothing_before_them(self):
    weights, other = (5, 2, 1), (1, 1, 9)
    alone = make(part(None, weights))
    first = make(part(41, weights), part(None, other))
    second = make(part(41, weights), part(30, other), part(None, weights, 16))
    self.assertEqual(located(first, 41), located(alone, 41))
    self.assertEqual(located(second, 71), located(first, 71))

  def test_a_source_goes_on_where_it_was(self):
    mixture = make(part(10, (1, 1)), part(10, (1, 0)), part(None, (1, 1)))
    mine = [n for source, n in located(mixture, 40) if source == 1]
    self.assertEqual(mine, list(range(15)))
    self.assertIsNone(mixture.num_rows)

  def test_stops_at_the_first_sample_that_is_missing(self):
    mixture = make(part(None, (2, 1)), capacities=[None, 80], stop=True)
    # 0 1 0 0 1 0: the eleventh of source 1 would be sample 31.
    self.assertEqual((mixture.num_rows, mixture.ended_by), (31, 1))
    self.assertEqual([n for s, n in located(mixture, 31) if s == 1][-1], 9)

  def test_goes_on_without_a_source_that_is_used_up(self):
    mixture = make(
      part(None, (2, 1, 1)), capacities=[None, 80, 160], stop=False
    )
    sources, _ = mixture.locate(np.arange(300))
    self.assertEqual(np.bincount(sources).tolist(), [270, 10, 20])
    # Then two of three are of source 0.
    middle = sources[45:60]
    self.assertEqual(np.bincount(middle).tolist(), [10, 0, 5])
    self.assertIsNone(mixture.num_rows)

  def test_ends_when_all_are_used_up(self):
    mixture = make(part(None, (2, 1)), capacities=[800, 80], stop=False)
    self.assertEqual((mixture.num_rows, mixture.ended_by), (110, 0))

  def test_far_samples_cost_nothing(self):
    mixture = make(part(10**15, (7, 2, 1)), part(None, (1, 1, 0)))
    sources, samples = mixture.locate(np.array([10**15 - 1, 10**15]))
    self.assertEqual(samples[0], [7, 2, 1][sources[0]] * 10**14 - 1)
    self.assertEqual(samples[1], [7, 2, 1][sources[1]] * 10**14)


if __name__ == "__main__":
  absltest.main()
