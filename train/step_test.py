"""The train step: accumulation, meshes, overfitting."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model import transformer
from train import config as config_lib
from train import fixtures
from train import program as program_lib
from train import step as step_lib

# Parameters move by up to 1e-2 a step (AdamW's update is about the learning
# rate whatever the gradient), so rounding of near-zero gradients shows; five
# steps of it stay within this.
_NOISE = 3e-4


def _batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(
    0, fixtures.VOCAB_SIZE, (rows, fixtures.SEQ_LEN + 1), dtype=np.int32
  )
  weights = (rng.random((rows, fixtures.SEQ_LEN)) < 0.8).astype(np.float32)
  shape = (rows, fixtures.SEQ_LEN)
  return {
    "tokens": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "loss_weights": weights,
    "positions": np.broadcast_to(
      np.arange(fixtures.SEQ_LEN, dtype=np.int32), shape
    ).copy(),
    "segment_ids": np.ones(shape, np.int32),
  }


def _train(mesh_config, num_steps=5, *, repeat=False, **settings):
  """Losses and final parameters of a few steps on a mesh."""
  run = fixtures.run_config(mesh=mesh_config, **settings)
  num_devices = np.prod(
    [mesh_config.data, mesh_config.fsdp, mesh_config.tensor]
  )
  mesh = sharding.make_mesh(mesh_config, jax.devices()[:num_devices])
  losses = []
  with jax.set_mesh(mesh):
    program = program_lib.build(run, mesh)
    state = program.init()
    for i in range(num_steps):
      batch = sharding.put_batch(_batch(seed=0 if repeat else i), mesh)
      state, metrics = program.train_step(state, batch)
      losses.append(float(metrics["loss"]))
  return np.array(losses), jax.device_get(state.params)


def _mesh(data=1, fsdp=1, tensor=1):
  return sharding.MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


def _largest_difference(a, b):
  return max(
    np.max(np.abs(x - y))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


class StepTest(parameterized.TestCase):
  @parameterized.parameters(
    {"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}
  )
  def test_any_mesh_trains_as_one_device(self, **axes):
    losses, params = _train(_mesh())
    sharded_losses, sharded_params = _train(_mesh(**axes))
    np.testing.assert_allclose(sharded_losses, losses, atol=2e-5)
    self.assertLess(_largest_difference(params, sharded_params), _NOISE)

  def test_another_batch_is_another_result(self):
    # The control: the comparison above can tell runs apart.
    _, params = _train(_mesh())
    _, other = _train(_mesh(), repeat=True)
    self.assertGreater(_largest_difference(params, other), 10 * _NOISE)

  def test_fsdp_shards_matrices_and_their_moments(self):
    mesh = sharding.make_mesh(_mesh(fsdp=8), jax.devices())
    with jax.set_mesh(mesh):
      state = program_lib.build(fixtures.run_config(), mesh).init()
    sharded = 0
    for leaf in jax.tree.leaves(state):
      if leaf.ndim >= 2 and leaf.size > 128:
        self.assertEqual(leaf.addressable_shards[0].data.size * 8, leaf.size)
        sharded += 1
    self.assertEqual(sharded, 3 * 8)  # Embedding and 7 matrices, with moments.

  def test_size_of_loss_chunks_changes_nothing(self):
    losses, params = _train(_mesh())
    other_losses, other_params = _train(
      _mesh(), loss=step_lib.LossConfig(chunk_tokens=16)
    )
    np.testing.assert_allclose(other_losses, losses, atol=2e-5)
    self.assertLess(_largest_difference(params, other_params), _NOISE)

  @parameterized.parameters(2, 4)
  def test_accumulation_changes_nothing(self, pieces):
    run = config_lib.LoopConfig(
      steps=5, batch_size=8, seq_len=fixtures.SEQ_LEN, accumulation=pieces
    )
    losses, params = _train(_mesh())
    other_losses, other_params = _train(_mesh(), run=run)
    np.testing.assert_allclose(other_losses, losses, atol=2e-5)
    self.assertLess(_largest_difference(params, other_params), _NOISE)

  def test_overfits_one_batch(self):
    losses, _ = _train(_mesh(), 150, repeat=True)
    self.assertGreater(losses[0], 5.0)
    self.assertLess(losses[-1], 0.02)

  def test_gradient_is_the_mean_over_tokens(self):
    run = fixtures.run_config()
    graphdef, _ = transformer.abstract(run.model, run.execution)
    params = transformer.init(run.model, run.execution, seed=0)
    batch = jax.tree.map(jnp.asarray, _batch())

    def grads(batch):
      return step_lib.gradients(
        params, batch, graphdef=graphdef, config=run.loss, accumulation=1
      )

    got, sums = grads(batch)
    self.assertEqual(float(sums.weight), batch["loss_weights"].sum())
    # The same rows twice: twice the tokens, the same mean.
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    again, _ = grads(twice)
    self.assertLess(_largest_difference(got, again), 1e-6)

  def test_finite_differences(self):
    run = fixtures.run_config()
    graphdef, _ = transformer.abstract(run.model, run.execution)
    params = transformer.init(run.model, run.execution, seed=0)
    # Larger weights than the initial ones, so that no gradient is negligible.
    params = jax.tree.map(lambda x: 3 * x, params)
    batch = jax.tree.map(jnp.asarray, _batch())
    grads, sums = step_lib.gradients(
      params, batch, graphdef=graphdef, config=run.loss, accumulation=1
    )

    def mean_loss(params):
      got = step_lib.batch_loss(
        params, batch, graphdef=graphdef, config=run.loss
      )
      return float(got.loss) / float(sums.weight)

    paths = jax.tree_util.tree_leaves_with_path(grads)
    for index, (path, grad) in enumerate(paths):
      # Along its own gradient each parameter's derivative is largest, which
      # keeps float32 rounding of the loss (1e-6) small beside it.
      norm = float(np.sqrt(np.sum(np.square(grad))))
      step = 2e-3 / norm
      leaves, tree = jax.tree.flatten(params)

      def moved(distance, index=index, grad=grad, leaves=leaves, tree=tree):
        changed = list(leaves)
        changed[index] += distance * grad
        return mean_loss(jax.tree.unflatten(tree, changed))

      slope = (moved(step) - moved(-step)) / (2 * step)
      with self.subTest(jax.tree_util.keystr(path)):
        np.testing.assert_allclose(slope, norm**2, rtol=0.02)


class LossConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"z_loss_weight": -1.0}, "loss.z_loss_weight=-1.0"),
    ({"chunk_tokens": 0}, "loss.chunk_tokens=0"),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      step_lib.LossConfig(**settings)


if __name__ == "__main__":
  absltest.main()
