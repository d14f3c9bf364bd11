from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from model import zigzag
from model.kernels import attention_cases
from model.kernels import attention_reference
from model.kernels import attention_splash_context


class AttentionSplashContextTest(parameterized.TestCase):
  """On meshes: attention_context_test.py."""

  def test_fits(self):
    self.assertTrue(attention_splash_context.fits(1024, 8))
    self.assertFalse(attention_splash_context.fits(1024 + 512, 8))

  @parameterized.parameters("causal", "all")
  def test_queries_in_another_order(self, name):
    case, length = attention_cases.SELF[name], 512
    given = attention_cases.operands(case, length)
    places = zigzag.places(length, 2)
    kernel = attention_splash_context.make_kernel(
      places,
      num_heads=case.num_heads,
      num_shards=1,
      window=case.window,
      softcap=case.softcap,
      interpret=True,
    )

    def attend(q, k, v, *, sinks_N, q_segment_ids, k_segment_ids, q_start):
      del q_start
      out = attention_splash_context.attend(
        kernel,
        q[:, places] * case.options["scale"],
        k,
        v,
        q_segment_ids=q_segment_ids[:, places],
        k_segment_ids=k_segment_ids,
        sinks_N=sinks_N,
      )
      return out[:, np.argsort(places)]

    def reference(q, k, v, **arrays):
      return attention_reference.attend(q, k, v, **arrays, **case.options)

    got = attention_cases.value_and_gradients(attend, given)
    wanted = attention_cases.value_and_gradients(reference, given)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(
        a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max()))
      )


if __name__ == "__main__":
  absltest.main()
