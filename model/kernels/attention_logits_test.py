"""Largest logits against all of them at once."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model import zigzag
from model.kernels import attention_logits
from model.kernels import attention_reference


class LargestTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    # Blocks of 64, then of 128.
    self.q = jnp.asarray(rng.normal(size=(2, 256, 4, 8)), jnp.float32)
    self.k = jnp.asarray(rng.normal(size=(2, 256, 2, 8)), jnp.float32)
    self.ids = jnp.asarray(
      [[1] * 100 + [2] * 156, [1] * 200 + [0] * 56], jnp.int32
    )

  def slow(self, window, length):
    q, k, ids = (x[:, :length] for x in (self.q, self.k, self.ids))
    seen = attention_reference.visible(ids, ids, window=window)
    seen &= ids[:, :, None] > 0
    keys = jnp.repeat(k, 2, axis=2)
    logits = 0.3 * jnp.einsum("BTNH,BSNH->BNTS", q, keys)
    return jnp.max(jnp.where(seen[:, None], logits, 0.0), axis=(0, 2, 3))

  @parameterized.parameters((None, 256), (5, 256), (None, 192))
  def test_equals_the_slow_way(self, window, length):
    got = jax.jit(
      lambda q, k, ids: attention_logits.largest(
        q, k, segment_ids=ids, scale=0.3, window=window
      )
    )(*(x[:, :length] for x in (self.q, self.k, self.ids)))
    np.testing.assert_allclose(got, self.slow(window, length), rtol=1e-5)

  def test_on_a_mesh_in_zigzag_order(self):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=2, context=2, tensor=2), jax.devices()
    )
    with jax.set_mesh(mesh):

      @jax.jit
      def largest(q, k, ids):
        q, k, ids = (zigzag.apply(x, 2) for x in (q, k, ids))
        return attention_logits.largest(
          sharding.constrain(q, "BTNH"),
          sharding.constrain(k, "BTKH"),
          segment_ids=ids,
          order="zigzag",
          scale=0.3,
          window=40,
        )

      got = largest(self.q, self.k, self.ids)
    np.testing.assert_allclose(got, self.slow(40, 256), rtol=1e-5)

  def test_has_no_gradient(self):
    grad = jax.grad(
      lambda q: jnp.sum(
        attention_logits.largest(q, self.k, segment_ids=self.ids, scale=1.0)
      )
    )(self.q)
    self.assertEqual(float(jnp.max(jnp.abs(grad))), 0.0)


if __name__ == "__main__":
  absltest.main()
