from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from serve import noise

_exponential = jax.jit(noise.exponential, static_argnames="vocab_size")


class NoiseTest(parameterized.TestCase):
  # An odd vocabulary: the last tokens do not fill a vector register.
  @parameterized.parameters(8, 101, 1000)
  def test_is_bitwise_the_same_in_any_batch(self, vocab_size):
    seeds = np.arange(9, dtype=np.uint32) * 7919
    positions = np.arange(9, dtype=np.int32) * 31
    together = _exponential(seeds, positions, vocab_size=vocab_size)
    for rows in ([0], [1, 8], [4, 3, 2, 1]):
      alone = _exponential(seeds[rows], positions[rows], vocab_size=vocab_size)
      np.testing.assert_array_equal(alone, together[np.array(rows)])

  def test_stays_what_it_is(self):
    # Texts with a seed can be had again from a later version.
    values = _exponential(
      np.array([0, 2**32 - 1], np.uint32), np.array([0, 7]), vocab_size=3
    )
    expected = [
      [0.9461486, 1.1255889, 0.1717167],
      [0.6722921, 0.1216730, 0.5303214],
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)

  def test_is_exponential_and_unrelated(self):
    seeds = np.repeat(np.arange(16, dtype=np.uint32), 16)
    positions = np.tile(np.arange(16, dtype=np.int32), 16)
    values = _exponential(seeds, positions, vocab_size=4096)
    values = np.asarray(values, np.float64)
    self.assertGreater(values.min(), 0)
    levels = np.sort(1 - np.exp(-values.ravel()))
    uniform = (np.arange(levels.size) + 0.5) / levels.size
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in 1000 times.
    self.assertLess(np.abs(levels - uniform).max(), 1.95 / levels.size**0.5)
    levels = np.exp(-values).reshape(16, 16, 4096) - 0.5
    for axis in range(3):  # The next seed, position, token.
      following = np.roll(levels, 1, axis=axis)
      correlation = np.mean(levels * following) * 12
      self.assertLess(abs(correlation), 4 / levels.size**0.5)

  def test_the_smallest_are_as_small_as_they_should_be(self):
    # They decide among many tokens, so 32 bits must be there. The smallest of n
    # is Exp(n).
    seeds = np.arange(64, dtype=np.uint32)
    values = _exponential(seeds, np.zeros(64, np.int32), vocab_size=2**18)
    smallest = np.asarray(values, np.float64).min(axis=1) * 2**18
    self.assertLess(abs(smallest.mean() - 1), 3 / 64**0.5)
    self.assertLen(set(smallest.tolist()), 64)


if __name__ == "__main__":
  absltest.main()
