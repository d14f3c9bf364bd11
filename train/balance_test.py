import dataclasses
import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import config as model_config
from model import router as router_lib
from model import transformer
from train import balance
from train import optimizer as optimizer_lib
from train import step as step_lib

_NUM_EXPERTS = 4
_BIAS_PATH = ("group_0", "block_1", "feed_forward", "selection_bias_E")


def make_config():
  """A dense block and one with experts, repeated, so that both have stacks."""
  mixer = model_config.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=4)
  moe = model_config.MoeConfig(
    num_experts=_NUM_EXPERTS,
    experts_per_token=2,
    dim=8,
    router=model_config.RouterConfig(score="sigmoid", selection_bias=True),
  )
  return model_config.ModelConfig(
    name="tiny",
    vocab_size=31,
    dim=8,
    groups=(
      model_config.LayerGroup(
        pattern=(
          model_config.BlockConfig(
            mixer=mixer, feed_forward=model_config.MlpConfig(dim=8)
          ),
          model_config.BlockConfig(mixer=mixer, feed_forward=moe),
        ),
        repeats=2,
      ),
    ),
    tie_embeddings=True,
    init_std=0.4,
  )


def make_batch(rows=4, length=6):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 31, (rows, length + 1), dtype=np.int32)
  segment_ids = np.ones((rows, length), np.int32)
  # Rows of different lengths, so that pieces have different weights.
  segment_ids[0, 2:] = 0
  segment_ids[3, 5:] = 0
  return {
    "tokens": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "loss_weights": (segment_ids > 0).astype(np.float32),
    "positions": np.broadcast_to(np.arange(length), segment_ids.shape),
    "segment_ids": segment_ids,
  }


def value_at(tree, path):
  for key in path:
    tree = tree[key]
  return np.asarray(tree)


@functools.cache
def make_model():
  """Graph definition and parameters."""
  execution = model_config.ExecutionConfig(compute_dtype="float32")
  graphdef, _ = transformer.abstract(make_config(), execution)
  return graphdef, transformer.init(make_config(), execution, seed=0)


@functools.cache
def router_gradient(config, *, accumulation=1):
  """Of the balance alone: no token counts in the next token's loss."""
  graphdef, params = make_model()
  batch = make_batch()
  batch["loss_weights"] = np.zeros_like(batch["loss_weights"])
  gradients, _ = jax.jit(
    lambda params, batch: step_lib.gradients(
      params,
      batch,
      graphdef=graphdef,
      config=step_lib.LossConfig(),
      balance=config,
      accumulation=accumulation,
    )
  )(params, batch)
  path = ("group_0", "block_1", "feed_forward", "router_DE")
  return value_at(gradients, path)


class BalanceTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.graphdef, cls.params = make_model()
    cls.batch = make_batch()
    cls.train_sums = staticmethod(
      jax.jit(
        functools.partial(
          step_lib.train_sums,
          batch=jax.tree.map(jnp.asarray, cls.batch),
          graphdef=cls.graphdef,
          config=step_lib.LossConfig(),
        )
      )
    )

  def test_loss_is_the_mean_over_layers(self):
    sums = self.train_sums(self.params)
    (stats,) = sums.routers.values()
    self.assertEqual(stats.counts.shape, (2, _NUM_EXPERTS))
    self.assertEqual(float(stats.num_tokens[0]), 2 + 6 + 6 + 5)
    num_rows = jnp.float32(4)
    for scope in ("sequence", "batch", "global_batch"):
      config = balance.BalanceConfig(
        aux_loss_weight=0.5, aux_loss_scope=scope, z_loss_weight=0.25
      )
      expected_scope = "sequence" if scope == "sequence" else "batch"
      aux = router_lib.load_balance_loss(stats, scope=expected_scope)
      expected = 0.5 * np.mean(aux) + 0.25 * np.mean(router_lib.z_loss(stats))
      actual = balance.loss(sums.routers, config, num_sequences=num_rows)
      np.testing.assert_allclose(actual, expected, rtol=1e-6)
      self.assertGreater(float(actual), 0.0)

  @parameterized.parameters("sequence", "global_batch")
  def test_gradient_does_not_depend_on_pieces(self, scope):
    config = balance.BalanceConfig(
      aux_loss_weight=1.0, aux_loss_scope=scope, z_loss_weight=0.1
    )
    whole = router_gradient(config)
    pieces = router_gradient(config, accumulation=2)
    self.assertGreater(np.max(np.abs(whole)), 1e-3)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-6)

  def test_balance_within_pieces_is_another_loss(self):
    settings: dict[str, Any] = {"aux_loss_weight": 1.0, "z_loss_weight": 0.1}
    whole, pieces = (
      router_gradient(
        balance.BalanceConfig(aux_loss_scope=scope, **settings), accumulation=2
      )
      for scope in ("global_batch", "batch")
    )
    self.assertGreater(np.max(np.abs(whole - pieces)), 1e-4)

  def test_gradient_by_differences(self):
    config = balance.BalanceConfig(aux_loss_weight=1.0, z_loss_weight=0.5)

    @jax.jit
    def loss(params):
      routers = self.train_sums(params).routers
      return balance.loss(routers, config, num_sequences=jnp.float32(4))

    gradient = jax.jit(jax.grad(loss))(self.params)
    squared = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))
    # The choice of experts has no gradient: a step small enough changes none.
    size = 1e-3 / squared**0.5
    ahead, behind = (
      loss(
        jax.tree.map(
          lambda p, g, sign=sign: p + sign * size * g, self.params, gradient
        )
      )
      for sign in (1, -1)
    )
    measured = (ahead - behind) / (2 * size)
    np.testing.assert_allclose(measured, squared, rtol=2e-2)

  def test_a_step_moves_the_bias_and_nothing_else_does(self):
    rate = 0.01
    optimizer = optimizer_lib.make(
      optimizer_lib.OptimizerConfig(decay="all", weight_decay=0.5),
      optax.constant_schedule(0.1),
    )
    start = jax.tree.map(lambda x: x, self.params)
    bias = np.linspace(-0.2, 0.2, 8, dtype=np.float32).reshape(2, 4)
    start["group_0"]["block_1"]["feed_forward"]["selection_bias_E"] = bias
    state = step_lib.init_state(lambda: start, optimizer)
    results = {}
    for use in (rate, 0.0):
      train_step = jax.jit(
        step_lib.make_train_step(
          graphdef=self.graphdef,
          optimizer=optimizer,
          schedule=optax.constant_schedule(0.1),
          loss=step_lib.LossConfig(),
          balance=balance.BalanceConfig(bias_update_rate=use),
        )
      )
      results[use] = train_step(state, self.batch)
    unmoved = value_at(results[0.0][0].params, _BIAS_PATH)
    np.testing.assert_array_equal(unmoved, bias)
    moved = value_at(results[rate][0].params, _BIAS_PATH)
    sums = self.train_sums(start)
    counts = np.asarray(sums.routers["group_0.block_1"].counts)
    expected = bias + rate * np.sign(counts.mean(1, keepdims=True) - counts)
    np.testing.assert_allclose(moved, expected, atol=1e-7)
    self.assertGreater(np.max(np.abs(moved - bias)), 0.5 * rate)
    metrics = results[rate][1]
    self.assertEqual(metrics["router/load"].shape, (_NUM_EXPERTS,))
    np.testing.assert_allclose(np.sum(metrics["router/load"]), 1, rtol=1e-6)
    self.assertEqual(float(metrics["router/drop_rate"]), 0.0)

  def test_a_capacity_holds_in_training_only(self):
    config = make_config()
    (group,) = config.groups
    dense, sparse = group.pattern
    assert isinstance(sparse.feed_forward, model_config.MoeConfig)
    bounded = dataclasses.replace(
      sparse,
      feed_forward=dataclasses.replace(
        sparse.feed_forward, capacity_factor=0.5
      ),
    )
    group = dataclasses.replace(group, pattern=(dense, bounded))
    config = dataclasses.replace(config, groups=(group,))
    execution = model_config.ExecutionConfig(compute_dtype="float32")
    graphdef, _ = transformer.abstract(config, execution)
    batch = jax.tree.map(jnp.asarray, self.batch)
    arguments: dict[str, Any] = {
      "graphdef": graphdef,
      "config": step_lib.LossConfig(),
    }
    trained = jax.jit(functools.partial(step_lib.train_sums, **arguments))(
      self.params, batch
    )
    metrics = balance.metrics(trained.routers)
    # Half of the even share is taken, and less where the load is uneven.
    self.assertGreater(float(metrics["router/drop_rate"]), 0.4)
    scored = jax.jit(functools.partial(step_lib.eval_sums, **arguments))(
      self.params, batch
    )
    dropless = self.train_sums(self.params).main
    np.testing.assert_allclose(scored.nll, dropless.nll, rtol=1e-6)
    self.assertNotAlmostEqual(
      float(trained.main.nll), float(scored.nll), places=3
    )

  def test_dense_models_report_nothing(self):
    self.assertEqual(balance.metrics({}), {})

  @parameterized.parameters(
    "aux_loss_weight", "z_loss_weight", "bias_update_rate"
  )
  def test_refuses(self, name):
    with self.assertRaisesRegex(ValueError, rf"balance.{name}=-1.0 must be 0"):
      settings: dict[str, Any] = {name: -1.0}
      balance.BalanceConfig(**settings)


if __name__ == "__main__":
  absltest.main()
