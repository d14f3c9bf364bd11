from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model import zigzag


def make_mesh(**axes):
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices())


class ZigzagTest(parameterized.TestCase):
  def test_chunks(self):
    self.assertEqual(zigzag.chunks(1), [0, 1])
    self.assertEqual(zigzag.chunks(2), [0, 3, 1, 2])
    self.assertEqual(zigzag.chunks(4), [0, 7, 1, 6, 2, 5, 3, 4])

  def test_places(self):
    np.testing.assert_array_equal(zigzag.places(8, 2), [0, 1, 6, 7, 2, 3, 4, 5])
    np.testing.assert_array_equal(
      zigzag.order_of(8, 2, "natural"), np.arange(8)
    )
    np.testing.assert_array_equal(
      zigzag.order_of(8, 2, "zigzag"), zigzag.places(8, 2)
    )

  @parameterized.parameters(2, 4, 8)
  def test_shards_have_equal_work(self, num_shards):
    # A token at place t sees t + 1 keys.
    seen = zigzag.places(64, num_shards).reshape(num_shards, -1) + 1
    self.assertLen(set(seen.sum(axis=1).tolist()), 1)

  def test_divides(self):
    self.assertTrue(zigzag.divides(16, 4))
    self.assertFalse(zigzag.divides(12, 4))

  @parameterized.parameters(
    ({"context": 8}, 4),
    ({"fsdp": 2, "context": 4}, 4),
    ({"fsdp": 2, "context": 2, "tensor": 2}, 4),
    # Rows that do not divide.
    ({"fsdp": 4, "context": 2}, 3),
    ({"fsdp": 8}, 8),
  )
  def test_undoes_apply(self, axes, rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 32, 6)).astype(np.float32)
    cotangent = rng.normal(size=x.shape).astype(np.float32)

    @jax.jit
    def both(x, cotangent):
      num_shards = sharding.num_context_shards()

      def there_and_back(x):
        x = zigzag.apply(x, num_shards) if num_shards > 1 else x
        return zigzag.undo(sharding.constrain(x, "BTD"))

      out, pull_back = jax.vjp(there_and_back, x)
      return out, *pull_back(cotangent)

    with jax.set_mesh(make_mesh(**axes)):
      out, gradient = both(jnp.asarray(x), jnp.asarray(cotangent))
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(gradient, cotangent)


if __name__ == "__main__":
  absltest.main()
