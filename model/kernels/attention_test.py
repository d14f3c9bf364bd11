from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention
from model.kernels import attention_blockwise
from model.kernels import attention_cases
from model.kernels import attention_dot_product
from model.kernels import attention_reference
from model.kernels import attention_splash

_ALL = ("reference", "blockwise", "dot_product", "splash")
_MODULES = {
  "reference": attention_reference,
  "blockwise": attention_blockwise,
  "dot_product": attention_dot_product,
  "splash": attention_splash,
}


def inputs(length, dtype="float32"):
  """q, k, v, cotangent and ids of three segments per row."""
  case = attention_cases.SELF["segments_multi_head"]
  given = attention_cases.operands(case, length, dtype)
  return *given.arrays[:3], given.cotangent, given.q_segment_ids


def attend(implementation, segment_ids, **options):
  @jax.jit
  def function(q, k, v):
    return attention.attend(
      q,
      k,
      v,
      q_segment_ids=segment_ids,
      implementation=implementation,
      **options,
    )

  return function


def with_gradients(implementation, segment_ids, **options):
  """(q, k, v, cotangent) -> output and the gradients of q, k and v."""

  @jax.jit
  def function(q, k, v, cotangent):
    out, vjp = jax.vjp(attend(implementation, segment_ids, **options), q, k, v)
    return out, *vjp(cotangent)

  return function


class AttentionTest(parameterized.TestCase):
  @parameterized.parameters(*_ALL[1:])
  def test_equals_the_reference(self, implementation):
    *args, segment_ids = inputs(140)
    options = {"window": 50, "sinks_N": jnp.arange(4.0)}
    wanted = with_gradients("reference", segment_ids, **options)(*args)
    got = with_gradients(implementation, segment_ids, **options)(*args)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  def test_default_scale(self):
    q, k, v, _, ids = inputs(5)
    np.testing.assert_array_equal(
      attend("reference", ids)(q, k, v),
      attend("reference", ids, scale=8**-0.5)(q, k, v),
    )

  @parameterized.parameters(*_ALL)
  def test_bfloat16(self, implementation):
    *args, segment_ids = inputs(140, "bfloat16")
    exact = [a.astype(jnp.float32) for a in args]
    wanted = with_gradients("reference", segment_ids)(*exact)
    got = with_gradients(implementation, segment_ids)(*args)
    for a, b in zip(got, wanted, strict=True):
      self.assertEqual(a.dtype, jnp.bfloat16)
      # Weights, scores and results are rounded to 8 bits each.
      np.testing.assert_allclose(
        a.astype(jnp.float32), b, atol=2**-5 * float(jnp.abs(b).max())
      )

  @parameterized.parameters(*_ALL)
  def test_later_tokens_change_nothing(self, implementation):
    length = 140
    q, k, v, _, _ = inputs(length)
    function = attend(implementation, jnp.ones((2, length), int))
    before = function(q, k, v)
    for changed in (length - 1, length // 2, 1):
      after = function(
        q.at[:, changed].add(100.0),
        k.at[:, changed].add(100.0),
        v.at[:, changed].add(100.0),
      )
      np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
      self.assertGreater(float(jnp.abs(after - before)[:, changed:].max()), 1.0)

  @parameterized.parameters(*_ALL)
  def test_no_gradient_from_what_is_not_seen(self, implementation):
    length = 140
    q, k, v, _, _ = inputs(length)
    segment_ids = jnp.stack([1 + (jnp.arange(length) >= 70).astype(int)] * 2)
    cotangent = jnp.zeros_like(v).at[:, 100].set(1)
    function = with_gradients(implementation, segment_ids, window=20)
    for gradient in function(q, k, v, cotangent)[1:]:
      np.testing.assert_array_equal(gradient[:, :81], 0)
      np.testing.assert_array_equal(gradient[:, 101:], 0)
      self.assertGreater(float(jnp.abs(gradient[:, 100]).max()), 0)

  @parameterized.parameters(*_ALL)
  def test_large_scores_stay_finite(self, implementation):
    q, *args, segment_ids = inputs(140)
    for array in with_gradients(implementation, segment_ids)(1e4 * q, *args):
      self.assertTrue(bool(jnp.isfinite(array).all()))

  # (platform, cuDNN takes it, options, chosen)
  @parameterized.parameters(
    ("cpu", False, (), "blockwise"),
    ("gpu", True, (), "dot_product"),
    ("gpu", True, ("window", "sinks_N"), "dot_product"),
    ("gpu", True, ("q_start",), "dot_product"),
    ("gpu", True, ("softcap",), "blockwise"),
    ("gpu", False, (), "blockwise"),
    ("tpu", False, ("window", "softcap", "sinks_N"), "splash"),
    ("tpu", False, ("q_start",), "blockwise"),
    ("tpu", False, ("k_segment_ids",), "blockwise"),
  )
  def test_auto(self, platform, cudnn, names, wanted):
    every: dict[str, Any] = {
      "window": 2,
      "softcap": 2.0,
      "sinks_N": jnp.ones(4),
      "q_start": jnp.array([1, 2]),
      "k_segment_ids": jnp.ones((2, 9), int),
    }
    options = {name: every[name] for name in names}
    q, k, v, _, ids = inputs(9)
    with (
      mock.patch.object(jax, "default_backend", return_value=platform),
      mock.patch.object(attention_dot_product, "has_cudnn", return_value=cudnn),
      mock.patch.object(_MODULES[wanted], "attend") as called,
    ):
      attention.attend(q, k, v, q_segment_ids=ids, **options)
    called.assert_called_once()

  def test_a_mesh_of_tpus_is_for_tpu(self):
    mesh = mock.Mock(empty=False)
    q, k, v, _, ids = inputs(9)
    for kind, wanted in (("TPU v6 lite", "splash"), ("cpu", "blockwise")):
      mesh.abstract_device.device_kind = kind
      with (
        mock.patch.object(jax.sharding, "get_abstract_mesh", return_value=mesh),
        mock.patch.object(_MODULES[wanted], "attend") as called,
      ):
        attention.attend(q, k, v, q_segment_ids=ids)
      called.assert_called_once()

  @parameterized.parameters(
    ({"implementation": "flash"}, "flash.*splash"),
    ({"implementation": "dot_product", "softcap": 3.0}, "softcap=3.*blockwise"),
    ({"implementation": "splash", "q_start": 1}, "q_start.*blockwise"),
    ({"window": 0}, "window=0.*at least 1"),
    ({"softcap": 0.0}, "softcap=0.*positive"),
  )
  def test_what_cannot_be_done(self, options, message):
    q, k, v, _, ids = inputs(5)
    with self.assertRaisesRegex(ValueError, message):
      attention.attend(q, k, v, q_segment_ids=ids, **options)

  def test_keys_of_another_length_need_segments(self):
    q, k, v, _, ids = inputs(5)
    with self.assertRaisesRegex(ValueError, "k_segment_ids"):
      attention.attend(q[:, :2], k, v, q_segment_ids=ids[:, :2])


if __name__ == "__main__":
  absltest.main()
