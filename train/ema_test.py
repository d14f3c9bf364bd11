"""The average against its definition."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from train import ema


class EmaTest(absltest.TestCase):
  def test_follows_the_definition(self):
    config = ema.EmaConfig(decay=0.75)
    rng = np.random.default_rng(0)
    params = [
      {"gate_DF": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(40)
    ]
    average, expected = params[0], params[0]["gate_DF"].astype(np.float64)
    for step, new in enumerate(params[1:]):
      decay = min(0.75, (step + 1) / (step + 10))
      expected = decay * expected + (1 - decay) * new["gate_DF"]
      average = ema.update(
        average, new, decay=ema.decay_at(config, jnp.asarray(step))
      )
    np.testing.assert_allclose(average["gate_DF"], expected, rtol=1e-5)
    # The warm-up has ended.
    self.assertEqual(float(ema.decay_at(config, jnp.asarray(38))), 0.75)

  def test_what_does_not_move_keeps_its_bits(self):
    params = {"gate_DF": jax.random.normal(jax.random.key(0), (16, 16))}
    average = params
    for _ in range(5):
      average = ema.update(average, params, decay=jnp.asarray(0.9))
    np.testing.assert_array_equal(average["gate_DF"], params["gate_DF"])

  def test_refuses(self):
    for decay in (0.0, 1.0, -0.5):
      with self.assertRaisesRegex(ValueError, f"ema.decay={decay} must be"):
        ema.EmaConfig(decay=decay)


if __name__ == "__main__":
  absltest.main()
