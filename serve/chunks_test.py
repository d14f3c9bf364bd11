from absl.testing import absltest
from absl.testing import parameterized

from serve import chunks


def _padded(num, least):
  return max(least, 1 << (num - 1).bit_length())


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    # One text: whole, or in two steps if that is less.
    ([5], 256, [5]),
    ([44], 256, [44]),
    ([140], 256, [128]),
    ([200], 256, [200]),
    ([300], 256, [256]),
    ([300], 300, [256]),
    # Several: as many as fit.
    ([20] * 8, 256, [20] * 8),
    ([20] * 9, 256, [20] * 8 + [0]),
    ([16] * 3, 33, [16, 16, 0]),
    # A long one is cut so as to come along.
    ([60, 300, 60], 256, [60, 64, 60]),
    # Short ones wait, rather than be padded, but for rows that are padding.
    ([100, 5, 5, 5], 256, [100, 0, 0, 0]),
    ([60, 60, 5, 60, 5], 256, [60, 60, 5, 60, 0]),
  )
  def test_plan(self, remaining, budget, expected):
    self.assertEqual(chunks.plan(remaining, budget, step_tokens=32), expected)

  def test_steps_may_cost_more_than_padding(self):
    self.assertEqual(chunks.plan([140], 256, step_tokens=256), [140])

  @parameterized.product(
    first=[1, 16, 17, 63, 64, 65, 127, 250],
    others=[(), (1,), (64, 3, 40), (20,) * 9, (500, 500, 500)],
    budget=[16, 48, 256],
  )
  def test_fits(self, first, others, budget):
    remaining = [first, *others]
    planned = chunks.plan(remaining, budget, step_tokens=32)
    self.assertGreater(planned[0], 0)
    for size, left in zip(planned, remaining, strict=True):
      self.assertLessEqual(size, left)
    num_rows = sum(size > 0 for size in planned)
    shape = _padded(num_rows, 1), _padded(max(planned), chunks.MIN_TOKENS)
    self.assertLessEqual(shape[0] * shape[1], budget)


if __name__ == "__main__":
  absltest.main()
