"""Clipped heads have the threshold as their largest logit; others are as is."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from train import config as config_lib
from train import fixtures
from train import optimizer
from train import program as program_lib
from train import qk_clip


def _mla(q_rank):
  """Two layers of latent attention."""
  model = fixtures.model()
  mixer = model_config.MlaConfig(
    num_heads=4,
    kv_rank=16,
    q_rank=q_rank,
    nope_head_dim=8,
    rope_head_dim=4,
    value_head_dim=8,
    rope=model_config.RopeConfig(theta=1e4),
  )
  group = model.groups[0]
  block = dataclasses.replace(group.pattern[0], mixer=mixer)
  group = dataclasses.replace(group, pattern=(block,))
  return dataclasses.replace(model, groups=(group,))


def _attention(**settings):
  """The tiny model, with such attention."""
  model = fixtures.model()
  group = model.groups[0]
  block = group.pattern[0]
  assert isinstance(block.mixer, model_config.AttentionConfig)
  mixer = dataclasses.replace(block.mixer, **settings)
  block = dataclasses.replace(block, mixer=mixer)
  group = dataclasses.replace(group, pattern=(block,))
  return dataclasses.replace(model, groups=(group,))


def _batch(rows=8):
  rng = np.random.default_rng(0)
  shape = (rows, fixtures.SEQ_LEN)
  positions = np.arange(shape[1], dtype=np.int32)
  return {
    "tokens": rng.integers(0, fixtures.VOCAB_SIZE, shape, dtype=np.int32),
    "targets": rng.integers(0, fixtures.VOCAB_SIZE, shape, dtype=np.int32),
    "loss_weights": np.ones(shape, np.float32),
    "positions": np.broadcast_to(positions, shape).copy(),
    "segment_ids": np.ones(shape, np.int32),
  }


class ClipTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("grouped", fixtures.model),
    ("biased", lambda: _attention(qkv_bias=True)),
    ("latent", lambda: _mla(None)),
    ("latent_queries", lambda: _mla(12)),
  )
  def test_each_head_has_its_factor(self, make):
    """Only of the first layer: later ones see what it has changed."""
    model = make()
    execution = model_config.ExecutionConfig(compute_dtype="float32")
    graphdef, shapes = transformer.abstract(model, execution)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes
    )
    tokens = jnp.asarray(_batch(2)["tokens"])

    @jax.jit
    def largest(params):
      output = transformer.bind(graphdef, params)(tokens, measure_logits=True)
      return output.max_logits

    before = largest(params)
    heads = before["group_0"]["block_0"][0]
    # Half of the heads exceed it.
    threshold = float(jnp.median(heads))
    clipped = qk_clip.clip(params, before, model, threshold=threshold)
    after = largest(clipped)["group_0"]["block_0"][0]
    np.testing.assert_allclose(after, np.minimum(heads, threshold), rtol=2e-5)
    metrics = qk_clip.metrics(before, threshold=threshold)
    everything = before["group_0"]["block_0"]
    self.assertEqual(metrics["qk_clip/max_logit"], np.max(everything))
    self.assertEqual(metrics["qk_clip/heads"], np.sum(everything > threshold))

  def test_nothing_changes_below_the_threshold(self):
    model = fixtures.model()
    execution = model_config.ExecutionConfig()
    params = transformer.init(model, execution, seed=0)
    logits = {"group_0": {"block_0": jnp.full((2, 4), 99.0)}}
    clipped = qk_clip.clip(params, logits, model, threshold=100.0)
    jax.tree.map(np.testing.assert_array_equal, clipped, params)


class StepTest(absltest.TestCase):
  def train(self, mesh_config, *, accumulation, num_steps=4):
    run = fixtures.run_config(
      mesh=mesh_config,
      # Of initial logits of some 0.1.
      optimizer=optimizer.OptimizerConfig(
        kind="muon", qk_clip=0.05, muon=optimizer.MuonConfig(dtype="float32")
      ),
      run=config_lib.LoopConfig(
        steps=4,
        batch_size=8,
        seq_len=fixtures.SEQ_LEN,
        accumulation=accumulation,
      ),
    )
    sizes = dataclasses.asdict(mesh_config)
    num_devices = int(np.prod([size or 1 for size in sizes.values()]))
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:num_devices])
    with jax.set_mesh(mesh):
      program = program_lib.build(run, mesh)
      state = program.init()
      history = []
      for _ in range(num_steps):
        state, metrics = program.train_step(
          state, sharding.put_batch(_batch(), mesh)
        )
        history.append(
          [
            float(metrics[name])
            for name in ("loss", "qk_clip/max_logit", "qk_clip/heads")
          ]
        )
    return np.array(history), jax.device_get(state.params)

  def test_pieces_and_meshes_clip_alike(self):
    want, params = self.train(sharding.MeshConfig(fsdp=1), accumulation=1)
    self.assertGreater(want[:, 2].min(), 0)
    got, others = self.train(
      sharding.MeshConfig(fsdp=2, tensor=2, context=2), accumulation=2
    )
    np.testing.assert_allclose(got, want, atol=1e-3)
    for a, b in zip(*map(jax.tree.leaves, (others, params)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-3)


class RefuseTest(absltest.TestCase):
  def test_refuses_what_cannot_be_clipped(self):
    clip = optimizer.OptimizerConfig(qk_clip=100.0)
    with self.assertRaisesRegex(ValueError, "qk_norm='head'.*leave it unset"):
      fixtures.run_config(optimizer=clip, model=_attention(qk_norm="head"))
    model = fixtures.model()
    block = model.groups[0].pattern[0]
    ahead = dataclasses.replace(model, mtp=model_config.MtpConfig(block=block))
    with self.assertRaisesRegex(ValueError, "mtp_loss_weight to 0"):
      fixtures.run_config(optimizer=clip, model=ahead)


if __name__ == "__main__":
  absltest.main()
