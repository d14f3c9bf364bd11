"""The platform a program is compiled for."""

from unittest import mock

from absl.testing import absltest
import jax

from model import target


def _platform_under(device_kind):
  """Where a mesh of such devices is set."""
  mesh = mock.Mock(empty=False)
  mesh.abstract_device.device_kind = device_kind
  with mock.patch.object(jax.sharding, "get_abstract_mesh", return_value=mesh):
    return target.platform()


class PlatformTest(absltest.TestCase):
  def test_without_a_mesh_it_is_the_default(self):
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
      self.assertEqual(target.platform(), "gpu")

  def test_tpus_that_are_not_here(self):
    self.assertEqual(_platform_under("TPU v6 lite"), "tpu")
    self.assertEqual(_platform_under("TPU7x"), "tpu")

  def test_other_meshes_are_of_the_default(self):
    self.assertEqual(_platform_under("cpu"), jax.default_backend())


if __name__ == "__main__":
  absltest.main()
