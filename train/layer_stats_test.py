"""Statistics of layers: against NumPy, and the same on any mesh."""

import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from train import balance as balance_lib
from train import layer_stats
from train import step as step_lib

_EXECUTION = model_config.ExecutionConfig(compute_dtype="float32")


def _config():
  """Twice a dense block and one with experts: four layers, two stacks."""
  mixer = model_config.AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=4)
  return model_config.ModelConfig(
    name="tiny",
    vocab_size=32,
    dim=8,
    groups=(
      model_config.LayerGroup(
        pattern=(
          model_config.BlockConfig(
            mixer=mixer, feed_forward=model_config.MlpConfig(dim=8)
          ),
          model_config.BlockConfig(
            mixer=mixer,
            feed_forward=model_config.MoeConfig(
              num_experts=4, experts_per_token=2, dim=8
            ),
          ),
        ),
        repeats=2,
      ),
    ),
    tie_embeddings=True,
    init_std=0.4,
  )


def _batch(padding=0):
  """Eight rows; the first is mostly padding, which is made of `padding`."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 32, (8, 7), dtype=np.int32)
  segment_ids = np.ones((8, 6), np.int32)
  segment_ids[0, 2:] = 0
  inputs = np.where(segment_ids > 0, tokens[:, :-1], padding)
  return {
    "tokens": inputs.astype(np.int32),
    "targets": tokens[:, 1:],
    "loss_weights": (segment_ids > 0).astype(np.float32),
    "positions": np.broadcast_to(np.arange(6, dtype=np.int32), (8, 6)).copy(),
    "segment_ids": segment_ids,
  }


@functools.cache
def _model():
  graphdef, _ = transformer.abstract(_config(), _EXECUTION)
  params = jax.jit(
    functools.partial(transformer.init, _config(), _EXECUTION, seed=0)
  )()
  return graphdef, jax.device_get(params)


def _settings(accumulation=1):
  return {
    "graphdef": _model()[0],
    "loss": step_lib.LossConfig(),
    "balance": balance_lib.BalanceConfig(),
    "accumulation": accumulation,
  }


@functools.cache
def _compiled(accumulation=1):
  return jax.jit(layer_stats.make(**_settings(accumulation)))


def _stats(batch, accumulation=1):
  return jax.device_get(_compiled(accumulation)(_model()[1], batch))


class LayerStatsTest(absltest.TestCase):
  def test_parameters_and_gradients(self):
    graphdef, params = _model()
    stats = _stats(_batch())
    grads, _ = jax.jit(
      functools.partial(
        step_lib.gradients,
        graphdef=graphdef,
        config=step_lib.LossConfig(),
        balance=balance_lib.BalanceConfig(),
        accumulation=1,
      )
    )(params, _batch())
    for kind, tree in (("param_norm", params), ("grad_norm", grads)):
      leaves = sharding.named_leaves(jax.device_get(tree))
      of_kind = [name for name in stats if name.startswith(f"{kind}/")]
      self.assertLen(of_kind, len(leaves))
      for name, leaf in leaves.items():
        stacked = name.startswith("group_")
        rows = leaf.reshape(2 if stacked else 1, -1)
        expected = np.linalg.norm(rows, axis=1)
        value = stats[f"{kind}/{name}"]
        self.assertEqual(value.shape, (2,) if stacked else (), name)
        np.testing.assert_allclose(
          value, expected if stacked else expected[0], rtol=1e-4, atol=1e-7
        )

  def test_activations(self):
    graphdef, params = _model()
    batch = jax.tree.map(jnp.asarray, _batch())
    output = transformer.bind(graphdef, params)(
      batch["tokens"],
      positions=batch["positions"],
      segment_ids=batch["segment_ids"],
      capture=True,
    )
    stats = _stats(batch)
    layers = [*np.asarray(output.inputs), np.asarray(output.residual)]
    self.assertLen(layers, 4 + 1)
    is_token = np.asarray(batch["segment_ids"]) > 0
    tokens = [x[is_token] for x in layers]
    np.testing.assert_allclose(
      stats["activation_rms"],
      [np.sqrt(np.mean(x**2)) for x in tokens],
      rtol=1e-4,
    )
    np.testing.assert_allclose(
      stats["activation_max"], [np.abs(x).max() for x in tokens], rtol=1e-4
    )

  def test_padding_does_not_count(self):
    stats, other = _stats(_batch()), _stats(_batch(padding=9))
    for name in ("activation_rms", "activation_max"):
      np.testing.assert_array_equal(stats[name], other[name])

  def test_experts_by_layer(self):
    stats = _stats(_batch())
    load = stats["expert_load/group_0.block_1"]
    self.assertEqual(load.shape, (2, 4))
    np.testing.assert_allclose(load.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(
      stats["expert_dropped/group_0.block_1"], [0, 0]
    )
    self.assertNotIn("expert_load/group_0.block_0", stats)

  def test_accumulation(self):
    whole, pieces = _stats(_batch()), _stats(_batch(), accumulation=2)
    for name, value in whole.items():
      if not name.startswith("activation"):
        np.testing.assert_allclose(pieces[name], value, rtol=1e-4, atol=1e-6)
    # The first piece is every second row: the others do not matter.
    batch = _batch()
    batch["tokens"][1::2] = 0
    np.testing.assert_array_equal(
      _stats(batch, accumulation=2)["activation_rms"], pieces["activation_rms"]
    )

  def test_any_mesh(self):
    mesh_config = sharding.MeshConfig(data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(mesh_config, jax.devices())
    _, params = _model()
    with jax.set_mesh(mesh):
      sharded = jax.device_put(params, sharding.param_shardings(params, mesh))
      stats = jax.jit(layer_stats.make(**_settings()))(
        sharded, sharding.put_batch(_batch(), mesh)
      )
    for name, value in _stats(_batch()).items():
      np.testing.assert_allclose(stats[name], value, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
