from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import short_conv

_ROWS, _LENGTH, _HEADS, _DIM, _WIDTH = 2, 9, 3, 4, 4


def definition(x, weight, segment_ids, before, before_segment_ids):
  """Token by token."""
  tokens = jnp.concatenate([before, x], axis=1)
  ids = np.concatenate([before_segment_ids, segment_ids], axis=1)
  rows = []
  for b in range(x.shape[0]):
    row = []
    for t in range(before.shape[1], tokens.shape[1]):
      seen = [i for i in range(_WIDTH) if ids[b, t - i] == ids[b, t]]
      mixed = sum(weight[..., _WIDTH - 1 - i] * tokens[b, t - i] for i in seen)
      row.append(mixed * jax.nn.sigmoid(mixed))
    rows.append(jnp.stack(row))
  return jnp.stack(rows)


class ShortConvTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)

    def normal(*shape):
      return jnp.asarray(rng.normal(size=shape), jnp.float32)

    self.x = normal(_ROWS, _LENGTH, _HEADS, _DIM)
    self.weight = normal(_HEADS, _DIM, _WIDTH)
    self.before = normal(_ROWS, _WIDTH - 1, _HEADS, _DIM)
    # Row 0 goes on and begins a document; row 1 begins, padded at both ends.
    self.ids = np.array(
      [[1, 1, 1, 1, 2, 2, 2, 2, 2], [0, 0] + 5 * [1] + [0, 0]]
    )
    self.before_ids = np.array([[3, 1, 1], [-1, -1, -1]])

  def convolve(self, x, weight, before):
    return short_conv.convolve(
      x,
      weight,
      segment_ids=jnp.asarray(self.ids),
      before=before,
      before_segment_ids=jnp.asarray(self.before_ids),
    )

  def test_equals_the_definition_in_value_and_gradient(self):
    def with_gradients(function):
      out, vjp = jax.vjp(function, self.x, self.weight, self.before)
      return out, *vjp(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    actual = jax.jit(lambda: with_gradients(self.convolve))()
    wanted = jax.jit(
      lambda: with_gradients(
        lambda x, weight, before: definition(
          x, weight, self.ids, before, self.before_ids
        )
      )
    )()
    for a, b in zip(actual, wanted, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  def test_a_width_of_one_sees_the_token_alone(self):
    out = short_conv.convolve(
      self.x,
      self.weight[..., :1],
      segment_ids=jnp.asarray(self.ids),
      before=self.before[:, :0],
      before_segment_ids=jnp.asarray(self.before_ids[:, :0]),
    )
    wanted = jax.nn.silu(self.x * self.weight[..., 0])
    np.testing.assert_allclose(out, wanted, rtol=1e-6)

  def test_carries_the_last_tokens(self):
    carried = short_conv.carry(self.x, self.before, num_new=jnp.array([1, 7]))
    np.testing.assert_array_equal(carried[0, :2], self.before[0, 1:])
    np.testing.assert_array_equal(carried[0, 2], self.x[0, 0])
    np.testing.assert_array_equal(carried[1], self.x[1, 4:7])

  def test_computes_in_float32_and_keeps_the_dtype(self):
    x = self.x.astype(jnp.bfloat16)
    out = self.convolve(x, self.weight, self.before)
    self.assertEqual(out.dtype, jnp.bfloat16)
    wanted = self.convolve(
      x.astype(jnp.float32),
      self.weight,
      self.before.astype(jnp.bfloat16).astype(jnp.float32),
    )
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=1e-2)


if __name__ == "__main__":
  absltest.main()
