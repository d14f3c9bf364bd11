from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import norm


def reference(x, scale, eps):
  """RMSNorm as its paper states it (equation 4), one row at a time."""
  x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
  out = np.empty_like(x)
  for index in np.ndindex(x.shape[:-1]):
    rms = np.sqrt(sum(v * v for v in x[index]) / x.shape[-1] + eps)
    out[index] = x[index] / rms * scale
  return out


class NormTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = 3 * rng.normal(size=(2, 5, 24)).astype(np.float32)
    self.scale = rng.normal(size=24).astype(np.float32)

  @parameterized.parameters(1e-5, 1e-6, 0.5)
  def test_equals_the_reference(self, eps):
    out = norm.rms_norm(self.x, self.scale, eps)
    np.testing.assert_allclose(
      out, reference(self.x, self.scale, eps), rtol=2e-6, atol=1e-6
    )

  def test_epsilon_matters_for_small_inputs(self):
    x = 1e-3 * self.x
    out = norm.rms_norm(x, self.scale, 1e-5)
    np.testing.assert_allclose(
      out, reference(x, self.scale, 1e-5), rtol=2e-6, atol=1e-6
    )

  def test_is_computed_in_float32(self):
    x = jnp.asarray(self.x, jnp.bfloat16)
    out = norm.rms_norm(x, self.scale, 1e-5)
    self.assertEqual(out.dtype, jnp.bfloat16)
    # Rounded once, at the end: 8 bits of mantissa.
    np.testing.assert_allclose(
      out.astype(jnp.float32),
      reference(x.astype(jnp.float32), self.scale, 1e-5),
      rtol=2**-8,
      atol=1e-6,
    )

  def test_gradient_by_differences(self):
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=self.x.shape)
    direction = rng.normal(size=self.x.shape)

    def loss(x, scale):
      return jnp.sum(norm.rms_norm(x, scale, 1e-5) * cotangent)

    d_x, d_scale = jax.grad(loss, argnums=(0, 1))(self.x, self.scale)

    def reference_loss(x, scale):
      return np.sum(reference(x, scale, 1e-5) * cotangent)

    # Central differences in float64: error O(step^2), about 1e-9.
    step = 1e-5
    for gradient, slope in (
      (
        np.sum(np.asarray(d_x, np.float64) * direction),
        reference_loss(self.x + step * direction, self.scale)
        - reference_loss(self.x - step * direction, self.scale),
      ),
      (
        np.sum(np.asarray(d_scale, np.float64) * direction[0, 0]),
        reference_loss(self.x, self.scale + step * direction[0, 0])
        - reference_loss(self.x, self.scale - step * direction[0, 0]),
      ),
    ):
      np.testing.assert_allclose(gradient, slope / (2 * step), rtol=1e-5)

  def test_module_starts_as_ones(self):
    module = norm.RmsNorm(24, eps=1e-5, param_dtype="bfloat16")
    self.assertEqual(module.scale_D[...].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      module(jnp.asarray(self.x)), norm.rms_norm(self.x, jnp.ones(24), 1e-5)
    )


if __name__ == "__main__":
  absltest.main()
