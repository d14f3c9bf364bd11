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


def reference_yarn(rope_config, head_dim):
  """YaRN pair by pair: which turn often over the original context are kept.

  Between `beta_fast` and `beta_slow` rotations the share of the original
  frequency falls linearly in the index of the pair (the paper's code).
  """
  scaling = rope_config.scaling
  rotated = rope_config.num_rotated(head_dim)

  def index_of(rotations):
    # theta^(-2i/R) * original = 2 pi rotations, solved for i.
    angle = scaling.original_max_seq_len / (2 * math.pi * rotations)
    return rotated / 2 * math.log(angle, rope_config.theta)

  low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotated - 1)
  out = []
  for i in range(rotated // 2):
    freq = rope_config.theta ** (-2 * i / rotated)
    if i <= low:
      stretched = 0.0
    elif i >= high:
      stretched = 1.0
    else:
      stretched = (i - low) / (high - low)
    out.append(freq * (1 - stretched) + freq / scaling.factor * stretched)
  return out


def reference_rotate(x, positions, freq, pairing="halves", scale=1.0):
  """Each pair of features is a complex number, turned by position * freq.

  Pairs that lie side by side come out with their real parts first; features
  beyond the pairs stay as they are.
  """
  x = np.asarray(x, np.float64)
  half = len(freq)
  out = x.copy()
  for b, t, n in np.ndindex(x.shape[:3]):
    for i in range(half):
      first, second = (i, i + half)
      if pairing == "interleaved":
        first, second = (2 * i, 2 * i + 1)
      pair = complex(x[b, t, n, first], x[b, t, n, second])
      pair *= scale * cmath.exp(1j * int(positions[b, t]) * freq[i])
      out[b, t, n, i], out[b, t, n, i + half] = pair.real, pair.imag
  return out


def rotate(x, positions, rope_config, **options):
  head_dim = x.shape[-1]
  cos, sin = rope.angles(
    rope_config, jnp.asarray(positions), head_dim, **options
  )
  return rope.rotate(x, cos, sin, rope_config.pairing)


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
      rotate(x, positions, rope_config),
      reference_rotate(x, positions, freq),
      # Angles up to 100 rad, known to 100 * 2^-23 at worst.
      atol=4e-5,
    )

  def test_score_depends_only_on_the_distance(self):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 4, 32)).astype(np.float32)

    def score(q_position, k_position):
      rotated_q = rotate(q, [[q_position]], config.RopeConfig())
      rotated_k = rotate(k, [[k_position]], config.RopeConfig())
      return np.sum(rotated_q * rotated_k, axis=-1)

    for distance in (0, 1, 17):
      for shift in (0, 3, 250):
        np.testing.assert_allclose(
          score(shift + distance, shift), score(distance, 0), atol=5e-4
        )
    self.assertGreater(np.abs(score(17, 0) - score(0, 0)).max(), 0.1)

  def test_position_zero_changes_nothing(self):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    rotated = rotate(x, np.zeros((1, 3), int), config.RopeConfig())
    np.testing.assert_array_equal(rotated, x)

  def test_keeps_dtype_and_length(self):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8))
    out = rotate(
      jnp.asarray(x, jnp.bfloat16), np.arange(3)[None], config.RopeConfig()
    )
    self.assertEqual(out.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      np.linalg.norm(out.astype(np.float32), axis=-1),
      np.linalg.norm(x, axis=-1),
      rtol=2e-2,
    )

  def test_linear(self):
    scaling = config.LinearScaling(factor=4.0)
    freq = rope.frequencies(config.RopeConfig(scaling=scaling), 16)
    plain = reference_frequencies(config.RopeConfig(), 16)
    np.testing.assert_allclose(freq, np.array(plain) / 4, rtol=3e-6)

  @parameterized.parameters(
    # gpt-oss: no rounding; DeepSeek's factor; a ramp cut off at both ends.
    (150_000.0, 64, {"factor": 32.0, "truncate": False}),
    (10_000.0, 64, {"factor": 40.0}),
    (100.0, 16, {"factor": 4.0, "original_max_seq_len": 64}),
    (10.0, 8, {"factor": 2.0, "beta_fast": 4000.0}),
  )
  def test_yarn(self, theta, head_dim, settings):
    scaling = config.YarnScaling(**({"original_max_seq_len": 4096} | settings))
    rope_config = config.RopeConfig(theta=theta, scaling=scaling)
    freq = rope.frequencies(rope_config, head_dim)
    self.assertEqual(freq.dtype, np.float32)
    wanted = reference_yarn(rope_config, head_dim)
    np.testing.assert_allclose(freq, wanted, rtol=3e-6)

  def test_yarn_scales_the_rotation(self):
    scaling = config.YarnScaling(factor=4.0, original_max_seq_len=64)
    rope_config = config.RopeConfig(theta=100.0, scaling=scaling)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 2, 16)).astype(np.float32)
    positions = np.array([[0, 7, 90]])
    np.testing.assert_allclose(
      rotate(x, positions, rope_config),
      reference_rotate(
        x,
        positions,
        reference_yarn(rope_config, 16),
        scale=0.1 * math.log(4) + 1,
      ),
      atol=4e-5,
    )

  def test_longrope_changes_for_the_whole_batch(self):
    short, long = (1.0, 1.1, 1.2, 1.5), (1.0, 2.0, 3.0, 4.0)
    scaling = config.LongRopeScaling(
      short_factor=short, long_factor=long, original_max_seq_len=8, factor=4.0
    )
    rope_config = config.RopeConfig(theta=100.0, scaling=scaling)
    scale = math.sqrt(1 + math.log(4) / math.log(8))
    plain = np.array(reference_frequencies(config.RopeConfig(theta=100.0), 8))
    x = np.random.default_rng(0).normal(size=(2, 3, 1, 8)).astype(np.float32)
    inside = np.array([[0, 1, 2], [5, 6, 7]])
    beyond = np.array([[0, 1, 2], [6, 7, 8]])
    for positions, factor in ((inside, short), (beyond, long)):
      np.testing.assert_allclose(
        rotate(x, positions, rope_config),
        reference_rotate(x, positions, plain / np.array(factor), scale=scale),
        atol=1e-5,
      )
    # Padding beyond the original context does not count.
    np.testing.assert_allclose(
      rotate(x, beyond, rope_config, valid=jnp.asarray(beyond < 8)),
      reference_rotate(x, beyond, plain / np.array(short), scale=scale),
      atol=1e-5,
    )
    # Where the lengths of whole texts are given, each row goes by its own.
    cos, sin = rope.angles(
      rope_config, jnp.asarray(inside), 8, length=jnp.array([8, 9])
    )
    got = rope.rotate(jnp.asarray(x), cos, sin, rope_config.pairing)
    for row, factor in enumerate((short, long)):
      np.testing.assert_allclose(
        got[row],
        reference_rotate(x, inside, plain / np.array(factor), scale=scale)[row],
        atol=1e-5,
      )

  @parameterized.product(
    fraction=(0.25, 0.5, 1.0), pairing=("halves", "interleaved")
  )
  def test_part_of_a_head_and_order_of_pairs(self, fraction, pairing):
    rope_config = config.RopeConfig(
      theta=100.0, fraction=fraction, pairing=pairing
    )
    rotated = int(16 * fraction)
    # The wavelengths are those of a head of the rotated features alone.
    freq = reference_frequencies(config.RopeConfig(theta=100.0), rotated)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 16)).astype(np.float32)
    positions = rng.integers(0, 50, size=(2, 5))
    out = rotate(x, positions, rope_config)
    np.testing.assert_allclose(
      out, reference_rotate(x, positions, freq, pairing), atol=2e-5
    )
    np.testing.assert_array_equal(out[..., rotated:], x[..., rotated:])

  def test_order_of_pairs_does_not_change_scores(self):
    """Interleaved weights, permuted to halves, give the same scores."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 4, 2, 8)).astype(np.float32)
    positions = np.arange(4)[None]
    to_halves = np.r_[0:8:2, 1:8:2]

    def scores(pairing, order):
      rope_config = config.RopeConfig(pairing=pairing)
      rotated = [rotate(x[..., order], positions, rope_config) for x in (q, k)]
      return np.einsum("btnh,bsnh->bnts", *rotated)

    np.testing.assert_allclose(
      scores("interleaved", np.arange(8)),
      scores("halves", to_halves),
      atol=1e-5,
    )


if __name__ == "__main__":
  absltest.main()
