"""The train step: accumulation, meshes, overfitting."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import config as model_config
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
        params,
        batch,
        graphdef=graphdef,
        config=run.loss,
        balance=run.balance,
        accumulation=1,
      )

    got, sums = grads(batch)
    self.assertEqual(float(sums.main.weight), batch["loss_weights"].sum())
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
      params,
      batch,
      graphdef=graphdef,
      config=run.loss,
      balance=run.balance,
      accumulation=1,
    )

    def mean_loss(params):
      got = step_lib.eval_sums(
        params, batch, graphdef=graphdef, config=run.loss
      )
      return float(got.loss) / float(sums.main.weight)

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


class MtpTest(parameterized.TestCase):
  """The loss of multi-token prediction, with packed documents."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model = fixtures.model(num_layers=1)
    # A soft cap too: every head of the model has it.
    cls.run_config = fixtures.run_config(
      model=dataclasses.replace(
        model,
        logit_softcap=3.0,
        mtp=model_config.MtpConfig(
          block=model.groups[0].pattern[0], num_modules=2
        ),
      ),
      loss=step_lib.LossConfig(
        mtp_loss_weight=0.5, z_loss_weight=1e-2, chunk_tokens=64
      ),
    )
    cls.graphdef, shapes = transformer.abstract(
      cls.run_config.model, cls.run_config.execution
    )
    rng = np.random.default_rng(0)
    # Larger weights than the initial ones, so that no gradient is negligible.
    cls.params = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.asarray(
        rng.uniform(0.5, 1.5, x.shape)
        if path[-1].key == "scale_D"
        else rng.normal(0, 0.2, x.shape),
        x.dtype,
      ),
      shapes,
    )
    batch = _batch()
    # Documents of several lengths, and rows that end early.
    begins = rng.random(batch["tokens"].shape) < 0.2
    batch["segment_ids"] = 1 + np.cumsum(begins, axis=1, dtype=np.int32)
    batch["segment_ids"][::3, 20:] = 0
    batch["loss_weights"][::3, 20:] = 0
    # Most of the weight lies in few rows: pieces are unequal.
    batch["loss_weights"][2::4] *= 0.1
    cls.batch = jax.tree.map(jnp.asarray, batch)

  def slow_loss(self, params):
    """Position by position, from all logits: (loss, module's mean nll)."""
    batch, loss = jax.device_get(self.batch), self.run_config.loss
    model = transformer.bind(self.graphdef, params)
    where = {k: batch[k] for k in ("positions", "segment_ids")}
    output = model(self.batch["tokens"], **where)
    further = model.predict_ahead(output, self.batch["tokens"], **where)
    means = []
    for places, hidden in enumerate(
      [output.hidden, *(p.hidden for p in further)]
    ):
      logits = 3.0 * jnp.tanh(hidden @ params["embed_VD"].T / 3.0)
      log_p = jax.nn.log_softmax(logits)
      rows, columns, targets, weights = [], [], [], []
      for row, column in np.ndindex(*batch["tokens"].shape):
        last = column + places
        if last >= batch["tokens"].shape[1]:
          continue
        segments = batch["segment_ids"][row, [column, last]]
        if segments[0] != segments[1] or segments[0] == 0:
          continue
        rows.append(row)
        columns.append(column)
        targets.append(batch["targets"][row, last])
        weights.append(batch["loss_weights"][row, last])
      nll = -log_p[np.array(rows), np.array(columns), np.array(targets)]
      z_loss = 0.0
      if places == 0:
        log_z = jax.nn.logsumexp(logits, axis=-1)
        z_loss = (
          loss.z_loss_weight * log_z[np.array(rows), np.array(columns)] ** 2
        )
      weights = np.array(weights)
      means.append(jnp.sum(weights * (nll + z_loss)) / weights.sum())
    total = means[0] + 0.5 * (means[1] + means[2]) / 2
    return total, (means[1] + means[2]) / 2

  def fast(self, accumulation):
    return jax.jit(
      functools.partial(
        step_lib.gradients,
        graphdef=self.graphdef,
        config=self.run_config.loss,
        balance=self.run_config.balance,
        accumulation=accumulation,
      )
    )(self.params, self.batch)

  def test_equals_a_loop_over_positions(self):
    wanted, mean = jax.jit(jax.grad(self.slow_loss, has_aux=True))(self.params)
    for accumulation in (1, 4):
      grads, sums = self.fast(accumulation)
      got = sum(float(s.nll / s.weight) for s in sums.ahead) / 2
      self.assertAlmostEqual(got, float(mean), places=5)
      for (path, want), grad in zip(
        jax.tree_util.tree_leaves_with_path(wanted),
        jax.tree.leaves(grads),
        strict=True,
      ):
        with self.subTest(jax.tree_util.keystr(path), pieces=accumulation):
          largest = float(jnp.abs(want).max())
          self.assertGreater(largest, 1e-5)
          np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-4 * largest)

  def test_is_not_a_part_of_held_out_loss(self):
    eval_step = jax.jit(
      step_lib.make_eval_step(graphdef=self.graphdef, loss=self.run_config.loss)
    )
    unused = self.params | {
      name: jax.tree.map(lambda x: x * jnp.nan, self.params[name])
      for name in ("mtp_0", "mtp_1")
    }
    sums = eval_step(unused, self.batch)
    _, train_sums = self.fast(1)
    np.testing.assert_allclose(sums.loss, train_sums.main.loss, rtol=1e-6)

  def test_weight_0_leaves_it_out(self):
    config = dataclasses.replace(self.run_config.loss, mtp_loss_weight=0.0)
    sums = jax.eval_shape(
      functools.partial(
        step_lib.train_sums, graphdef=self.graphdef, config=config
      ),
      self.params,
      self.batch,
    )
    self.assertEqual(sums.ahead, ())

  def test_a_sharded_step_reports_and_lowers_it(self):
    optimizer = optax.adam(1e-2)
    train_step = jax.jit(
      step_lib.make_train_step(
        graphdef=self.graphdef,
        optimizer=optimizer,
        schedule=optax.constant_schedule(1e-2),
        loss=self.run_config.loss,
      )
    )
    losses = []
    for num_devices, mesh_config in (
      (1, _mesh()),
      (4, _mesh(fsdp=2, tensor=2)),
    ):
      mesh = sharding.make_mesh(mesh_config, jax.devices()[:num_devices])
      with jax.set_mesh(mesh):
        params = jax.device_put(
          self.params, sharding.param_shardings(self.params, mesh)
        )
        state = step_lib.init_state(lambda params=params: params, optimizer)
        batch = jax.device_put(self.batch, sharding.batch_sharding(mesh))
        history = []
        for _ in range(5):
          state, metrics = train_step(state, batch)
          history.append(float(metrics["mtp_loss"]))
      losses.append(history)
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    self.assertLess(losses[0][-1], losses[0][0] - 0.1)


class LossConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"z_loss_weight": -1.0}, "loss.z_loss_weight=-1.0"),
    ({"chunk_tokens": 0}, "loss.chunk_tokens=0"),
    ({"mtp_loss_weight": -0.1}, "loss.mtp_loss_weight=-0.1"),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      step_lib.LossConfig(**settings)


if __name__ == "__main__":
  absltest.main()
