import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import linear
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

  @parameterized.product(
    implementation=("reference", "blocks", "ragged", "batched"),
    dtype=("float32", "bfloat16"),
  )
  def test_int8_is_the_dequantized_weight(self, implementation, dtype):
    x, weight, _ = inputs(dtype)
    sizes = _SIZES["uneven"]
    if implementation == "batched":
      x, sizes = x[:84], (12,) * 7
    x = x.at[sum(sizes) :].set(jnp.nan)
    stored = linear.quantize(weight, summed=(1,), stacked=1)
    got = jax.jit(
      functools.partial(
        grouped_matmul.grouped_matmul, implementation=implementation
      )
    )(x, stored, jnp.array(sizes))
    self.assertEqual(got.dtype, x.dtype)
    dequantized = jnp.swapaxes(stored.values * stored.scale[..., None], 1, 2)
    wanted, *_ = expected(x, dequantized, sizes, np.zeros(got.shape))
    limit = 1e-5 if dtype == "float32" else 2**-7 * np.abs(wanted).max()
    if implementation == "blocks":
      # On CPUs each number of a row is off by at most half a step.
      half = np.abs(np.asarray(x, np.float64)).max(1, keepdims=True) / 254
      row_sums, *_ = expected(
        np.ones(x.shape), np.abs(dequantized), sizes, np.zeros(got.shape)
      )
      limit = limit + np.nan_to_num(half) * row_sums
    error = np.abs(np.asarray(got, np.float64) - wanted)
    np.testing.assert_array_less(error, limit + 1e-12)

  @parameterized.parameters((8, 64, 2), (256, 64, 8), (4096, 64, 32), (1, 8, 2))
  def test_blocks_of_few_rows_are_narrow(self, num_rows, num_groups, rows):
    sizes = jnp.zeros(num_groups, int).at[1].set(num_rows)
    plan = grouped_matmul.make_blocks(sizes, num_rows)
    self.assertEqual(plan.rows, rows)
    self.assertEqual(int(plan.count), -(-num_rows // rows))

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
