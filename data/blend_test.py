import fractions

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import blend

_WEIGHTS = (
  [1],
  [1, 1, 1],
  [0.7, 0.2, 0.1],
  [0.4, 0.1, 0.3, 0.2],
  [0.05, 0.9, 0.05],
  [0.61, 0.2, 0.19],
  [1.009, 1],
  [0.0159, 0.0141, 0.97],
  [1, 1000],
  ["1/3", "2/3"],
)


def reference(weights, length):
  """Tijdeman's rule as he states it, in fractions, one sample at a time."""
  weights = [fractions.Fraction(str(weight)) for weight in weights]
  shares = [weight / sum(weights) for weight in weights]
  given = [0] * len(shares)
  order = []
  slack = fractions.Fraction(1, max(1, 2 * len(shares) - 2))
  for index in range(1, length + 1):
    lacking = [index * s - n for s, n in zip(shares, given, strict=True)]
    _, source = min(
      ((1 - slack - lack) / share, source)
      for source, (lack, share) in enumerate(zip(lacking, shares, strict=True))
      if lack >= slack or len(shares) == 1
    )
    given[source] += 1
    order.append(source)
  return order


def random_weights():
  rng = np.random.default_rng(0)
  for num_sources in (2, 3, 5, 12, 40):
    for _ in range(4):
      yield rng.integers(1, 200, num_sources).tolist()


class BlendTest(parameterized.TestCase):
  @parameterized.parameters(*[(weights,) for weights in _WEIGHTS])
  def test_equals_the_reference(self, weights):
    sources, _ = blend.Blend(weights).locate(np.arange(2500))
    self.assertEqual(sources.tolist(), reference(weights, 2500))

  @parameterized.parameters(
    *[(weights,) for weights in (*_WEIGHTS[:-1], *random_weights())]
  )
  def test_every_prefix_is_within_the_bound(self, weights):
    mixture = blend.Blend(weights)
    length = 2 * mixture.period + 7
    sources, _ = mixture.locate(np.arange(length))
    # Compared in integers: |given * period - k * count| <= bound * period.
    given = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    ideal = np.arange(1, length + 1)[:, None] * np.array(mixture.counts)
    error = np.abs(given * mixture.period - ideal).max()
    slack = max(1, 2 * len(weights) - 2)
    self.assertLessEqual(error * slack, (slack - 1) * mixture.period)

  @parameterized.parameters(*[(weights,) for weights in _WEIGHTS])
  def test_samples_of_a_source_are_numbered_without_gaps(self, weights):
    sources, samples = blend.Blend(weights).locate(np.arange(3000))
    for source in range(len(weights)):
      mine = samples[sources == source]
      np.testing.assert_array_equal(mine, np.arange(len(mine)))

  def test_weights_are_exact(self):
    self.assertEqual(blend.Blend([1.009, 1]).counts, [1009, 1000])
    self.assertEqual(blend.Blend([0.1, 0.2]).counts, [1, 2])
    self.assertEqual(blend.Blend([30, 70]).counts, [3, 7])

  def test_far_indices_cost_nothing(self):
    mixture = blend.Blend([0.7, 0.2, 0.1])
    sources, samples = mixture.locate(np.arange(10**15, 10**15 + 10))
    near, _ = mixture.locate(np.arange(10))
    np.testing.assert_array_equal(sources, near)
    self.assertEqual(samples[sources == 0][0], 7 * 10**14)

  @parameterized.parameters(
    ([], "empty"),
    ([1, 0], "must be positive"),
    ([1, -0.5], "must be positive"),
    ([1 / 3, 1.0], r"close to these: \[250000, 750000\]"),
  )
  def test_refuses(self, weights, message):
    with self.assertRaisesRegex(ValueError, message):
      blend.Blend(weights)


if __name__ == "__main__":
  absltest.main()
