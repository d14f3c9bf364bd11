from absl.testing import absltest
import numpy as np

from data import ragged


class RaggedTest(absltest.TestCase):
  def test_running_sum(self):
    # Lengths are often int32, their sum is not.
    lengths = np.array([2**31 - 1, 0, 5], np.int32)
    expected = [0, 2**31 - 1, 2**31 - 1, 2**31 + 4]
    self.assertEqual(ragged.running_sum(lengths).tolist(), expected)
    self.assertEqual(ragged.running_sum([]).tolist(), [0])

  def test_ramp(self):
    got = ragged.ramp(np.array([3, 0, 1, 2]))
    self.assertEqual(got.tolist(), [0, 1, 2, 0, 0, 1])


if __name__ == "__main__":
  absltest.main()
