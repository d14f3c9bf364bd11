from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model import zigzag
from model.kernels import attention_cases
from model.kernels import attention_context
from model.kernels import attention_reference


def make_mesh(**axes):
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices())


def attend(case, implementation, order):
  """A function for attention_cases, of operands in their own order."""

  def function(q, k, v, *, sinks_N, q_segment_ids, k_segment_ids, q_start):
    del k_segment_ids, q_start
    arrays = (q, k, v, q_segment_ids)
    if order == "zigzag":
      num_shards = sharding.num_context_shards()
      arrays = (zigzag.apply(x, num_shards) for x in arrays)
    q, k, v, ids = arrays
    out = attention_context.attend(
      q,
      k,
      v,
      segment_ids=ids,
      order=order,
      sinks_N=sinks_N,
      implementation=implementation,
      **case.options,
    )
    return zigzag.undo(out) if order == "zigzag" else out

  return function


def reference(case):
  def function(q, k, v, **arrays):
    return attention_reference.attend(q, k, v, **arrays, **case.options)

  return function


class AttentionContextTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)

  def check(self, name, length, implementation, order, **axes):
    case = attention_cases.SELF[name]
    given = attention_cases.operands(case, length)
    wanted = attention_cases.value_and_gradients(reference(case), given)
    with jax.set_mesh(make_mesh(**axes)):
      got = attention_cases.value_and_gradients(
        attend(case, implementation, order), given
      )
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(
        jax.device_get(a), jax.device_get(b), atol=1e-5
      )

  @parameterized.parameters(
    ("all", "natural", 4, 1),
    ("all", "zigzag", 4, 1),
    ("all", "zigzag", 2, 2),
    # One key/value head, which `tensor` cannot split; three of queries.
    ("window_multi_query", "zigzag", 2, 2),
    ("wide_values", "zigzag", 8, 1),
  )
  def test_equals_the_reference(self, name, order, context, tensor):
    self.check(name, 160, "auto", order, context=context, tensor=tensor)

  def test_short_chunks(self):
    self.check("all", 16, "auto", "zigzag", context=4)

  @parameterized.parameters(
    ("natural", 4, 1), ("zigzag", 4, 1), ("zigzag", 2, 2)
  )
  def test_splash(self, order, context, tensor):
    self.check("all", 512, "splash", order, context=context, tensor=tensor)

  def test_dot_product(self):
    self.check("sinks", 16, "dot_product", "zigzag", context=4)

  def test_a_length_that_does_not_divide_lies_in_one_piece(self):
    self.check("causal", 21, "auto", "natural", context=8)

  def test_splash_refuses_short_shards(self):
    case = attention_cases.SELF["causal"]
    given = attention_cases.operands(case, 160)
    with (
      jax.set_mesh(make_mesh(context=8)),
      self.assertRaisesRegex(ValueError, "mesh.context=8 .* 1024, not 160"),
    ):
      attention_cases.value_and_gradients(
        attend(case, "splash", "natural"), given
      )

  @parameterized.parameters(("blockwise", "scan["), ("splash", "pallas_call["))
  def test_gathers_again_but_attends_once(self, implementation, loop):
    length = 1024 if implementation == "splash" else 256
    case = attention_cases.SELF["causal"]
    given = attention_cases.operands(case, length)

    def total(q, k, v):
      out = attention_context.attend(
        q,
        k,
        v,
        segment_ids=given.q_segment_ids,
        implementation=implementation,
      )
      return jnp.sum(out)

    with jax.set_mesh(make_mesh(context=4)):
      jaxpr = str(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*given.arrays[:3]))
    # Keys, values and segments, in the forward and in the backward pass.
    self.assertEqual(jaxpr.count("all_gather["), 2 * 3)
    self.assertEqual(jaxpr.count(loop), 2)


if __name__ == "__main__":
  absltest.main()
