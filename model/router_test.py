import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config
from model import router


def route(logits, num_chosen, *, selection_bias=None, **settings):
  return router.route(
    jnp.array(logits),
    config.RouterConfig(**settings),
    num_chosen=num_chosen,
    selection_bias_E=selection_bias,
  )


def logits_of(probs):
  return np.log(np.array(probs, np.float32))


def softmax(x):
  x = np.exp(np.asarray(x, np.float64))
  return x / x.sum()


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


class RouteTest(parameterized.TestCase):
  def test_softmax(self):
    logits = logits_of([0.1, 0.4, 0.2, 0.3])
    routing = route(logits, 2, normalize=False, scale=2.0)
    np.testing.assert_array_equal(routing.indices, [1, 3])
    np.testing.assert_allclose(routing.weights, [0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(routing.probs, [0.1, 0.4, 0.2, 0.3], rtol=1e-6)
    routing = route(logits, 2, normalize=True)
    np.testing.assert_allclose(routing.weights, [4 / 7, 3 / 7], rtol=1e-6)

  def test_softmax_after_topk(self):
    logits = [1.0, -2.0, 3.0, 0.5]
    routing = route(logits, 2, score="softmax_after_topk")
    np.testing.assert_array_equal(routing.indices, [2, 0])
    np.testing.assert_allclose(routing.weights, softmax([3, 1]), rtol=1e-6)
    np.testing.assert_allclose(routing.probs, softmax(logits), rtol=1e-5)

  def test_sigmoid_is_chosen_with_the_bias_and_weighed_without(self):
    logits = [2.0, 0.0, 1.0, -1.0]
    routing = route(
      logits,
      2,
      score="sigmoid",
      scale=2.5,
      selection_bias=jnp.array([-1.0, 0.0, 0.0, 0.5]),
    )
    np.testing.assert_array_equal(routing.indices, [3, 2])
    scores = sigmoid([-1, 1])
    np.testing.assert_allclose(
      routing.weights, 2.5 * scores / scores.sum(), rtol=1e-6
    )
    np.testing.assert_allclose(
      routing.probs, sigmoid(logits) / sigmoid(logits).sum(), rtol=1e-6
    )

  def test_sigmoids_of_zero_give_zero_not_nan(self):
    routing = route([-200.0] * 4, 2, score="sigmoid")
    np.testing.assert_array_equal(routing.weights, [0, 0])
    np.testing.assert_array_equal(routing.probs, [0] * 4)

  def test_the_best_groups_by_their_best_expert(self):
    # Groups (0.3, 0.01), (0.2, 0.19), (0.25, 0.05): the first and the third.
    routing = route(
      logits_of([0.3, 0.01, 0.2, 0.19, 0.25, 0.05]),
      3,
      num_groups=3,
      groups_per_token=2,
      group_score="max",
      normalize=False,
    )
    np.testing.assert_array_equal(routing.indices, [0, 4, 5])
    np.testing.assert_allclose(routing.weights, [0.3, 0.25, 0.05], rtol=1e-5)

  def test_the_best_groups_by_their_two_best_experts(self):
    # Sums 0.31, 0.39, 0.3: the first two groups.
    routing = route(
      logits_of([0.3, 0.01, 0.2, 0.19, 0.25, 0.05]),
      3,
      num_groups=3,
      groups_per_token=2,
      group_score="top2_sum",
      normalize=False,
    )
    np.testing.assert_array_equal(routing.indices, [0, 2, 3])

  def test_negative_biased_scores_do_not_let_other_groups_in(self):
    # All biased scores are below 0, which is what masking with 0 would prefer.
    routing = route(
      [0.0, -1.0, -2.0, -3.0],
      2,
      score="sigmoid",
      num_groups=2,
      groups_per_token=1,
      group_score="top2_sum",
      selection_bias=jnp.full((4,), -2.0),
    )
    np.testing.assert_array_equal(routing.indices, [0, 1])

  def test_of_equals_the_lowest_is_first(self):
    routing = route([[1.0, 2.0, 2.0, 1.0, 1.0]], 4)
    np.testing.assert_array_equal(routing.indices, [[1, 2, 0, 3]])

  @parameterized.parameters("softmax", "sigmoid", "softmax_after_topk")
  def test_gradient_reaches_logits_and_not_the_bias(self, score):
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(logits, bias):
      routing = route(logits, 2, score=score, selection_bias=bias)
      return jnp.sum(routing.weights * jnp.array([1.0, 3.0]))

    d_logits, d_bias = gradient(
      jnp.array([0.3, -0.4, 0.1, 0.9]), jnp.array([0.0, 0.1, 0.0, 0.2])
    )
    np.testing.assert_array_equal(d_bias, [0] * 4)
    self.assertGreater(float(jnp.abs(d_logits).max()), 0.1)


def batch():
  """Routing of tokens [2, 6] over 4 experts, and which tokens are valid."""
  logits = jax.random.normal(jax.random.key(0), (2, 6, 4))
  routing = route(logits, 2)
  return routing, jnp.arange(6) < jnp.array([[6], [2]])


def balance(probs, indices):
  """The loss's formula, for tokens in a list."""
  num_tokens, num_experts = probs.shape
  share = np.bincount(indices.ravel(), minlength=num_experts) / num_tokens
  return num_experts * np.sum(share * probs.mean(axis=0))


class StatsTest(parameterized.TestCase):
  def test_losses_over_the_batch_and_over_sequences(self):
    routing, valid = batch()
    stats = router.summarize(routing, valid=valid)
    probs, indices, mask = (
      np.asarray(a) for a in (routing.probs, routing.indices, valid)
    )
    self.assertAlmostEqual(
      float(router.load_balance_loss(stats)),
      balance(probs[mask], indices[mask]),
      places=5,
    )
    self.assertAlmostEqual(
      float(router.load_balance_loss(stats, scope="sequence")),
      (balance(probs[0], indices[0]) + balance(probs[1, :2], indices[1, :2]))
      / 2,
      places=5,
    )
    lse = np.log(np.exp(np.asarray(routing.logits)).sum(-1))
    self.assertAlmostEqual(
      float(router.z_loss(stats)), np.mean(lse[mask] ** 2), places=5
    )

  def test_an_unknown_scope(self):
    routing, valid = batch()
    stats = router.summarize(routing, valid=valid)
    with self.assertRaisesRegex(ValueError, "scope='row' must be"):
      router.load_balance_loss(stats, scope="row")

  def test_layers_add_up_to_the_loss_of_all_their_tokens(self):
    routing, valid = batch()
    layers = [router.summarize(routing, valid=v) for v in (valid, ~valid)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    everything = router.summarize(routing, valid=jnp.ones_like(valid))
    self.assertEqual(router.load_balance_loss(stacked).shape, (2,))
    self.assertAlmostEqual(
      float(router.load_balance_loss(router.sum_layers(stacked))),
      float(router.load_balance_loss(everything)),
      places=5,
    )

  def test_balanced_and_collapsed(self):
    even = route(jnp.zeros((1, 4, 4)), 1)
    even = router.Routing(
      logits=even.logits,
      probs=even.probs,
      indices=jnp.arange(4).reshape(1, 4, 1),
      weights=even.weights,
    )
    stats = router.summarize(even, valid=jnp.ones((1, 4), bool))
    metrics = router.metrics(stats)
    self.assertAlmostEqual(float(router.load_balance_loss(stats)), 1, places=6)
    self.assertAlmostEqual(float(metrics["entropy"]), math.log(4), places=6)
    self.assertAlmostEqual(
      float(metrics["load_entropy"]), math.log(4), places=6
    )
    self.assertEqual(float(metrics["max_load"]), 1)
    self.assertEqual(float(metrics["drop_rate"]), 0)

    logits = jnp.array([[[200.0, 0, 0, 0]] * 4])
    dropped = jnp.array([[[False], [True], [True], [True]]])
    stats = router.summarize(
      route(logits, 1),
      valid=jnp.array([[True, True, True, False]]),
      dropped=dropped,
    )
    metrics = router.metrics(stats)
    self.assertAlmostEqual(float(router.load_balance_loss(stats)), 4, places=6)
    self.assertEqual(float(metrics["entropy"]), 0)
    self.assertEqual(float(metrics["load_entropy"]), 0)
    self.assertEqual(float(metrics["max_load"]), 4)
    self.assertEqual(float(metrics["min_load"]), 0)
    self.assertAlmostEqual(float(metrics["drop_rate"]), 2 / 3, places=6)

  def test_without_a_valid_token_all_is_zero_and_finite(self):
    routing, valid = batch()

    @jax.grad
    def gradient(logits):
      stats = router.summarize(route(logits, 2), valid=jnp.zeros_like(valid))
      metrics = router.metrics(stats)
      return (
        router.load_balance_loss(stats)
        + router.load_balance_loss(stats, scope="sequence")
        + router.z_loss(stats)
        + sum(metrics.values())
      )

    np.testing.assert_array_equal(gradient(routing.logits), 0)

  def test_the_bias_moves_against_the_load(self):
    bias = router.updated_bias(
      jnp.array([0.5, 0.0, -0.5, 0.0]),
      jnp.array([0.4, 0.25, 0.1, 0.25]),
      rate=0.125,
    )
    np.testing.assert_array_equal(bias, [0.375, 0, -0.375, 0])

  def test_the_bias_balances(self):
    logits = jax.random.normal(jax.random.key(0), (4, 64, 8))
    logits += jnp.arange(8) * 0.5
    settings = config.RouterConfig(score="sigmoid", selection_bias=True)

    @jax.jit
    def step(bias, _):
      routing = router.route(
        logits, settings, num_chosen=2, selection_bias_E=bias
      )
      stats = router.summarize(routing, valid=jnp.ones((4, 64), bool))
      bias = router.updated_bias(bias, router.load(stats), rate=0.01)
      return bias, router.metrics(stats)["max_load"]

    _, max_load = jax.lax.scan(step, jnp.zeros((8,)), length=200)
    self.assertGreater(float(max_load[0]), 1.5)
    self.assertLess(float(max_load[-1]), 1.2)


if __name__ == "__main__":
  absltest.main()
