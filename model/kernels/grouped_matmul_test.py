import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import grouped_matmul

_M, _D, _F = 96, 12, 20
# Uneven, with empty groups at both ends; exactly all rows; none at all.
_SIZES = {
  "uneven": (0, 41, 1, 0, 16, 30, 0),
  "full": (17, 16, 15, 31, 1, 2, 14),
  "empty": (0, 0, 0, 0, 0, 0, 0),
}


@functools.partial(jax.jit, static_argnums=4)
def value_and_gradients(x, weight, sizes, cotangent, implementation):
  def product(x, weight):
    return grouped_matmul.grouped_matmul(
      x, weight, sizes, implementation=implementation
    )

  out, vjp = jax.vjp(product, x, weight)
  return out, *vjp(cotangent)


def inputs(dtype="float32"):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (_M, _D), dtype)
  weight = jax.random.normal(keys[1], (7, _D, _F))
  cotangent = jax.random.normal(keys[2], (_M, _F), dtype)
  return x, weight, cotangent


def expected(x, weight, sizes, cotangent):
  """Value and gradients, group by group in float64."""
  x, weight, cotangent = (
    np.asarray(a, np.float64) for a in (x, weight, cotangent)
  )
  out, d_x = np.zeros(cotangent.shape), np.zeros(x.shape)
  d_weight = np.zeros(weight.shape)
  start = 0
  for group, size in enumerate(sizes):
    rows = slice(start, start + size)
    out[rows] = x[rows] @ weight[group]
    d_x[rows] = cotangent[rows] @ weight[group].T
    d_weight[group] = x[rows].T @ cotangent[rows]
    start += size
  return out, d_x, d_weight


class GroupedMatmulTest(parameterized.TestCase):
  @parameterized.product(
    implementation=("reference", "blocks", "ragged"), sizes=tuple(_SIZES)
  )
  def test_value_and_gradient(self, implementation, sizes):
    x, weight, cotangent = inputs()
    sizes = _SIZES[sizes]
    got = value_and_gradients(
      x, weight, jnp.array(sizes), cotangent, implementation
    )
    for a, b in zip(got, expected(x, weight, sizes, cotangent), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  def test_batched_is_the_case_of_equal_groups(self):
    x, weight, cotangent = inputs()
    x, cotangent = x[:84], cotangent[:84]
    sizes = (12,) * 7
    got = value_and_gradients(x, weight, jnp.array(sizes), cotangent, "batched")
    for a, b in zip(got, expected(x, weight, sizes, cotangent), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  def test_weight_gradients_of_bfloat16_are_summed_in_float32(self):
    x, weight, cotangent = inputs("bfloat16")
    sizes = (96, 0, 0, 0, 0, 0, 0)
    out, d_x, d_weight = value_and_gradients(
      x, weight, jnp.array(sizes), cotangent, "blocks"
    )
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertEqual(d_x.dtype, jnp.bfloat16)
    self.assertEqual(d_weight.dtype, weight.dtype)
    wanted = expected(x, weight, sizes, cotangent)[2]
    np.testing.assert_allclose(d_weight, wanted, rtol=1e-5, atol=1e-5)

  def test_rows_after_the_groups_do_not_matter(self):
    x, weight, cotangent = inputs()
    sizes = _SIZES["uneven"]
    total = sum(sizes)
    got = value_and_gradients(
      x.at[total:].set(jnp.nan),
      weight,
      jnp.array(sizes),
      cotangent.at[total:].set(jnp.inf),
      "blocks",
    )
    for a, b in zip(got, expected(x, weight, sizes, cotangent), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  def test_blocks_cover_each_row_of_a_group_once(self):
    sizes = _SIZES["uneven"]
    plan = grouped_matmul.make_blocks(jnp.array(sizes), _M)
    groups = np.full(_M + plan.rows, -1)
    for i in range(int(plan.count)):
      start, end = int(plan.start_of[i]), int(plan.end_of[i])
      rows = slice(start, min(start + plan.rows, end))
      self.assertTrue((groups[rows] == -1).all())
      groups[rows] = int(plan.group_of[i])
    np.testing.assert_array_equal(
      groups[: sum(sizes)], np.repeat(np.arange(7), sizes)
    )
    self.assertTrue((groups[sum(sizes) :] == -1).all())


if __name__ == "__main__":
  absltest.main()
