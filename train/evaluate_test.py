"""Held-out loss: every token once, whatever the batches."""

import functools
import math

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model import transformer
from train import evaluate
from train import fixtures
from train import loss
from train import step


class EvaluateTest(absltest.TestCase):
  def test_scores_all_batches_by_their_tokens(self):
    run = fixtures.run_config()
    graphdef, _ = transformer.abstract(run.model, run.execution)
    params = transformer.init(run.model, run.execution, seed=0)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    rng = np.random.default_rng(0)
    shape = (3, fixtures.SEQ_LEN)
    batches = []
    for filled in (shape[1], 5):
      weights = np.zeros(shape, np.float32)
      weights[:, :filled] = 1
      batches.append(
        {
          "tokens": rng.integers(0, 300, shape, dtype=np.int32),
          "targets": rng.integers(0, 300, shape, dtype=np.int32),
          "loss_weights": weights,
          "positions": np.tile(np.arange(shape[1], dtype=np.int32), (3, 1)),
          "segment_ids": np.ones(shape, np.int32),
        }
      )
    with jax.set_mesh(mesh):
      result = evaluate.score(
        params,
        batches,
        num_bytes=1000,
        eval_step=jax.jit(
          step.make_eval_step(graphdef=graphdef, loss=run.loss)
        ),
        mesh=mesh,
      )
    model = transformer.bind(graphdef, params)
    total = sum(
      float(
        loss.reference(
          model(b["tokens"]).hidden,
          model.head(),
          b["targets"],
          b["loss_weights"],
        ).nll
      )
      for b in jax.tree.map(jnp.asarray, batches)
    )
    tokens = 3 * (fixtures.SEQ_LEN + 5)
    self.assertEqual(result.num_tokens, tokens)
    self.assertAlmostEqual(result.nats_per_token, total / tokens, places=4)
    self.assertAlmostEqual(
      result.bits_per_byte, total / math.log(2) / 1000, places=3
    )

  def test_blend_weighs_by_the_mixture(self):
    make = functools.partial(evaluate.HeldOut, bits_per_byte=1.0)
    blended = evaluate.blend(
      {
        "a": make(nats_per_token=2.0, num_tokens=10),
        "b": make(nats_per_token=6.0, num_tokens=1),
      },
      {"a": 3.0, "b": 1.0, "not evaluated": 5.0},
    )
    self.assertAlmostEqual(blended.nats_per_token, 3.0)
    self.assertAlmostEqual(blended.bits_per_byte, 1.0)
    self.assertEqual(blended.num_tokens, 11)


if __name__ == "__main__":
  absltest.main()
