import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention_blockwise
from model.kernels import attention_cases
from model.kernels import attention_reference

# Softcap and sinks are in the last of each.
_CASES = {
  name: attention_cases.SELF[name]
  for name in ("segments_multi_head", "window_multi_query", "all")
} | attention_cases.CACHE


def gradients(attend):
  """(q, k, v) -> the gradients of all three; one segment."""

  def loss(q, k, v):
    ids = jnp.ones(q.shape[:2], jnp.int32)
    return attend(
      q,
      k,
      v,
      q_segment_ids=ids,
      k_segment_ids=ids,
      q_start=0,
      scale=1.0,
      window=None,
      softcap=None,
      sinks_N=None,
    ).sum()

  return jax.jit(jax.grad(loss, (0, 1, 2)))


def lower(attend, length):
  q = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
  k = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
  return gradients(attend).lower(q, k, k)


def temp_bytes(attend, length):
  memory = lower(attend, length).compile().memory_analysis()
  assert memory is not None
  return memory.temp_size_in_bytes


class AttentionBlockwiseTest(parameterized.TestCase):
  # 5 blocks, the last of one row; in a cache, 9 of keys, the last of 2.
  @parameterized.named_parameters(*_CASES.items())
  def test_equals_the_reference(self, case):
    given = attention_cases.operands(case, 33)
    wanted = attention_cases.value_and_gradients(
      functools.partial(attention_reference.attend, **case.options), given
    )
    got = attention_cases.value_and_gradients(
      functools.partial(attention_blockwise.attend, **case.options, block=8),
      given,
    )
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  # The reference's path, one block shorter than its limit, and two blocks.
  @parameterized.parameters(5, 70, 130)
  def test_chosen_blocks(self, length):
    case = attention_cases.SELF["segments_multi_head"]
    given = attention_cases.operands(case, length)
    wanted = attention_cases.value_and_gradients(
      functools.partial(attention_reference.attend, **case.options), given
    )
    got = attention_cases.value_and_gradients(
      functools.partial(attention_blockwise.attend, **case.options), given
    )
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  def test_hidden_blocks_are_not_read(self):
    """What no query sees may be NaN, if whole blocks of it are skipped."""
    case = attention_cases.Case(window=8)
    given = attention_cases.operands(case, 32)
    q, k, v, _ = given.arrays
    attend = functools.partial(
      attention_blockwise.attend,
      k_segment_ids=given.k_segment_ids,
      sinks_N=None,
      **case.options,
      block=8,
    )
    whole = attend(q, k, v, q_segment_ids=given.q_segment_ids, q_start=0)
    # Queries 16 to 23 see keys 9 to 23: blocks 1 and 2.
    hidden = jnp.arange(32) // 8 % 3 == 0
    piece = attend(
      q[:, 16:24],
      jnp.where(hidden[:, None, None], jnp.nan, k),
      jnp.where(hidden[:, None, None], jnp.nan, v),
      q_segment_ids=given.q_segment_ids[:, 16:24],
      q_start=16,
    )
    np.testing.assert_allclose(piece, whole[:, 16:24], atol=1e-6)

  def test_memory_grows_with_the_length_alone(self):
    sizes = [temp_bytes(attention_blockwise.attend, n) for n in (4096, 8192)]
    self.assertLess(sizes[1], 2.2 * sizes[0])
    reference = temp_bytes(attention_reference.attend, 4096)
    self.assertLess(sizes[0], reference / 20)

  def test_the_program_does_not_grow(self):
    lines = [
      len(lower(attention_blockwise.attend, length).as_text().splitlines())
      for length in (256, 65_536)
    ]
    self.assertEqual(*lines)


if __name__ == "__main__":
  absltest.main()
