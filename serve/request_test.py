from absl.testing import absltest
from absl.testing import parameterized

from serve import request


class SamplingTest(parameterized.TestCase):
  def test_says_nothing(self):
    self.assertFalse(request.Sampling(temperature=0.5).has_penalties)

  @parameterized.parameters(
    {"repetition_penalty": 1.1},
    {"presence_penalty": -0.5},
    {"frequency_penalty": 0.1},
  )
  def test_has_penalties(self, **fields):
    self.assertTrue(request.Sampling(**fields).has_penalties)


if __name__ == "__main__":
  absltest.main()
