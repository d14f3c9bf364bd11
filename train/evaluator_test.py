"""Evaluation of a part of the held-out text, and of all of it."""

import dataclasses
import pathlib

from absl.testing import absltest
import jax

from data import pipeline
from model import sharding
from train import evaluator
from train import fixtures
from train import metrics
from train import program as program_lib


class EvaluatorTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.workdir = root / "workdir"
    self.workdir.mkdir()
    run = fixtures.text_config(root / "data")
    self.config = dataclasses.replace(
      run, run=dataclasses.replace(run.run, batch_size=1)
    )
    self.mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    self.enter_context(jax.set_mesh(self.mesh))
    self.program = program_lib.build(self.config, self.mesh)
    self.params = self.program.init().params

  def _evaluator(self):
    writer = metrics.Writer(self.workdir, start_step=0)
    self.addCleanup(writer.close)
    return evaluator.Evaluator(
      self.config, self.config.data, self.program, self.mesh, writer
    )

  def _all_tokens(self, source):
    return pipeline.make_eval(
      self.config.data, source=source, seq_len=fixtures.SEQ_LEN, batch_size=1
    ).num_tokens

  def test_part_and_whole(self):
    scorer = self._evaluator()
    part = scorer.score(self.params, 1, max_batches=1)
    whole = scorer.score(self.params, 1, max_batches=None)
    for source in ("a", "b"):
      self.assertEqual(part[source].num_tokens, fixtures.SEQ_LEN)
      self.assertEqual(whole[source].num_tokens, self._all_tokens(source))
      self.assertGreater(whole[source].num_tokens, fixtures.SEQ_LEN)
    # More batches than there are: all.
    many = scorer.score(self.params, 1, max_batches=10_000)
    self.assertEqual(many, whole)
    self.assertAlmostEqual(
      whole["blend"].nats_per_token,
      0.7 * whole["a"].nats_per_token + 0.3 * whole["b"].nats_per_token,
    )

  def test_finish_draws_and_returns(self):
    results = self._evaluator().finish(self.params, 5, self.workdir)
    self.assertCountEqual(results, ["a", "b", "blend"])
    self.assertTrue((self.workdir / "loss.png").exists())

  def test_no_prompts_no_samples(self):
    self._evaluator().sample(self.params, 1)
    self.assertEmpty(metrics.read(self.workdir))


if __name__ == "__main__":
  absltest.main()
