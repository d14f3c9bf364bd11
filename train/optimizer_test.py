"""AdamW against its definition in numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import optimizer


def _params():
  rng = np.random.default_rng(0)
  return {
    "embed_VD": rng.normal(size=(5, 4)).astype(np.float32),
    "group_0": {
      "gate_DF": rng.normal(size=(2, 4, 3)).astype(np.float32),
      "norm": {"scale_D": rng.normal(size=(2, 4)).astype(np.float32)},
    },
  }


class OptimizerTest(parameterized.TestCase):
  def test_only_matrices_decay(self):
    self.assertEqual(
      optimizer.decays(_params(), which="matrices"),
      {
        "embed_VD": True,
        "group_0": {"gate_DF": True, "norm": {"scale_D": False}},
      },
    )

  def test_what_counts_as_a_matrix(self):
    """The name says it: biases and scales of heads have two dims, too."""
    names = {
      "q_DNH": True,
      "gate_EDF": True,
      "router_DE": True,
      "position_PD": True,
      "q_bias_NH": False,
      "q_scale_NH": False,
      "down_bias_ED": False,
      "selection_bias_E": False,
      "sinks_N": False,
    }
    params = {name: np.zeros((2, 2, 2), np.float32) for name in names}
    self.assertEqual(optimizer.decays(params, which="matrices"), names)

  @parameterized.parameters("matrices", "all")
  def test_follows_the_definition(self, decay):
    config = optimizer.OptimizerConfig(
      weight_decay=0.3, decay=decay, clip_norm=1.0
    )
    rate = 0.05
    transform = optimizer.make(config, optax.constant_schedule(rate))
    params = _params()
    state = transform.init(params)
    expected = jax.tree.map(lambda x: x.astype(np.float64), params)
    first = jax.tree.map(np.zeros_like, expected)
    second = jax.tree.map(np.zeros_like, expected)
    rng = np.random.default_rng(1)
    mask = (
      optimizer.decays(params, which="matrices")
      if decay == "matrices"
      else jax.tree.map(lambda _: True, params)
    )
    for step in range(1, 6):
      grads = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), params
      )
      updates, state = transform.update(grads, state, params)
      params = optax.apply_updates(params, updates)

      norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
      self.assertGreater(norm, 1.0)  # So that clipping does something.
      clipped = jax.tree.map(lambda g, n=norm: g / n, grads)
      first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, clipped)
      second = jax.tree.map(
        lambda v, g: 0.95 * v + 0.05 * g**2, second, clipped
      )

      def update(p, m, v, decays, step=step):
        adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        return p - rate * (adam + 0.3 * decays * p)

      expected = jax.tree.map(update, expected, first, second, mask)
    for a, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

  def test_small_gradients_are_not_clipped(self):
    config = optimizer.OptimizerConfig(weight_decay=0.0)
    params = {"w_DF": jnp.zeros((2, 2))}
    transform = optimizer.make(config, optax.constant_schedule(1.0))
    unclipped = optimizer.make(
      optimizer.OptimizerConfig(weight_decay=0.0, clip_norm=None),
      optax.constant_schedule(1.0),
    )
    grads = {"w_DF": jnp.full((2, 2), 0.1)}
    got, _ = transform.update(grads, transform.init(params), params)
    want, _ = unclipped.update(grads, unclipped.init(params), params)
    np.testing.assert_array_equal(*jax.tree.leaves([got, want]))

  @parameterized.parameters(
    ({"b1": 1.0}, "optimizer.b1=1.0"),
    ({"b2": -0.1}, "optimizer.b2=-0.1"),
    ({"eps": 0.0}, "optimizer.eps=0.0"),
    ({"clip_norm": 0.0}, "optimizer.clip_norm=0.0"),
    ({"weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      optimizer.OptimizerConfig(**settings)


if __name__ == "__main__":
  absltest.main()
