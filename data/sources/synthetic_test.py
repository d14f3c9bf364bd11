from absl.testing import absltest
import numpy as np

from data.sources import synthetic


class SyntheticSourceTest(absltest.TestCase):
  def source(self, seed=3):
    return synthetic.SyntheticSource(
      vocab_size=50, num_tokens=1 << 40, seed=seed
    )

  def test_tokens_depend_on_place_and_seed_only(self):
    whole = self.source().read(0, 1000)
    np.testing.assert_array_equal(self.source().read(300, 700), whole[300:700])
    self.assertFalse(np.array_equal(self.source(4).read(0, 1000), whole))

  def test_tokens_are_uniform_and_independent(self):
    tokens = self.source().read(10**11, 10**11 + 500_000)
    counts = np.bincount(tokens, minlength=50)
    self.assertLen(counts, 50)
    self.assertLess(np.abs(counts - 10_000).max(), 5 * 100)
    pairs = np.bincount(tokens[1:] * 50 + tokens[:-1], minlength=2500)
    self.assertLess(np.abs(pairs - 200).max(), 6 * np.sqrt(200))


if __name__ == "__main__":
  absltest.main()
