from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model.kernels import attention_layout

_ROWS = ("data", "fsdp", "expert")


class AttentionLayoutTest(parameterized.TestCase):
  @parameterized.parameters(
    # B, N, K; rows, heads, kv_heads; heads of a device, heads of k made.
    (4, 8, 4, _ROWS, ("tensor",), ("tensor",), 4, 4),
    # Three key/value heads are repeated for six queries.
    (4, 6, 3, _ROWS, ("tensor",), ("tensor",), 3, 6),
    # One stays one: every device has it.
    (4, 4, 1, _ROWS, ("tensor",), None, 2, 1),
    (3, 3, 3, None, None, None, 3, 3),
  )
  def test_split(self, rows, n, k, rows_on, heads, kv_heads, num_local, made):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=4, tensor=2), jax.devices()
    )
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(rows, 2, n, 1)))
    keys = jnp.asarray(rng.normal(size=(rows, 2, k, 1)))
    with jax.set_mesh(mesh):
      got_k, got_v, layout = attention_layout.split(q, keys, 2 * keys)
    self.assertEqual(
      layout,
      attention_layout.Layout(
        rows=rows_on,
        heads=heads,
        kv_heads=kv_heads,
        num_local_heads=num_local,
      ),
    )
    self.assertEqual(got_k.shape[2], made)
    repeated = np.repeat(keys, made // k, axis=2)
    np.testing.assert_array_equal(got_k, repeated)
    np.testing.assert_array_equal(got_v, 2 * repeated)


if __name__ == "__main__":
  absltest.main()
