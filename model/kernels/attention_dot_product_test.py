import functools
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention_cases
from model.kernels import attention_dot_product
from model.kernels import attention_reference

_CASES = {
  "segments": attention_cases.SELF["segments_multi_head"],
  "window_multi_query": attention_cases.SELF["window_multi_query"],
  "wide_values": attention_cases.SELF["wide_values"],
  "cache": attention_cases.CACHE["cache"],
  "cache_sinks": attention_cases.Case(
    cache=True, segments=True, window=5, sinks=True, value_dim=12
  ),
}


def dot_product(case, backend):
  return functools.partial(
    attention_dot_product.attend,
    scale=case.options["scale"],
    window=case.window,
    backend=backend,
  )


class AttentionDotProductTest(parameterized.TestCase):
  @parameterized.named_parameters(*_CASES.items())
  def test_equals_the_reference(self, case):
    given = attention_cases.operands(case, 23)
    wanted = attention_cases.value_and_gradients(
      functools.partial(attention_reference.attend, **case.options), given
    )
    got = attention_cases.value_and_gradients(dot_product(case, "xla"), given)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  # What cuDNN is handed, done by XLA.
  @parameterized.parameters("wide_values", "cache_sinks")
  def test_operands_for_cudnn(self, name):
    case = _CASES[name]
    given = attention_cases.operands(case, 23)
    original = jax.nn.dot_product_attention

    def check(q, k, v, *, mask, implementation, **kwargs):
      self.assertEqual(implementation, "cudnn")
      self.assertEqual(q.shape[1] % 2 + k.shape[1] % 2, 0)
      self.assertEqual(q.shape[3] % 8, 0)
      self.assertEqual(k.shape, v.shape)
      self.assertEqual(mask.shape, (len(q), 1, q.shape[1], k.shape[1]))
      return original(q, k, v, mask=mask, **kwargs)

    wanted = attention_cases.value_and_gradients(
      functools.partial(attention_reference.attend, **case.options), given
    )
    with mock.patch.object(jax.nn, "dot_product_attention", check):
      got = attention_cases.value_and_gradients(
        dot_product(case, "cudnn"), given
      )
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)

  @parameterized.parameters(
    ("gpu", "9.0", "bfloat16", 128, 128, False, True),
    ("gpu", "9.0", "float16", 192, 128, True, True),
    ("gpu", "9.0", "float32", 128, 128, False, False),
    ("gpu", "9.0", "bfloat16", 256, 256, False, True),
    ("gpu", "9.0", "bfloat16", 256, 256, True, False),
    ("gpu", "9.0", "bfloat16", 576, 512, False, False),
    ("gpu", "8.0", "bfloat16", 128, 128, False, True),
    ("gpu", "8.0", "bfloat16", 192, 128, False, False),
    ("gpu", "7.5", "float16", 64, 64, False, False),
    ("gpu", "gfx942", "bfloat16", 64, 64, False, False),
    ("cpu", "9.0", "bfloat16", 128, 128, False, False),
  )
  def test_has_cudnn(
    self, platform, capability, dtype, head_dim, value_dim, sinks, wanted
  ):
    q = jnp.zeros((1, 2, 1, head_dim), dtype)
    v = jnp.zeros((1, 2, 1, value_dim), dtype)
    device = types.SimpleNamespace(compute_capability=capability)
    with mock.patch.object(jax, "local_devices", lambda: [device]):
      self.assertEqual(
        attention_dot_product.has_cudnn(q, v, sinks=sinks, platform=platform),
        wanted,
      )


if __name__ == "__main__":
  absltest.main()
