import cmath
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from model import config
from model import rope

_SCALING = config.Llama3Scaling(
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_seq_len=64,
)


def reference_frequencies(rope_config, head_dim):
  """RoFormer's theta_i; then Llama 3.1's bands of wavelengths, as written."""
  out = []
  for i in range(head_dim // 2):
    freq = rope_config.theta ** (-2 * i / head_dim)
    scaling = rope_config.scaling
    if scaling is not None:
      wavelength = 2 * math.pi / freq
      longest = scaling.original_max_seq_len / scaling.low_freq_factor
      shortest = scaling.original_max_seq_len / scaling.high_freq_factor
      if wavelength > longest:
        freq /= scaling.factor
      elif wavelength >= shortest:
        smooth = (
          scaling.original_max_seq_len / wavelength - scaling.low_freq_factor
        ) / (scaling.high_freq_factor - scaling.low_freq_factor)
        freq = (1 - smooth) * freq / scaling.factor + smooth * freq
    out.append(freq)
  return out


def reference_rotate(x, positions, freq):
  """Each pair of features is a complex number, turned by position * freq."""
  x = np.asarray(x, np.float64)
  half = x.shape[-1] // 2
  out = np.empty_like(x)
  for b, t, n in np.ndindex(x.shape[:3]):
    for i in range(half):
      pair = complex(x[b, t, n, i], x[b, t, n, i + half])
      pair *= cmath.exp(1j * int(positions[b, t]) * freq[i])
      out[b, t, n, i], out[b, t, n, i + half] = pair.real, pair.imag
  return out


def rotate(x, positions, freq):
  cos, sin = rope.angles(jnp.asarray(positions), freq)
  return rope.rotate(x, cos, sin)


class RopeTest(parameterized.TestCase):
  @parameterized.parameters(
    (config.RopeConfig(), 32),
    (config.RopeConfig(theta=8e6), 128),
    (config.RopeConfig(theta=500.0, scaling=_SCALING), 32),
    (config.RopeConfig(theta=10_000.0, scaling=_SCALING), 16),
    (config.RopeConfig(scaling=config.Llama3Scaling(factor=32.0)), 128),
  )
  def test_frequencies(self, rope_config, head_dim):
    freq = rope.frequencies(rope_config, head_dim)
    self.assertEqual(freq.dtype, np.float32)
    np.testing.assert_allclose(
      freq, reference_frequencies(rope_config, head_dim), rtol=3e-6
    )

  def test_scaling_has_three_bands(self):
    plain = rope.frequencies(config.RopeConfig(theta=500.0), 32)
    scaled = rope.frequencies(
      config.RopeConfig(theta=500.0, scaling=_SCALING), 32
    )
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 16, wavelength > 64
    between = ~short & ~long
    for band in (short, between, long):
      self.assertGreater(band.sum(), 1)
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    self.assertTrue(np.all(scaled[between] < plain[between]))
    self.assertTrue(np.all(scaled[between] > plain[between] / 8))
    # Blending neither jumps nor changes the order of the frequencies.
    self.assertTrue(np.all(np.diff(scaled) < 0))

  @parameterized.parameters(16.0, 64.0)
  def test_scaling_is_continuous_at_its_boundaries(self, wavelength):
    # With head dim 4 the second pair has frequency theta^(-1/2).
    def second(wavelength):
      theta = (wavelength / (2 * math.pi)) ** 2
      return rope.frequencies(
        config.RopeConfig(theta=theta, scaling=_SCALING), 4
      )[1]

    kept = 2 * math.pi / wavelength / (1 if wavelength == 16.0 else 8)
    for nearby in (1 - 1e-6, 1.0, 1 + 1e-6):
      np.testing.assert_allclose(second(wavelength * nearby), kept, rtol=3e-5)

  @parameterized.parameters(
    config.RopeConfig(), config.RopeConfig(theta=500.0, scaling=_SCALING)
  )
  def test_rotation(self, rope_config):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 3, 16)).astype(np.float32)
    positions = rng.integers(0, 100, size=(2, 7))
    freq = reference_frequencies(rope_config, 16)
    np.testing.assert_allclose(
      rotate(x, positions, rope.frequencies(rope_config, 16)),
      reference_rotate(x, positions, freq),
      # Angles up to 100 rad, known to 100 * 2^-23 at worst.
      atol=4e-5,
    )

  def test_score_depends_only_on_the_distance(self):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 4, 32)).astype(np.float32)
    freq = rope.frequencies(config.RopeConfig(), 32)

    def score(q_position, k_position):
      rotated_q = rotate(q, [[q_position]], freq)
      rotated_k = rotate(k, [[k_position]], freq)
      return np.sum(rotated_q * rotated_k, axis=-1)

    for distance in (0, 1, 17):
      for shift in (0, 3, 250):
        np.testing.assert_allclose(
          score(shift + distance, shift), score(distance, 0), atol=5e-4
        )
    self.assertGreater(np.abs(score(17, 0) - score(0, 0)).max(), 0.1)

  def test_position_zero_changes_nothing(self):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    freq = rope.frequencies(config.RopeConfig(), 8)
    np.testing.assert_array_equal(rotate(x, np.zeros((1, 3), int), freq), x)

  def test_keeps_dtype_and_length(self):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8))
    freq = rope.frequencies(config.RopeConfig(), 8)
    out = rotate(jnp.asarray(x, jnp.bfloat16), np.arange(3)[None], freq)
    self.assertEqual(out.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      np.linalg.norm(out.astype(np.float32), axis=-1),
      np.linalg.norm(x, axis=-1),
      rtol=2e-2,
    )


if __name__ == "__main__":
  absltest.main()
