"""Where the MFU's denominator is from."""

from unittest import mock

from absl.testing import absltest
import jax

from train import hardware


class HardwareTest(absltest.TestCase):
  def test_cpu_is_measured(self):
    peak = hardware.peak("float32")
    self.assertIn("measured float32 matmul", peak.source)
    self.assertBetween(peak.flops, 1e9, 1e14)

  def _on(self, kind, count):
    device = mock.Mock(platform="tpu", device_kind=kind)
    with (
      mock.patch.object(jax, "devices", return_value=[device] * count),
      mock.patch.object(jax, "device_count", return_value=count),
    ):
      return hardware.peak("bfloat16")

  def test_published_peaks_add_up(self):
    self.assertEqual(self._on("TPU v6 lite", 256).flops, 256 * 918e12)
    self.assertIn("TPU v5 lite", self._on("TPU v5 lite", 1).source)

  def test_unknown_device_is_said_to_be_unknown(self):
    peak = self._on("TPU v99", 4)
    self.assertEqual(peak.flops, 0.0)
    self.assertIn("unknown device 'TPU v99'", peak.source)


if __name__ == "__main__":
  absltest.main()
