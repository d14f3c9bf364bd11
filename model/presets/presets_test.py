from absl.testing import absltest
from absl.testing import parameterized

from model import flops
from model.presets import kanana
from model.presets import small


class PresetsTest(parameterized.TestCase):
  @parameterized.parameters(
    (kanana.v1_5_2b, "kanana-1.5-2.1b", 2_086_984_704, 2.1),
    (kanana.v1_5_8b, "kanana-1.5-8b", 8_030_285_824, 8.0),
    (kanana.v1_5_9_8b, "kanana-1.5-9.8b", 9_775_181_824, 9.8),
  )
  def test_published_sizes(self, make, name, total, billions):
    config = make()
    count = flops.count_parameters(config)
    self.assertEqual(config.name, name)
    self.assertEqual(count.total, total)
    self.assertEqual(round(count.total / 1e9, 1), billions)

  def test_the_9_8b_is_the_8b_with_more_layers(self):
    small_one, large_one = kanana.v1_5_8b(), kanana.v1_5_9_8b()
    self.assertEqual(small_one.groups[0].pattern, large_one.groups[0].pattern)
    self.assertEqual((small_one.num_layers, large_one.num_layers), (32, 40))

  @parameterized.parameters(
    (small.m1, "small-1m", 1e6),
    (small.m10, "small-10m", 1e7),
    (small.m100, "small-100m", 1e8),
  )
  def test_small_ones_are_near_their_names(self, make, name, wanted):
    config = make()
    self.assertEqual(config.name, name)
    total = flops.count_parameters(config).total
    self.assertAlmostEqual(total / wanted, 1, delta=0.15)

  @parameterized.parameters(small.m1, small.m10, small.m100)
  def test_vocabulary_is_free(self, make):
    a, b = (make(vocab_size=v) for v in (1000, 3000))
    difference = (
      flops.count_parameters(b).total - flops.count_parameters(a).total
    )
    self.assertEqual(difference, 2000 * a.dim)


if __name__ == "__main__":
  absltest.main()
