import dataclasses
import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import linear
from model.kernels import grouped_mlp

_N, _K, _D, _E, _F = 40, 3, 12, 5, 8


def swiglu(gate, up):
  return jax.nn.silu(gate) * up


def inputs(bias, dtype="float32"):
  """x, experts, the chosen experts, their weights, a cotangent."""
  keys = jax.random.split(jax.random.key(0), 9)
  normal = jax.random.normal
  experts = grouped_mlp.Experts(
    gate=normal(keys[0], (_E, _D, _F)),
    up=normal(keys[1], (_E, _D, _F)),
    down=normal(keys[2], (_E, _F, _D)),
    gate_bias=normal(keys[3], (_E, _F)) if bias else None,
    up_bias=normal(keys[4], (_E, _F)) if bias else None,
    down_bias=normal(keys[5], (_E, _D)) if bias else None,
  )
  # Expert 3 is nobody's, expert 0 is everybody's but the last token's, whose
  # last choice is none.
  rng = np.random.default_rng(0)
  others = np.array([rng.permutation([1, 2, 4])[:2] for _ in range(_N)])
  chosen = np.concatenate([np.zeros((_N, 1), int), others], axis=1)
  chosen[-1] = [1, 4, _E]
  weights = jax.random.uniform(keys[6], (_N, _K))
  x = normal(keys[7], (_N, _D), dtype)
  return x, experts, jnp.array(chosen), weights, normal(keys[8], x.shape, dtype)


def _in_8_bits(x):
  """Each row in steps of 1/127 of its largest number."""
  step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
  return jnp.round(x / step) * step


def every_expert(x, experts, chosen, weights, rounded=lambda x: x):
  """The definition: every expert on every token, weighed."""
  out, x = 0.0, rounded(x)
  for e in range(_E):
    gate, up = x @ experts.gate[e], x @ experts.up[e]
    if experts.gate_bias is not None:
      gate, up = gate + experts.gate_bias[e], up + experts.up_bias[e]
    y = rounded(swiglu(gate, up)) @ experts.down[e]
    if experts.down_bias is not None:
      y += experts.down_bias[e]
    out += jnp.sum(weights * (chosen == e), axis=1)[:, None] * y
  return out


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(implementation, x, experts, chosen, weights, cotangent):
  def mlp(x, experts, weights):
    if implementation == "every expert":
      return every_expert(x, experts, chosen, weights)
    rows = grouped_mlp.make_rows(
      chosen, weights, num_experts=_E, num_rows=_N * _K - 1
    )
    return grouped_mlp.grouped_mlp(
      x, experts, rows, activation=swiglu, implementation=implementation
    )

  out, vjp = jax.vjp(mlp, x, experts, weights)
  return out, *vjp(cotangent)


class GroupedMlpTest(parameterized.TestCase):
  @parameterized.product(
    implementation=("blocks", "reference", "ragged"), bias=(False, True)
  )
  def test_value_and_gradient(self, implementation, bias):
    args = inputs(bias)
    got = value_and_gradients(implementation, *args)
    wanted = value_and_gradients("every expert", *args)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
      got,
      wanted,
    )

  @parameterized.product(
    implementation=("blocks", "reference", "ragged"), bias=(False, True)
  )
  def test_int8_is_the_dequantized_experts(self, implementation, bias):
    x, experts, chosen, weights, _ = inputs(bias)
    names = ("gate", "up", "down")
    stored = {
      name: linear.quantize(getattr(experts, name), summed=(1,), stacked=1)
      for name in names
    }
    dequantized = {
      name: jnp.swapaxes(w.values * w.scale[..., None], 1, 2)
      for name, w in stored.items()
    }

    @jax.jit
    def mlp(x, experts):
      rows = grouped_mlp.make_rows(
        chosen, weights, num_experts=_E, num_rows=_N * _K - 1
      )
      return grouped_mlp.grouped_mlp(
        x, experts, rows, activation=swiglu, implementation=implementation
      )

    changes: dict[str, Any] = stored
    got = mlp(x, dataclasses.replace(experts, **changes))
    wanted = every_expert(
      x,
      dataclasses.replace(experts, **dequantized),
      chosen,
      weights,
      # On CPUs what a block multiplies is in 8 bits too.
      rounded=_in_8_bits if implementation == "blocks" else lambda x: x,
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)

  def test_bfloat16_is_rounded_no_more_than_its_products(self):
    x, experts, chosen, weights, cotangent = inputs(True, "bfloat16")
    got = value_and_gradients("blocks", x, experts, chosen, weights, cotangent)
    wanted = value_and_gradients(
      "every expert",
      x.astype(jnp.float32),
      experts,
      chosen,
      weights,
      cotangent.astype(jnp.float32),
    )
    self.assertEqual(got[0].dtype, jnp.bfloat16)
    self.assertEqual(got[2].gate.dtype, jnp.float32)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a.astype(jnp.float32), b, atol=2**-6 * np.abs(b).max()
      ),
      got,
      wanted,
    )

  def test_rows_are_stable(self):
    rows = grouped_mlp.make_rows(
      jnp.array([[2, 0], [0, 3], [2, 1], [0, 2]]),
      jnp.arange(8.0).reshape(4, 2),
      num_experts=3,
    )
    np.testing.assert_array_equal(rows.group_sizes, [3, 1, 3])
    # Expert 0: tokens 0, 1, 3; expert 1: 2; expert 2: 0, 2, 3; none: 1.
    np.testing.assert_array_equal(rows.token, [0, 1, 3, 2, 0, 2, 3, 1])
    np.testing.assert_array_equal(rows.weight, [1, 2, 6, 5, 0, 4, 7, 3])
    np.testing.assert_array_equal(rows.row, [[4, 0], [1, 7], [5, 3], [2, 6]])

  def test_blocks_never_hold_all_rows_of_the_width_of_the_model(self):
    args = inputs(True)
    text = str(
      jax.make_jaxpr(value_and_gradients, static_argnums=0)("blocks", *args)
    )
    # The loops hold a block of 16 rows of D = 12 or of F = 8.
    self.assertIn("f32[16,12]", text)
    rows = _N * _K - 1
    for num_rows in (rows, rows + 16):
      self.assertNotIn(f"f32[{num_rows},12]", text)


if __name__ == "__main__":
  absltest.main()
