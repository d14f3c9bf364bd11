"""What is said where devices count their memory, and where they do not."""

from unittest import mock

from absl.testing import absltest
import jax

from train import memory


class MemoryTest(absltest.TestCase):
  def test_host(self):
    usage = memory.usage()
    self.assertEqual(set(usage), {"memory/host_peak"})
    # An interpreter with JAX in it is at least this large.
    self.assertBetween(usage["memory/host_peak"], 0.02, 64)

  def test_fullest_device(self):
    def device(**stats):
      return mock.Mock(memory_stats=lambda: stats)

    devices = [
      device(
        bytes_in_use=2**30, peak_bytes_in_use=3 * 2**30, bytes_limit=2**33
      ),
      device(bytes_in_use=2**31, peak_bytes_in_use=2**31, bytes_limit=2**33),
    ]
    with mock.patch.object(jax, "local_devices", return_value=devices):
      usage = memory.usage()
    self.assertEqual(usage["memory/device"], 2)
    self.assertEqual(usage["memory/device_peak"], 3)
    self.assertEqual(usage["memory/device_limit"], 8)


if __name__ == "__main__":
  absltest.main()
