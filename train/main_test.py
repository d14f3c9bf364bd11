"""What the trainer says to bad input, and that it leaves nothing behind."""

import dataclasses
import pathlib
import shutil
import subprocess
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from data import fixtures as data_fixtures
from data import tokenizer
from train import fixtures


def _other_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  texts = ["some other words " * 20, "ÄÖÜ äöü ß " * 9, "0123456789 xyz " * 9]
  tokenizer.Tokenizer.train(texts, vocab_size=300).save(folder)
  return folder


class MainTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.config = fixtures.text_config(self.root / "data", steps=2)
    self.workdir = self.root / "workdir"

  def _call(self, *arguments, run=None, workdir=None, env=None):
    experiment = fixtures.write_experiment(
      self.root / "experiment.py", run or self.config
    )
    return self._call_raw(
      f"--config={experiment}",
      f"--workdir={workdir or self.workdir}",
      *arguments,
      env=env,
    )

  def _call_raw(self, *arguments, env=None):
    return subprocess.run(
      fixtures.main_command(*arguments),
      env=fixtures.main_environment() | (env or {}),
      cwd=self.root,
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )

  def _assert_refused(self, done, message, *, workdir_exists=False):
    self.assertEqual(done.returncode, 1, done.stderr[-3000:])
    self.assertRegex(done.stderr, message)
    self.assertNotIn("Traceback", done.stderr)
    self.assertEqual(self.workdir.exists(), workdir_exists)

  def test_trains_and_reports(self):
    done = self._call()
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertIn("unigram (own)", done.stderr)
    self.assertIn("--config.run.steps=4", done.stderr)
    self.assertTrue((self.workdir / "loss.png").exists())
    self.assertTrue((self.workdir / "checkpoints" / "2").is_dir())

  @parameterized.named_parameters(
    ("unknown_section", "--config.modle.dim=3", "modle.dim=3: .*mean model"),
    ("unknown_key", "--config.run.stpes=3", "run.stpes=3: .*mean steps"),
    ("wrong_type", "--config.run.steps=many", "config.run.steps.*many"),
    ("float_for_int", "--config.run.steps=1.5", "config.run.steps.*1.5"),
    ("bad_value", "--config.run.steps=0", "run.steps=0 must be at least 1"),
    (
      "bad_choice",
      "--config.execution.remat=some",
      "config.execution.remat='some' must be one of 'none', 'full'",
    ),
    (
      "heads",
      "--config.model.groups[0].pattern[0].mixer.num_kv_heads=3",
      "num_heads=4 must be a multiple of num_kv_heads=3",
    ),
    ("mesh", "--config.mesh.data=3", "mesh.data=3 .*but there are 1 devices"),
    ("context", "--config.run.seq_len=128", "seq_len=128 exceeds.*64"),
    ("vocabulary", "--config.model.vocab_size=299", "vocab_size=299.* 300"),
    ("extra_argument", "train", "Unexpected arguments"),
  )
  def test_refuses_a_setting(self, flag, message):
    self._assert_refused(self._call(flag), message)

  def test_batch_must_fit_the_mesh(self):
    done = self._call(
      "--config.run.batch_size=6",
      env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    self._assert_refused(done, "run.batch_size=6 must be a multiple of 4")

  def test_missing_config_file(self):
    done = self._call_raw("--config=none.py", f"--workdir={self.workdir}")
    self._assert_refused(done, "none.py")

  def test_experiment_with_a_mistake_says_where(self):
    (self.root / "broken.py").write_text("def get_config():\n  return 1 / 0\n")
    done = self._call_raw("--config=broken.py", f"--workdir={self.workdir}")
    self.assertEqual(done.returncode, 1)
    self.assertIn("broken.py", done.stderr)
    self.assertIn("division by zero", done.stderr)

  def test_missing_workdir_flag(self):
    done = self._call_raw("--config=experiment.py")
    self.assertEqual(done.returncode, 1)
    self.assertIn("workdir", done.stderr)

  def test_missing_data(self):
    gone = dataclasses.replace(
      self.config.data.sources[0], path="/no/such/data"
    )
    data = dataclasses.replace(
      self.config.data, sources=(gone, *self.config.data.sources[1:])
    )
    done = self._call(run=dataclasses.replace(self.config, data=data))
    self._assert_refused(done, "/no/such/data")

  def test_corrupt_shard(self):
    shard = next(pathlib.Path(self.config.data.sources[0].path).glob("shard-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    self._assert_refused(self._call(), shard.name)

  def test_workdir_that_is_a_file(self):
    path = self.root / "file"
    path.write_text("")
    done = self._call(workdir=path / "below")
    self._assert_refused(done, "--workdir=.* cannot be written")

  def test_checkpoint_of_another_run(self):
    self.assertEqual(self._call().returncode, 0)
    before = (self.workdir / "metrics.jsonl").read_bytes()
    done = self._call("--config.optimizer.b2=0.5")
    self._assert_refused(
      done,
      r"optimizer\.b2: 0\.95 -> 0\.5.*--allow_config_changes",
      workdir_exists=True,
    )
    done = self._call("--config.model.dim=64", "--allow_config_changes")
    self._assert_refused(
      done,
      "model.dim: 32 -> 64.*undo the change of model.dim",
      workdir_exists=True,
    )
    self.assertEqual((self.workdir / "metrics.jsonl").read_bytes(), before)
    done = self._call("--config.run.steps=4", "--allow_config_changes")
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])

  def test_tokenizer_of_another_run(self):
    self.assertEqual(self._call().returncode, 0)
    # The same texts and paths, by a tokenizer of the same size.
    shutil.rmtree(self.root / "data")
    with mock.patch.object(
      data_fixtures,
      "write_tokenizer",
      _other_tokenizer,
    ):
      data_fixtures.write_mixture(self.root / "data")
    self._assert_refused(
      self._call(),
      "data.tokenizer is not the tokenizer of the checkpoint",
      workdir_exists=True,
    )

  def test_diverged_run_is_not_saved(self):
    run = dataclasses.replace(
      self.config,
      schedule=dataclasses.replace(self.config.schedule, peak=1e30),
      optimizer=dataclasses.replace(self.config.optimizer, weight_decay=0.0),
      run=dataclasses.replace(self.config.run, steps=30),
      checkpoint=dataclasses.replace(self.config.checkpoint, every=1),
    )
    done = self._call(run=run)
    self._assert_refused(done, "Step .*: loss=", workdir_exists=True)


if __name__ == "__main__":
  absltest.main()
