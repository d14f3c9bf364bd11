from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from model import kv_cache

_SLOTS = 6


def make(segment_ids, lengths):
  """A cache of one layer that remembers each token's number."""
  rows = len(lengths)
  return kv_cache.Cache(
    layers={"group_0": {"block_0": {"k": jnp.zeros((rows, _SLOTS))}}},
    segment_ids=jnp.asarray(segment_ids, jnp.int32),
    lengths=jnp.asarray(lengths, jnp.int32),
  )


@jax.jit
def call(cache, numbers, segment_ids=None):
  """What a model does with a cache, its layers left out."""
  span = kv_cache.span(
    cache, positions=None, segment_ids=segment_ids, shape=numbers.shape
  )
  old = cache.layers["group_0"]["block_0"]["k"]
  new = {"k": kv_cache.write(old, numbers, span.start)}
  return span, kv_cache.advance(cache, span, {"group_0": {"block_0": new}})


class KvCacheTest(parameterized.TestCase):
  @parameterized.parameters("float32", "bfloat16")
  def test_writes_at_each_rows_start(self, dtype):
    new = 1.0 + jnp.arange(2 * 3 * 2).reshape(2, 3, 2)
    starts = np.array([0, 2])
    slots = jnp.full((2, _SLOTS, 2), -1, dtype)
    wanted = np.full(slots.shape, -1.0)
    for row, start in enumerate(starts):
      wanted[row, start : start + 3] = new[row]
    got = kv_cache.write(slots, new, jnp.asarray(starts))
    self.assertEqual(got.dtype, dtype)
    np.testing.assert_array_equal(got.astype(jnp.float32), wanted)

  def test_one_start_is_every_rows(self):
    new = jnp.ones((2, 3))
    got = kv_cache.write(jnp.zeros((2, _SLOTS)), new, 1)
    np.testing.assert_array_equal(got, [[0, 1, 1, 1, 0, 0]] * 2)

  def test_drops_what_lies_beyond_the_last_slot(self):
    new = jnp.array([[1, 2, 3], [4, 5, 6]])
    got = kv_cache.write(jnp.zeros((2, 4)), new, jnp.array([2, 4]))
    np.testing.assert_array_equal(got, [[0, 0, 1, 2], [0, 0, 0, 0]])

  def test_span_without_a_cache(self):
    span = kv_cache.span(None, positions=None, segment_ids=None, shape=(2, 3))
    np.testing.assert_array_equal(span.positions, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(span.segment_ids, np.ones((2, 3)))
    np.testing.assert_array_equal(span.key_segment_ids, np.ones((2, 3)))
    self.assertEqual(span.start, 0)

  def test_span_takes_what_is_given(self):
    positions, segment_ids = jnp.array([[5, 6, 0]]), jnp.array([[1, 1, 2]])
    span = kv_cache.span(
      make([[1, 1, 0, 0, 0, 0]], [2]),
      positions=positions,
      segment_ids=segment_ids,
      shape=(1, 3),
    )
    np.testing.assert_array_equal(span.positions, positions)
    np.testing.assert_array_equal(span.segment_ids, segment_ids)
    np.testing.assert_array_equal(span.key_segment_ids, [[1, 1, 1, 1, 2, 0]])
    np.testing.assert_array_equal(span.start, [2])

  def test_rows_of_unequal_lengths_grow_without_gaps(self):
    cache = make(np.zeros((3, _SLOTS)), [0, 0, 0])
    # Prompts of 2, 3 and 0 tokens, padded; then one token, padding in row 1.
    prompt = jnp.array([[1, 2, -1], [1, 2, 3], [-1, -1, -1]])
    span, cache = call(cache, prompt, (prompt > 0).astype(jnp.int32))
    np.testing.assert_array_equal(cache.lengths, [2, 3, 0])
    np.testing.assert_array_equal(span.key_segment_ids, cache.segment_ids)
    span, cache = call(
      cache, jnp.array([[3], [-1], [1]]), jnp.array([[1], [0], [1]])
    )
    np.testing.assert_array_equal(span.positions, [[2], [3], [0]])
    np.testing.assert_array_equal(cache.lengths, [3, 3, 1])
    span, cache = call(cache, jnp.array([[4], [4], [2]]))
    np.testing.assert_array_equal(span.start, [3, 3, 1])
    # Each row counts its own tokens; padding has been written over, or is free.
    wanted = [[1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 0, 0], [1, 2, 0, 0, 0, 0]]
    occupied = cache.segment_ids > 0
    np.testing.assert_array_equal(cache.lengths, [4, 4, 2])
    np.testing.assert_array_equal(occupied, np.array(wanted) > 0)
    numbers = cache.layers["group_0"]["block_0"]["k"]
    np.testing.assert_array_equal(jnp.where(occupied, numbers, 0), wanted)


_PAGE, _NUM_PAGES = 4, 6


def paged(*, start, tables=None, rows=None, length=None):
  """A paged cache without layers."""
  start = jnp.asarray(start, jnp.int32)
  zeros = jnp.zeros_like(start)
  return kv_cache.PagedCache(
    layers={},
    tables={} if tables is None else tables,
    start=start,
    rows=zeros if rows is None else jnp.asarray(rows),
    length=zeros if length is None else jnp.asarray(length),
  )


def span_of(cache, segment_ids):
  shape = (len(segment_ids), len(segment_ids[0]))
  return kv_cache.span(
    cache, positions=None, segment_ids=jnp.asarray(segment_ids), shape=shape
  )


class PagesTest(parameterized.TestCase):
  def test_span_and_advance(self):
    cache = paged(start=[3, 0], length=[9, 1], rows=[2, 0])
    # All tokens of a row are of one segment.
    span = span_of(cache, [[2, 2, 0], [1, 3, 3]])
    np.testing.assert_array_equal(span.positions, [[3, 4, 5], [0, 1, 2]])
    np.testing.assert_array_equal(span.segment_ids, [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(span.length, [9, 1])
    layers = {"group_0": {"block_0": {}}}
    cache = kv_cache.advance(cache, span, layers)
    self.assertEqual(cache.layers, layers)
    np.testing.assert_array_equal(cache.start, [5, 3])
    np.testing.assert_array_equal(cache.length, [9, 3])
    np.testing.assert_array_equal(cache.rows, [2, 0])

  def test_without_pages_no_length_is_known(self):
    span = kv_cache.span(None, positions=None, segment_ids=None, shape=(1, 1))
    self.assertIsNone(span.length)

  @parameterized.parameters(0, 7)
  def test_writes_where_the_table_says(self, window):
    tables = {window: jnp.array([[5, 2], [3, 0], [4, 1]])}
    cache = paged(start=[2, 1, 8], tables=tables)
    span = span_of(cache, [[1, 1, 1], [1, 0, 0], [1, 1, 1]])
    pages = {
      "k_PKSH": jnp.full((_NUM_PAGES, 2, _PAGE, 3), -1.0),
      "scale_PS": jnp.full((_NUM_PAGES, _PAGE), -1, jnp.bfloat16),
    }
    new = {
      "k_PKSH": np.arange(3 * 3 * 2 * 3).reshape(3, 3, 2, 3),
      "scale_PS": np.arange(9).reshape(3, 3),
    }
    wanted = {name: np.array(x, np.float32) for name, x in pages.items()}
    # Row 0 goes on into its second page; row 2 is beyond its table.
    for row, t, page, slot in (
      (0, 0, 5, 2),
      (0, 1, 5, 3),
      (0, 2, 2, 0),
      (1, 0, 3, 1),
    ):
      wanted["k_PKSH"][page, :, slot] = new["k_PKSH"][row, t]
      wanted["scale_PS"][page, slot] = new["scale_PS"][row, t]
    got = kv_cache.write_pages(
      pages,
      {name: jnp.asarray(x) for name, x in new.items()},
      span=span,
      window=window or None,
    )
    for name, x in got.items():
      self.assertEqual(x.dtype, pages[name].dtype)
      # Of the null page nobody asks what it holds.
      np.testing.assert_array_equal(x[1:].astype(jnp.float32), wanted[name][1:])

  def test_one_token(self):
    cache = paged(start=[5], tables={0: jnp.array([[1, 3]])})
    got = kv_cache.write_pages(
      {"key_PSH": jnp.zeros((_NUM_PAGES, _PAGE, 2))},
      {"key_PSH": jnp.ones((1, 1, 2))},
      span=span_of(cache, [[1]]),
    )["key_PSH"]
    np.testing.assert_array_equal(got[3, 1], [1, 1])
    np.testing.assert_array_equal(jnp.sum(got[1:]), 2)

  @parameterized.parameters(([2, 1],), ([3],))
  def test_rows(self, rows):
    cache = paged(start=[0] * len(rows), rows=rows)
    span = span_of(cache, [[1]] * len(rows))
    states = {"memory_BNHH": jnp.arange(4.0)[:, None, None, None]}
    got = kv_cache.read_rows(states, span=span)["memory_BNHH"]
    np.testing.assert_array_equal(got[:, 0, 0, 0], rows)
    states = kv_cache.write_rows(states, {"memory_BNHH": got + 10}, span=span)
    wanted = np.arange(4.0)
    wanted[rows] += 10
    got = states["memory_BNHH"][1:, 0, 0, 0]
    np.testing.assert_array_equal(got, wanted[1:])

  def test_quantize(self):
    x = np.random.default_rng(0).normal(size=(5, 3, 16)).astype(np.float32)
    x[0, 0] = 0
    values, scale = kv_cache.quantize(jnp.asarray(x))
    self.assertEqual(values.dtype, jnp.int8)
    self.assertEqual(jnp.abs(values).max(), 127)
    error = np.abs(values * scale[..., None] - x).max(axis=-1)
    np.testing.assert_array_less(error, np.asarray(scale) / 2 + 1e-6)

  def test_shardings(self):
    mesh = jax.sharding.AbstractMesh((2, 2), ("expert", "tensor"))
    layers = {
      "k_PKSH": jax.ShapeDtypeStruct((1, 8, 4, 16, 8), "float32"),
      "k_scale_PKS": jax.ShapeDtypeStruct((1, 8, 3, 16), "float32"),
      "key_PSH": jax.ShapeDtypeStruct((1, 8, 16, 8), "float32"),
      "memory_BNHH": jax.ShapeDtypeStruct((1, 8, 4, 16, 8), "float32"),
    }
    got = kv_cache.page_shardings(layers, mesh)
    specs = {name: sharding.spec for name, sharding in got.items()}
    self.assertEqual(
      specs,
      {
        "k_PKSH": P(None, None, "tensor"),
        # Three heads do not divide by two.
        "k_scale_PKS": P(),
        "key_PSH": P(),
        "memory_BNHH": P(None, None, "tensor"),
      },
    )


if __name__ == "__main__":
  absltest.main()
