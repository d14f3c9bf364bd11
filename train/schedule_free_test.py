"""Schedule-Free against its definition."""

from typing import Any

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import schedule_free


class ScheduleFreeTest(absltest.TestCase):
  def test_follows_the_definition(self):
    """SGD on a quadratic; the rate warms up."""
    rates = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]

    def schedule(step):
      return jnp.asarray(rates)[step]

    b1 = 0.8
    base = optax.scale_by_learning_rate(schedule)
    transform = schedule_free.wrap(base, schedule, b1=b1)
    scales = np.array([0.5, 1.0, 2.0], np.float32)
    params: dict[str, Any] = {"w_D": np.array([1.0, -2.0, 3.0], np.float32)}
    state = transform.init(params)
    update = jax.jit(transform.update)

    x = z = y = params["w_D"].astype(np.float64)
    total = 0.0
    for rate in rates:
      updates, state = update({"w_D": scales * params["w_D"]}, state, params)
      stepped: Any = optax.apply_updates(params, updates)
      params = stepped

      z = z - rate * scales * y
      total += rate**2
      x = x + rate**2 / total * (z - x)
      y = b1 * x + (1 - b1) * z
      np.testing.assert_allclose(params["w_D"], y, rtol=1e-5)
      np.testing.assert_allclose(
        schedule_free.average(state, params)["w_D"], x, rtol=1e-5
      )

  def test_knows_its_state(self):
    base = optax.scale(-0.1)
    params = {"w_D": np.ones(2, np.float32)}
    transform = schedule_free.wrap(base, lambda step: 0.1, b1=0.9)
    self.assertTrue(schedule_free.is_state(transform.init(params)))
    self.assertFalse(schedule_free.is_state(base.init(params)))


if __name__ == "__main__":
  absltest.main()
