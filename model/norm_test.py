import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import fixtures
from model import norm


def reference(x, scale, eps, offset=0.0):
  """RMSNorm as its paper states it (equation 4), one row at a time."""
  x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
  out = np.empty_like(x)
  for index in np.ndindex(x.shape[:-1]):
    rms = np.sqrt(sum(v * v for v in x[index]) / x.shape[-1] + eps)
    out[index] = x[index] / rms * (offset + scale)
  return out


def reference_layer_norm(x, scale, bias, eps):
  """LayerNorm (arXiv:1607.06450, equation 4), one row at a time."""
  x = np.asarray(x, np.float64)
  out = np.empty_like(x)
  for index in np.ndindex(x.shape[:-1]):
    row = x[index]
    mean = sum(row) / len(row)
    variance = sum((v - mean) ** 2 for v in row) / len(row)
    out[index] = (row - mean) / np.sqrt(variance + eps) * scale + bias
  return out


def model(norm):
  return dataclasses.replace(fixtures.config(dim=24, norm_eps=1e-3), norm=norm)


class NormTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = jnp.asarray(3 * rng.normal(size=(2, 5, 24)), jnp.float32)
    self.scale = jnp.asarray(rng.normal(size=24), jnp.float32)

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
    x, scale = (np.asarray(a, np.float64) for a in (self.x, self.scale))
    step = 1e-5
    for gradient, slope in (
      (
        np.sum(np.asarray(d_x, np.float64) * direction),
        reference_loss(x + step * direction, scale)
        - reference_loss(x - step * direction, scale),
      ),
      (
        np.sum(np.asarray(d_scale, np.float64) * direction[0, 0]),
        reference_loss(x, scale + step * direction[0, 0])
        - reference_loss(x, scale - step * direction[0, 0]),
      ),
    ):
      np.testing.assert_allclose(gradient, slope / (2 * step), rtol=1e-5)

  def test_offset(self):
    out = norm.rms_norm(self.x, self.scale, 1e-5, 1.0)
    np.testing.assert_allclose(
      out, reference(self.x, self.scale, 1e-5, 1.0), rtol=3e-6, atol=2e-6
    )
    # In float32: 1 + a small scale would be rounded away in bfloat16.
    scale = jnp.full(24, 1e-3, jnp.bfloat16)
    np.testing.assert_allclose(
      norm.rms_norm(self.x, scale, 1e-5, 1.0),
      reference(self.x, scale.astype(jnp.float32), 1e-5, 1.0),
      rtol=3e-6,
      atol=2e-6,
    )

  @parameterized.parameters(1e-5, 0.5)
  def test_layer_norm(self, eps):
    x, bias = self.x + 2, self.x[0, 0]
    out = norm.layer_norm(x, self.scale, bias, eps)
    np.testing.assert_allclose(
      out,
      reference_layer_norm(x, self.scale, bias, eps),
      rtol=3e-6,
      atol=3e-6,
    )
    half = norm.layer_norm(jnp.asarray(x, jnp.bfloat16), self.scale, bias, eps)
    self.assertEqual(half.dtype, jnp.bfloat16)

  def test_gradient_of_layer_norm(self):
    """That of the same norm in plain operations."""

    def plain(x, scale, bias):
      centred = x - jnp.mean(x, axis=-1, keepdims=True)
      deviation = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
      return jnp.sum(jnp.sin(centred / deviation * scale + bias))

    def loss(x, scale, bias):
      return jnp.sum(jnp.sin(norm.layer_norm(x, scale, bias, 1e-5)))

    arguments = (self.x, self.scale, self.x[0, 0])
    got = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    wanted = jax.grad(plain, argnums=(0, 1, 2))(*arguments)
    for a, b in zip(got, wanted, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  def test_kinds(self):
    """Each kind begins as the plain norm, whatever its parameters are."""
    ones, zeros = np.ones(24), np.zeros(24)
    for kind, wanted, scale in (
      ("rms", reference(self.x, ones, 1e-3), 1.0),
      ("rms_offset", reference(self.x, ones, 1e-3), 0.0),
      ("layer", reference_layer_norm(self.x, ones, zeros, 1e-3), 1.0),
    ):
      module = norm.make(model(kind), param_dtype="float32")
      np.testing.assert_array_equal(module.scale_D[...], np.full(24, scale))
      np.testing.assert_allclose(
        module(self.x), wanted, rtol=3e-6, atol=2e-6, err_msg=kind
      )
    self.assertEqual(norm.offset(model("rms")), 0.0)
    self.assertEqual(norm.offset(model("rms_offset")), 1.0)

  def test_module_starts_as_ones(self):
    module = norm.RmsNorm(24, eps=1e-5, param_dtype="bfloat16")
    self.assertEqual(module.scale_D[...].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      module(jnp.asarray(self.x)), norm.rms_norm(self.x, jnp.ones(24), 1e-5)
    )


if __name__ == "__main__":
  absltest.main()
