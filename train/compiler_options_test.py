"""Which devices have compiler options of their own."""

from absl.testing import absltest

from train import compiler_options
from train import topology


class ForDeviceTest(absltest.TestCase):
  def test_by_device(self):
    self.assertEmpty(compiler_options.for_device("cpu"))
    kind = topology.GENERATIONS["v6e"].device_kind
    self.assertNotEmpty(compiler_options.for_device(kind))

  def test_is_the_callers_own(self):
    compiler_options.for_device("TPU v6 lite").clear()
    self.assertNotEmpty(compiler_options.for_device("TPU v6 lite"))


if __name__ == "__main__":
  absltest.main()
