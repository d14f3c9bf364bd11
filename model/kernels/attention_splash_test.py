import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model.kernels import attention_cases
from model.kernels import attention_reference
from model.kernels import attention_splash


def splash(case, given, *, block=128, max_copies=4):
  """What value_and_gradients gives of the kernel, interpreted."""

  def attend(q, k, v, *, q_segment_ids, k_segment_ids, q_start, sinks_N):
    del k_segment_ids, q_start
    return attention_splash.attend(
      q,
      k,
      v,
      segment_ids=q_segment_ids,
      sinks_N=sinks_N,
      interpret=True,
      **case.options,
    )

  with (
    mock.patch.object(attention_splash, "_BLOCK", block),
    mock.patch.object(attention_splash, "_MAX_COPIES", max_copies),
  ):
    return attention_cases.value_and_gradients(attend, given)


def reference(case, given):
  return attention_cases.value_and_gradients(
    functools.partial(attention_reference.attend, **case.options), given
  )


class AttentionSplashTest(parameterized.TestCase):
  @parameterized.parameters(
    "causal", "window_multi_query", "wide_values", "all"
  )
  def test_equals_the_reference(self, name):
    case = attention_cases.SELF[name]
    given = attention_cases.operands(case, 140)
    wanted, got = reference(case, given), splash(case, given, block=512)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  # Three blocks, the last of 44 rows; the backward pass in one kernel or two.
  @parameterized.parameters(4, 1)
  def test_several_blocks(self, max_copies):
    case = attention_cases.SELF["all"]
    given = attention_cases.operands(case, 300)
    wanted = reference(case, given)
    got = splash(case, given, max_copies=max_copies)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  # Key/value heads split as the query heads are; one for all of them; 2 heads
  # over 4 devices.
  @parameterized.parameters((2, 2), (2, 1), (4, 2))
  def test_mesh(self, tensor, num_kv_heads):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(data=8 // tensor // 2, fsdp=2, tensor=tensor),
      jax.devices(),
    )
    case = attention_cases.Case(
      num_heads=8, num_kv_heads=num_kv_heads, segments=True, sinks=True
    )
    with mock.patch.object(attention_cases, "BATCH", 4):
      given = attention_cases.operands(case, 64)
    wanted = reference(case, given)
    with jax.set_mesh(mesh):
      got = splash(case, given)
    self.assertEqual(got[0].sharding.num_devices, 8)
    shard = got[0].addressable_shards[0].data.shape
    self.assertEqual(shard, (tensor // 2, 64, 8 // tensor, 8))
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  def test_rows_that_do_not_divide(self):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8), jax.devices())
    case = attention_cases.SELF["causal"]
    given = attention_cases.operands(case, 20)
    with jax.set_mesh(mesh):
      got = splash(case, given)
    for a, b in zip(got, reference(case, given), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  def test_bfloat16(self):
    case = attention_cases.SELF["all"]
    given = attention_cases.operands(case, 70, "bfloat16")
    out, *_ = splash(case, given)
    self.assertEqual(out.dtype, jnp.bfloat16)


if __name__ == "__main__":
  absltest.main()
