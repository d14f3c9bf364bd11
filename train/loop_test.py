"""A whole run in one process: what it leaves in its workdir."""

import dataclasses
import json
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import config as data_config
from data import fixtures as data_fixtures
from data import indexed
from model import checkpoint
from train import config as config_lib
from train import fixtures
from train import goodput
from train import loop
from train import metrics
from train import profiler
from train import samples
from train import step


class LoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.workdir = self.root / "workdir"

  def _text_run(self, **settings):
    run = fixtures.text_config(self.root / "data", **settings)
    prompts = ("In the beginning", "문장의")
    return dataclasses.replace(
      run, eval=dataclasses.replace(run.eval, prompts=prompts)
    )

  def test_leaves_everything_a_user_wants(self):
    run = self._text_run(steps=9)
    result = loop.run(run, self.workdir)
    self.assertEqual((result.step, result.stopped_by), (9, 0))
    self.assertCountEqual(result.held_out, ["a", "b", "blend"])

    records = metrics.read(self.workdir)
    at = {}
    for record in records:
      at.setdefault(record["kind"], []).append(record["step"])
    self.assertEqual(at["train"], [2, 4, 6, 8, 9])
    self.assertEqual(at["eval/blend"], [4, 8, 9])
    self.assertEqual(at["sample/1"], [4, 8, 9])
    samples = [r["text"] for r in records if r["kind"] == "sample/1"]
    self.assertTrue(all(text.startswith("문장의") for text in samples))

    self.assertTrue((self.workdir / "loss.png").exists())
    self.assertNotEmpty(list((self.workdir / "tensorboard").iterdir()))
    saved = json.loads((self.workdir / "config.json").read_text())
    self.assertEqual(saved["run"]["steps"], 9)
    # Every 2 steps and at the end.
    self.assertEqual(
      checkpoint.steps(self.workdir / "checkpoints"), [2, 4, 6, 8, 9]
    )

  def test_learns(self):
    run = self._text_run(steps=60)
    result = loop.run(run, self.workdir)
    first = next(
      r for r in metrics.read(self.workdir) if r["kind"] == "eval/blend"
    )
    self.assertLess(
      result.held_out["blend"].nats_per_token, first["nats_per_token"] - 0.5
    )

  def test_resumed_run_equals_an_unbroken_one(self):
    # The killed-process version, with a control, is resume_test.
    run = self._text_run(steps=8)
    loop.run(run, self.workdir)
    broken = self.root / "broken"
    # The same schedule: it is constant, so a shorter run is a prefix.
    loop.run(fixtures.with_steps(run, 4), broken)
    # Looking at a run does not change it either.
    watched = dataclasses.replace(
      run,
      observe=config_lib.ObserveConfig(
        profile_at=(6,), profile_steps=2, layers_every=3
      ),
    )
    loop.run(watched, broken, allow_config_changes=True)
    self._check_watched(broken)

    def digests(workdir):
      path = workdir / "checkpoints" / "8" / "meta" / "digests.json"
      return json.loads(path.read_text())["arrays"]

    self.assertEqual(digests(self.workdir), digests(broken))

  def _check_watched(self, workdir):
    self.assertNotEmpty(
      list((workdir / profiler.FOLDER / "step-6").rglob("*.xplane.pb"))
    )
    records = metrics.read(workdir)
    (layers,) = (r for r in records if r["kind"] == "layers")
    self.assertEqual(layers["step"], 6)
    self.assertLen(layers["activation_rms"], 3)
    self.assertLen(layers["grad_norm/group_0.block_0.mixer.q_DNH"], 2)
    trained = [r for r in records if r["kind"] == "train"]
    for record in trained:
      self.assertGreater(record["seconds/device"], 0)
    self.assertGreater(trained[-1]["seconds/checkpoint"], 0)
    # The account of both starts is all the time since the first one.
    account = goodput.read(workdir)
    self.assertEqual((account.starts, account.repeated), (2, 0))
    lines = goodput.read_lines(workdir / goodput.LEDGER_FILE)
    self.assertAlmostEqual(
      account.total, lines[-1]["time"] - lines[0]["start"], places=3
    )
    for phase in ("compile", "data_wait", "dispatch", "layers", "profile"):
      self.assertGreater(account.seconds[phase], 0, phase)
    last = [r for r in records if r["kind"] == "goodput"][-1]
    self.assertBetween(last["goodput"], 1e-6, 1)
    self.assertLessEqual(last["total"], account.total)

  def test_fewer_steps_than_made(self):
    loop.run(fixtures.run_config(steps=4), self.workdir)
    with self.assertRaisesRegex(ValueError, "run.steps=2, but .* at step 4"):
      loop.run(
        fixtures.run_config(steps=2), self.workdir, allow_config_changes=True
      )
    saved = json.loads((self.workdir / "config.json").read_text())
    self.assertEqual(saved["run"]["steps"], 4)

  def test_megatron_by_config_alone(self):
    data = data_fixtures.write_mixture(self.root / "data")
    sources = []
    for source in data.sources:
      prefix = str(self.root / source.name)
      with indexed.Writer(prefix, np.uint16) as writer:
        for length in range(5, 60):
          writer.add_document([np.arange(length)])
      sources.append(dataclasses.replace(source, path=prefix, eval_path=""))
    run = fixtures.run_config(
      dataclasses.replace(
        data,
        sources=tuple(sources),
        mixture="megatron",
        megatron=data_config.MegatronConfig(split="8,2,0", eval_samples=8),
      ),
      steps=4,
    )
    run = dataclasses.replace(
      run, run=dataclasses.replace(run.run, log_samples=True)
    )
    result = loop.run(run, self.workdir)
    self.assertEqual(result.step, 4)
    self.assertEqual(set(result.held_out), {"a", "b", "blend"})
    lines = samples.read(self.workdir)
    names = [row[0] for line in lines for row in line["rows"]]
    # Megatron's greedy order of .7 and .3.
    self.assertEqual("".join(names[:10]), "abaabaabaa")
    self.assertEqual([line["step"] for line in lines], [1, 2, 3, 4])

  def test_a_run_that_is_longer_than_its_data_is_refused(self):
    run = self._text_run(steps=500)
    sources = tuple(
      dataclasses.replace(source, max_epochs=2.0) for source in run.data.sources
    )
    data = dataclasses.replace(run.data, sources=sources, on_exhaustion="stop")
    with self.assertRaisesRegex(
      ValueError, r"needs 500 steps.*after step \d+: data.sources\[\w\]"
    ):
      loop.run(dataclasses.replace(run, data=data), self.workdir)
    self.assertFalse(self.workdir.exists())

  def test_synthetic_data_has_no_baselines(self):
    result = loop.run(fixtures.run_config(steps=3), self.workdir)
    self.assertIn("synthetic", result.held_out)

  def test_missing_wandb_is_said_before_anything_is_written(self):
    run = fixtures.run_config(
      observe=config_lib.ObserveConfig(wandb_project="llm")
    )
    with (
      mock.patch.dict(sys.modules, {"wandb": None}),
      self.assertRaisesRegex(ValueError, "observe.wandb_project='llm' needs"),
    ):
      loop.run(run, self.workdir)
    self.assertFalse(self.workdir.exists())

  def test_vocabulary_must_cover_the_data(self):
    run = self._text_run()
    small = dataclasses.replace(run, model=fixtures.model(vocab_size=256))
    with self.assertRaisesRegex(ValueError, "model.vocab_size=256.* 300"):
      loop.run(small, self.workdir)
    self.assertFalse(self.workdir.exists())

  def test_z_loss_is_reported(self):
    run = fixtures.run_config(steps=2, loss=step.LossConfig(z_loss_weight=1e-3))
    loop.run(run, self.workdir)
    record = next(r for r in metrics.read(self.workdir) if r["kind"] == "train")
    # The initial log-normaliser is about log V = 5.7.
    self.assertBetween(record["z_loss"], 20, 40)


if __name__ == "__main__":
  absltest.main()
