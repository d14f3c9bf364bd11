from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
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


if __name__ == "__main__":
  absltest.main()
