"""Names of slices; what libtpu says of them is //train:reports_test's."""

from absl.testing import absltest
from absl.testing import parameterized

from train import hardware
from train import topology


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(
    ("v5e-1", "1x1", 1),
    ("v5e-256", "16x16", 256),
    ("v6e-32", "4x8", 32),
    ("v5p-8", "2x2x1", 4),
    ("v5p-128", "4x4x4", 64),
    ("7x-8", "2x2x1", 8),
    ("7x-128", "4x4x4", 128),
    ("v5p:4x4x12", "4x4x12", 192),
    ("v6e:32x32", "32x32", 1024),
  )
  def test_names(self, name, shape, num_devices):
    parsed = topology.parse(name)
    self.assertEqual(parsed.shape, shape)
    self.assertEqual(parsed.num_devices, num_devices)

  @parameterized.parameters(
    ("v6e-250", "v6e-256"),
    ("v5e-12", "v5e-8, v5e-16"),
    ("v5p-7", "v5p-8"),
    ("v6e-", "v6e-1"),
    ("trillium-256", "v5e, v6e, v5p, 7x"),
    ("v6e:4x4x4", "chips along 2 axes"),
    ("v5p:4x0x4", "chips along 3 axes"),
  )
  def test_refuses_with_the_nearest(self, name, hint):
    with self.assertRaisesRegex(ValueError, f"--topology={name}.*{hint}"):
      topology.parse(name)

  def test_peaks_are_those_of_mfu(self):
    for generation in topology.GENERATIONS.values():
      self.assertEqual(
        generation.peak_flops, hardware.BF16_PEAK[generation.device_kind]
      )


if __name__ == "__main__":
  absltest.main()
