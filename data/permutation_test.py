import hashlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import permutation


class PermutationTest(parameterized.TestCase):
  @parameterized.parameters(
    *range(1, 40), 255, 256, 257, 1023, 1025, 65535, 65536, 65537, 262145
  )
  def test_is_a_bijection(self, length):
    shuffle = permutation.Permutation(length, key=("a", 1))
    elements = shuffle(np.arange(length))
    np.testing.assert_array_equal(np.sort(elements), np.arange(length))

  def test_one_position_at_a_time_gives_the_same_order(self):
    shuffle = permutation.Permutation(1000, key=("a", 1))
    one_by_one = [int(shuffle(np.array([i]))[0]) for i in range(1000)]
    self.assertEqual(one_by_one, shuffle(np.arange(1000)).tolist())

  def test_the_order_never_changes(self):
    # A new order would reshuffle runs that are half done.
    order = permutation.Permutation(100_000, key=("chunks", 0, "x", 3))
    digest = hashlib.sha256(order(np.arange(100_000)).astype("<i8")).hexdigest()
    self.assertEqual(digest[:16], "f0c16ca18aaa33e4")

  def test_keys_have_orders_of_their_own(self):
    # Among them seed s, epoch e and seed s + 1, epoch e - 1.
    keys = [(seed, epoch) for seed in range(6) for epoch in range(6)]
    keys += [("1", 2), (1, "2"), ("12",), (12,)]
    positions = np.arange(500)
    orders = {
      tuple(permutation.Permutation(500, key=key)(positions)) for key in keys
    }
    self.assertLen(orders, len(keys))

  def test_scatters_evenly(self):
    # Where 20,000 neighbours go: ten equal bins, each within five deviations.
    elements = permutation.Permutation(10**9, key=("x",))(np.arange(20_000))
    bins = np.bincount(elements // 10**8, minlength=10)
    self.assertLess(np.abs(bins - 2000).max(), 5 * np.sqrt(2000))

  def test_works_at_great_lengths(self):
    length = 10**17 + 3
    positions = np.array([0, 1, length // 2, length - 1])
    elements = permutation.Permutation(length, key=("x",))(positions)
    self.assertLen(set(elements.tolist()), 4)
    self.assertTrue(((elements >= 0) & (elements < length)).all())

  @parameterized.parameters(-1, 5)
  def test_refuses_positions_outside(self, position):
    shuffle = permutation.Permutation(5, key=("x",))
    with self.assertRaisesRegex(ValueError, r"must be in \[0, 5\)"):
      shuffle(np.array([position]))

  def test_refuses_an_empty_length(self):
    with self.assertRaisesRegex(ValueError, "length is 0"):
      permutation.Permutation(0, key=("x",))


if __name__ == "__main__":
  absltest.main()
