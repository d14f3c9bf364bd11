"""Attention over pages equals attention over the same keys in a row.

Dims as attention_paged.py.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention_paged
from model.kernels import attention_reference

_PAGE, _PIECES, _HEAD_DIM = 4, 9, 8
# Tokens before the queries: none, within a page, at a page's end, many; the
# last row is padding.
_START = np.array([0, 5, 8, 29, 0], np.int32)
_NUM_NEW = np.array([3, 1, 2, 3, 0], np.int32)
_ROWS = len(_START)


def operands(*, length, num_heads, num_kv_heads, value_dim, seed=0):
  """q, contiguous k and v [B, S, K, H], and the segments of the queries."""
  rng = np.random.default_rng(seed)
  slots = _PIECES * _PAGE
  q = rng.normal(size=(_ROWS, length, num_heads, _HEAD_DIM))
  k = rng.normal(size=(_ROWS, slots, num_kv_heads, _HEAD_DIM))
  v = rng.normal(size=(_ROWS, slots, num_kv_heads, value_dim))
  num_new = np.minimum(_NUM_NEW, length)
  segment_ids = (np.arange(length) < num_new[:, None]).astype(np.int32)
  end = _START + num_new
  return *(x.astype(np.float32) for x in (q, k, v)), segment_ids, end


def paged(x, end, *, fill=np.nan, seed=1):
  """Pages of a contiguous [B, S, K, H], and the table; `fill` is elsewhere.

  One head has no dim.
  """
  rng = np.random.default_rng(seed)
  pages = np.full((_ROWS * _PIECES + 1, x.shape[2], _PAGE, x.shape[3]), fill)
  table = np.zeros((_ROWS, _PIECES), np.int32)
  free = list(rng.permutation(_ROWS * _PIECES) + 1)
  for row in range(_ROWS):
    for piece in range(-(-end[row] // _PAGE)):
      page = table[row, piece] = free.pop()
      for slot in range(min(_PAGE, end[row] - piece * _PAGE)):
        pages[page, :, slot] = x[row, piece * _PAGE + slot]
  if x.shape[2] == 1:
    pages = pages[:, 0]
  return pages.astype(np.float32), table


def quantized(pages):
  """int8 and scales of each slot and head."""
  scale = np.abs(pages).max(axis=-1) / 127
  with np.errstate(invalid="ignore", divide="ignore"):
    rounded = np.nan_to_num(np.round(pages / scale[..., None]))
  return rounded.astype(np.int8), scale.astype(np.float32)


@functools.partial(
  jax.jit,
  static_argnames=(
    "scale",
    "window",
    "softcap",
    "value_dim",
    "implementation",
    "block_size",
  ),
)
def attend(q, k, v, table, segment_ids, *, block_size=2 * _PAGE, **options):
  """In several steps of the loop."""
  return attention_paged.attend(
    q,
    k,
    v,
    table_BP=table,
    start_B=jnp.asarray(_START),
    q_segment_ids=segment_ids,
    block_size=block_size,
    **options,
  )


def wanted(q, k, v, segment_ids, end, *, window=None, softcap=None, sinks=None):
  """The definition over contiguous keys."""
  is_key = np.arange(k.shape[1]) < end[:, None]
  return attention_reference.attend(
    *map(jnp.asarray, (q, k, v)),
    q_segment_ids=segment_ids,
    k_segment_ids=jnp.where(is_key, 1, -1),
    q_start=jnp.asarray(_START),
    scale=0.4,
    window=window,
    softcap=softcap,
    sinks_N=sinks,
  )


class AttentionPagedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("one_query", 1, 4, 2, {}),
    ("chunk", 3, 4, 2, {}),
    ("multi_query_window", 3, 3, 1, {"window": 6}),
    ("short_window", 1, 2, 2, {"window": 2}),
    ("softcap", 1, 4, 2, {"softcap": 1.5}),
    ("sinks", 3, 4, 2, {"sinks": True}),
    ("all", 3, 6, 2, {"window": 9, "softcap": 1.5, "sinks": True}),
  )
  def test_equals_the_definition(self, length, heads, kv_heads, options):
    q, k, v, segment_ids, end = operands(
      length=length, num_heads=heads, num_kv_heads=kv_heads, value_dim=6
    )
    options = dict(options)
    sinks = None
    if options.pop("sinks", False):
      sinks = np.linspace(-1, 2, heads, dtype=np.float32)
    expected = wanted(q, k, v, segment_ids, end, sinks=sinks, **options)
    # What is in no text's part of a page is not a number.
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    got = attend(
      q,
      k_pages,
      v_pages,
      table,
      segment_ids,
      scale=0.4,
      sinks_N=sinks,
      **options,
    )
    np.testing.assert_allclose(got, expected, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(got)[segment_ids == 0], 0)
    gathered = attend(
      q,
      np.nan_to_num(k_pages),
      np.nan_to_num(v_pages),
      table,
      segment_ids,
      scale=0.4,
      sinks_N=sinks,
      implementation="reference",
      **options,
    )
    np.testing.assert_allclose(gathered, expected, atol=2e-6)

  @parameterized.parameters(1, 3)
  def test_pages_behind_a_window_may_be_forgotten(self, length):
    q, k, v, segment_ids, end = operands(
      length=length, num_heads=2, num_kv_heads=2, value_dim=6
    )
    window = 5
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    behind = np.maximum(_START - window + 1, 0) // _PAGE
    table = np.where(np.arange(_PIECES) < behind[:, None], 0, table)
    self.assertTrue((behind > 0).any())
    np.testing.assert_allclose(
      attend(q, k_pages, v_pages, table, segment_ids, scale=0.4, window=window),
      wanted(q, k, v, segment_ids, end, window=window),
      atol=2e-6,
    )

  @parameterized.parameters(1, 3)
  def test_values_that_are_features_of_the_keys(self, length):
    q, k, _, segment_ids, end = operands(
      length=length, num_heads=3, num_kv_heads=1, value_dim=5
    )
    expected = wanted(q, k, k[..., :5], segment_ids, end)
    pages, table = paged(k, end)
    options = {"scale": 0.4, "value_dim": 5}
    got = attend(q, pages, None, table, segment_ids, **options)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    # In 8 bits the two parts have a scale each.
    parts = [quantized(pages[..., :5]), quantized(pages[..., 5:])]
    values = np.concatenate([part for part, _ in parts], axis=-1)
    scales = np.stack([scale for _, scale in parts], axis=-1)
    scales = np.nan_to_num(scales)
    for implementation in ("auto", "reference"):
      rounded = attend(
        q,
        values,
        None,
        table,
        segment_ids,
        k_scales=scales,
        implementation=implementation,
        **options,
      )
      np.testing.assert_allclose(rounded, expected, atol=0.03)

  def test_int8(self):
    q, k, v, segment_ids, end = operands(
      length=3, num_heads=4, num_kv_heads=2, value_dim=6
    )
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    (k8, k_scale), (v8, v_scale) = quantized(k_pages), quantized(v_pages)
    scales = {"k_scales": k_scale, "v_scales": v_scale}
    got = attend(q, k8, v8, table, segment_ids, scale=0.4, **scales)
    expected = wanted(q, k, v, segment_ids, end)
    np.testing.assert_allclose(got, expected, atol=0.03)
    # It is the scales that make it so close.
    exact = attend(
      q,
      np.nan_to_num(k8 * k_scale[..., None]),
      np.nan_to_num(v8 * v_scale[..., None]),
      table,
      segment_ids,
      scale=0.4,
    )
    np.testing.assert_allclose(got, exact, atol=2e-6)

  def test_bfloat16(self):
    q, k, v, segment_ids, end = operands(
      length=1, num_heads=4, num_kv_heads=2, value_dim=6
    )
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    q, k_pages, v_pages = (
      jnp.asarray(x, jnp.bfloat16) for x in (q, k_pages, v_pages)
    )
    got = attend(q, k_pages, v_pages, table, segment_ids, scale=0.4)
    self.assertEqual(got.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      got.astype(jnp.float32), wanted(q, k, v, segment_ids, end), atol=0.03
    )

  def test_the_widths_of_table_and_block_do_not_matter(self):
    q, k, v, segment_ids, end = operands(
      length=1, num_heads=4, num_kv_heads=2, value_dim=6
    )
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    expected = wanted(q, k, v, segment_ids, end)
    wide = np.pad(table, ((0, 0), (0, 7)))
    got = attend(q, k_pages, v_pages, wide, segment_ids, scale=0.4)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for size in (1, 3 * _PAGE, 1000):
      got = attend(
        q, k_pages, v_pages, table, segment_ids, scale=0.4, block_size=size
      )
      np.testing.assert_allclose(got, expected, atol=2e-6)

  def test_all_rows_may_be_padding(self):
    q, k, v, segment_ids, end = operands(
      length=1, num_heads=4, num_kv_heads=2, value_dim=6
    )
    (k_pages, table), (v_pages, _) = paged(k, end), paged(v, end)
    got = attend(q, k_pages, v_pages, table, 0 * segment_ids, scale=0.4)
    np.testing.assert_array_equal(got, np.zeros(got.shape))


if __name__ == "__main__":
  absltest.main()
