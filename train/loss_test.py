"""The fused loss equals its definition, and never holds all logits."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from train import loss

_B, _T, _D, _V = 2, 12, 16, 37


def _inputs(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (_B, _T, _D)).astype(dtype)
  head = jax.random.normal(keys[1], (_D, _V))
  targets = jax.random.randint(keys[2], (_B, _T), 0, _V)
  weights = jnp.ones((_B, _T)).at[0, 3:5].set(0.0).at[1, 0].set(0.5)
  return hidden, head, targets, weights


def _value_and_grads(function, hidden, head, targets, weights, **settings):
  def scalar(hidden, head):
    sums = function(hidden, head, targets, weights, **settings)
    return 0.1 * sums.loss, sums

  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))(
    hidden, head
  )


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    {"num_chunks": 1},
    {"num_chunks": 3, "z_loss_weight": 1e-2},
    {"num_chunks": 12, "z_loss_weight": 1e-2},
    # Logits reach 14: half of them bend.
    {"num_chunks": 3, "logit_softcap": 4.0},
    {"num_chunks": 12, "logit_softcap": 4.0, "z_loss_weight": 1e-2},
  )
  def test_equals_reference_in_value_and_gradient(self, num_chunks, **settings):
    inputs = _inputs()
    expected = _value_and_grads(loss.reference, *inputs, **settings)
    actual = _value_and_grads(
      loss.cross_entropy, *inputs, num_chunks=num_chunks, **settings
    )
    for a, b in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

  def test_without_gradients_gives_the_same_sums(self):
    inputs = _inputs()
    settings: dict[str, Any] = {"z_loss_weight": 1e-3, "logit_softcap": 4.0}
    expected = loss.reference(*inputs, **settings)
    actual = loss.cross_entropy(*inputs, num_chunks=4, **settings)
    for a, b in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5)

  def test_bfloat16_is_close_to_float32(self):
    inputs = _inputs(jnp.bfloat16)
    _, (d_hidden, d_head) = _value_and_grads(
      loss.cross_entropy, *inputs, num_chunks=4
    )
    hidden, *rest = inputs
    _, (exact_hidden, exact_head) = _value_and_grads(
      loss.reference, hidden.astype(jnp.float32), *rest
    )
    self.assertEqual(d_hidden.dtype, jnp.bfloat16)
    self.assertEqual(d_head.dtype, jnp.float32)
    # bfloat16 has 8 bits: 2^-8 of the largest entry, a few times over.
    for got, exact in ((d_hidden, exact_hidden), (d_head, exact_head)):
      error = jnp.max(jnp.abs(got.astype(jnp.float32) - exact))
      self.assertLess(float(error / jnp.max(jnp.abs(exact))), 4 * 2**-8)

  def test_is_the_entropy_of_a_known_distribution(self):
    # All logits equal: every token costs log V, and log Z is log V.
    _, head, targets, weights = _inputs()
    sums = loss.cross_entropy(
      jnp.zeros((_B, _T, _D)), head, targets, weights, num_chunks=2
    )
    total = float(weights.sum())
    self.assertAlmostEqual(float(sums.weight), total)
    self.assertAlmostEqual(float(sums.nll), total * np.log(_V), places=3)
    self.assertAlmostEqual(
      float(sums.z_loss), total * np.log(_V) ** 2, places=2
    )

  def test_softcap_bounds_what_a_wrong_answer_costs(self):
    hidden, head, targets, weights = _inputs()
    capped = loss.reference(
      1e3 * hidden, head, targets, weights, logit_softcap=2.0
    )
    # All logits lie in [-2, 2]: a token costs log V + 4 at most.
    mean = float(capped.nll / capped.weight)
    self.assertLess(mean, np.log(_V) + 4)
    free = loss.reference(1e3 * hidden, head, targets, weights)
    self.assertGreater(float(free.nll / free.weight), 1e3)

  def test_never_holds_all_logits(self):
    inputs = _inputs()

    def largest(function, **settings):
      def grads(*inputs):
        return _value_and_grads(function, *inputs, **settings)

      return max(_sizes(jax.make_jaxpr(grads)(*inputs).jaxpr))

    self.assertEqual(largest(loss.reference), _B * _T * _V)
    self.assertLess(largest(loss.cross_entropy, num_chunks=6), _B * _T * _V)

  @parameterized.parameters(
    (8, 512, 1024, 4),
    (2, 512, 1024, 1),
    (3, 512, 1024, 2),
    (1, 12, 5, 3),
    (100, 12, 5, 12),
  )
  def test_chooses_the_fewest_chunks(self, rows, seq_len, max_tokens, expected):
    self.assertEqual(
      loss.choose_num_chunks(rows=rows, seq_len=seq_len, max_tokens=max_tokens),
      expected,
    )


def _sizes(jaxpr):
  """Sizes of all arrays that a jaxpr computes, inner jaxprs included."""
  for equation in jaxpr.eqns:
    yield from (var.aval.size for var in equation.outvars)
    for parameter in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(parameter, "jaxpr", parameter)
      if hasattr(inner, "eqns"):
        yield from _sizes(inner)


if __name__ == "__main__":
  absltest.main()
