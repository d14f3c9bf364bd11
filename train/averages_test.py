"""Optimizers with more state than AdamW: on a mesh, saved, and resumed."""

import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import checkpoint as model_checkpoint
from model import sharding
from train import checkpoint
from train import ema
from train import fixtures
from train import optimizer
from train import program as program_lib
from train import step as step_lib

# As in step_test.py.
_NOISE = 3e-4
_SETTINGS: dict[str, dict[str, Any]] = {
  "ema": {"ema": ema.EmaConfig(decay=0.9)},
  "schedule_free": {
    "optimizer": optimizer.OptimizerConfig(kind="schedule_free")
  },
  "int8": {
    "optimizer": optimizer.OptimizerConfig(
      first_moment_dtype="int8", second_moment_dtype="int8"
    )
  },
}


def _batch(seed):
  rng = np.random.default_rng(seed)
  shape = (8, fixtures.SEQ_LEN)
  tokens = rng.integers(
    0, fixtures.VOCAB_SIZE, (shape[0], shape[1] + 1), dtype=np.int32
  )
  positions = np.arange(shape[1], dtype=np.int32)
  return {
    "tokens": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "loss_weights": np.ones(shape, np.float32),
    "positions": np.broadcast_to(positions, shape).copy(),
    "segment_ids": np.ones(shape, np.int32),
  }


class AveragesTest(parameterized.TestCase):
  def _train(self, program, mesh, state, steps):
    losses = []
    for step in steps:
      batch = sharding.put_batch(_batch(step), mesh)
      state, metrics = program.train_step(state, batch)
      losses.append(float(metrics["loss"]))
    return losses, state

  @parameterized.parameters(*_SETTINGS)
  def test_a_mesh_and_a_restart_change_nothing(self, name):
    run = fixtures.run_config(**_SETTINGS[name])
    alone = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(alone):
      program = program_lib.build(run, alone)
      losses, state = self._train(program, alone, program.init(), range(5))
      want = jax.device_get((state, step_lib.result(state)))

    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=4, tensor=2), jax.devices()
    )
    with jax.set_mesh(mesh):
      program = program_lib.build(run, mesh)
      head, state = self._train(program, mesh, program.init(), range(3))
      workdir = pathlib.Path(self.create_tempdir().full_path)
      saved = checkpoint.Checkpoints(workdir, config=run, tokenizer=None)
      self.addCleanup(saved.close)
      saved.save(state, {})
      saved.wait()
      served = jax.device_get(step_lib.result(state))
      tail, state = self._train(program, mesh, state, range(3, 5))
      restored = saved.restore_latest(program.shapes, program.shardings)
      assert restored is not None
      again, other = self._train(program, mesh, restored.state, range(3, 5))
      # To the bit.
      self.assertEqual(again, tail)
      jax.tree.map(np.testing.assert_array_equal, other, state)
      got = jax.device_get((state, step_lib.result(state)))
      # As their parameters are.
      for leaf in jax.tree.leaves(state):
        if leaf.ndim == 4:
          self.assertEqual(leaf.addressable_shards[0].data.size * 8, leaf.size)

    np.testing.assert_allclose(head + tail, losses, atol=1e-4)
    # The rounding of a gradient may send a moment to the next code.
    noise = 3 * _NOISE if name == "int8" else _NOISE
    for a, b in zip(
      jax.tree.leaves((got[0].params, got[1])),
      jax.tree.leaves((want[0].params, want[1])),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, atol=noise)
    # An average is near the parameters, and not the same.
    trained, result = (x["embed_VD"] for x in (want[0].params, want[1]))
    difference = np.abs(result - trained).max()
    if name == "int8":
      self.assertEqual(difference, 0.0)
    else:
      self.assertBetween(difference, 1e-4, 3e-2)
    # Servers read what is evaluated.
    bundle = model_checkpoint.load(workdir, alone)
    jax.tree.map(np.testing.assert_array_equal, bundle.params, served)


if __name__ == "__main__":
  absltest.main()
