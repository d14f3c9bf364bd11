from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention

_IMPLEMENTATIONS = ("reference", "blockwise", "dot_product")
# (N, K): multi-head, grouped-query, multi-query.
_HEADS = ((4, 4), (4, 2), (3, 1))
# One block, and three of which the last holds one row.
_LENGTHS = (5, 257)


def definition(q, k, v, segment_ids):
  """Attention one query at a time, in float64."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  segment_ids = np.asarray(segment_ids)
  out = np.zeros_like(q)
  group = q.shape[2] // k.shape[2]
  for b, t, n in np.ndindex(q.shape[:3]):
    seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
    scores = k[b, seen, n // group] @ q[b, t, n] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
  return out


def inputs(length, heads=(4, 2), *, dtype="float32", batch=2, head_dim=8):
  """Random q, k, v and cotangent, and three segments per row."""
  rng = np.random.default_rng(length)
  num_heads, num_kv_heads = heads
  arrays = [
    jnp.asarray(rng.normal(size=(batch, length, num, head_dim)), dtype)
    for num in (num_heads, num_kv_heads, num_kv_heads, num_heads)
  ]
  ends = np.sort(rng.integers(0, length, size=(batch, 2, 1)), axis=1)
  segment_ids = 1 + (np.arange(length) >= ends).sum(1)
  return *arrays, jnp.asarray(segment_ids)


def attend(implementation, segment_ids):
  def function(q, k, v):
    return attention.attend(
      q, k, v, segment_ids=segment_ids, implementation=implementation
    )

  return jax.jit(function)


def with_gradients(implementation, segment_ids):
  """(q, k, v, cotangent) -> output and the gradients of q, k and v."""

  @jax.jit
  def function(q, k, v, cotangent):
    out, vjp = jax.vjp(attend(implementation, segment_ids), q, k, v)
    return out, *vjp(cotangent)

  return function


class AttentionTest(parameterized.TestCase):
  @parameterized.product(implementation=_IMPLEMENTATIONS, heads=_HEADS)
  def test_equals_the_definition(self, implementation, heads):
    q, k, v, _, segment_ids = inputs(140, heads, batch=1)
    np.testing.assert_allclose(
      attend(implementation, segment_ids)(q, k, v),
      definition(q, k, v, segment_ids),
      atol=2e-6,
    )

  @parameterized.product(
    implementation=("blockwise", "dot_product"), heads=_HEADS, length=_LENGTHS
  )
  def test_equals_the_reference(self, implementation, heads, length):
    *args, segment_ids = inputs(length, heads)
    wanted = with_gradients("reference", segment_ids)(*args)
    got = with_gradients(implementation, segment_ids)(*args)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  @parameterized.product(implementation=_IMPLEMENTATIONS, length=(5, 257))
  def test_bfloat16(self, implementation, length):
    *args, segment_ids = inputs(length, dtype="bfloat16")
    exact = [a.astype(jnp.float32) for a in args]
    wanted = with_gradients("reference", segment_ids)(*exact)
    got = with_gradients(implementation, segment_ids)(*args)
    for a, b in zip(got, wanted, strict=True):
      self.assertEqual(a.dtype, jnp.bfloat16)
      # Weights, scores and results are rounded to 8 bits each.
      np.testing.assert_allclose(
        a.astype(jnp.float32), b, atol=2**-5 * float(jnp.abs(b).max())
      )

  @parameterized.product(implementation=_IMPLEMENTATIONS, length=(9, 257))
  def test_later_tokens_change_nothing(self, implementation, length):
    q, k, v, _, _ = inputs(length)
    function = attend(implementation, jnp.ones((2, length), int))
    before = function(q, k, v)
    for changed in (length - 1, length // 2, 1):
      after = function(
        q.at[:, changed].add(100.0),
        k.at[:, changed].add(100.0),
        v.at[:, changed].add(100.0),
      )
      np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
      self.assertGreater(float(jnp.abs(after - before)[:, changed:].max()), 1.0)

  @parameterized.product(implementation=_IMPLEMENTATIONS, length=(9, 257))
  def test_other_segments_change_nothing(self, implementation, length):
    q, k, v, _, _ = inputs(length)
    segment_ids = 1 + (jnp.arange(length) >= length // 2).astype(int)
    segment_ids = jnp.stack([segment_ids, segment_ids])
    function = attend(implementation, segment_ids)
    before = function(q, k, v)
    after = function(q, k.at[:, 1].add(100.0), v.at[:, 1].add(100.0))
    other = np.asarray(segment_ids != 1)
    np.testing.assert_array_equal(after[other], before[other])
    self.assertGreater(float(jnp.abs(after - before).max()), 1.0)

  @parameterized.parameters(*_IMPLEMENTATIONS)
  def test_no_gradient_from_what_is_not_seen(self, implementation):
    length = 140
    q, k, v, _, _ = inputs(length)
    segment_ids = jnp.stack([1 + (jnp.arange(length) >= 70).astype(int)] * 2)

    def loss(q, k, v):
      out = attend(implementation, segment_ids)(q, k, v)
      return jnp.sum(jnp.square(out[:, 100]))

    for gradient in jax.grad(loss, argnums=(0, 1, 2))(q, k, v):
      np.testing.assert_array_equal(gradient[:, :70], 0)
      np.testing.assert_array_equal(gradient[:, 101:], 0)
      self.assertGreater(float(jnp.abs(gradient[:, 100]).max()), 0)

  @parameterized.parameters(*_IMPLEMENTATIONS)
  def test_large_scores_stay_finite(self, implementation):
    q, *args, segment_ids = inputs(140)
    for array in with_gradients(implementation, segment_ids)(1e4 * q, *args):
      self.assertTrue(bool(jnp.isfinite(array).all()))

  def test_auto(self):
    q, k, v, _, segment_ids = inputs(140)
    np.testing.assert_array_equal(
      attend("auto", segment_ids)(q, k, v),
      attend("blockwise", segment_ids)(q, k, v),
    )


if __name__ == "__main__":
  absltest.main()
