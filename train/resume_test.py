"""A killed run, started again, ends with the bits of one that was not."""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from absl.testing import absltest

from data import config as data_config
from data import pipeline
from train import config
from train import fixtures
from train import metrics
from train import samples

_STEPS = 300
_EVERY = 20


def _last_step(workdir: pathlib.Path) -> int:
  path = workdir / metrics.METRICS_FILE
  return path.read_text().count('"kind": "train"') if path.exists() else 0


def _final(workdir: pathlib.Path) -> dict:
  """Digests of all arrays, and the place in the data, after the last step."""
  meta = workdir / "checkpoints" / str(_STEPS) / "meta"
  return {
    "arrays": json.loads((meta / "digests.json").read_text())["arrays"],
    "data": json.loads((meta / "data.json").read_text()),
  }


def _drop_iterator_state(meta: pathlib.Path) -> None:
  """Makes a checkpoint say that its data stood at the beginning."""
  data, digests = meta / "data.json", meta / "digests.json"
  content = json.dumps(json.loads(data.read_text()) | {"step": 0})
  data.write_text(content)
  sums = json.loads(digests.read_text())
  sums["files"]["data.json"] = hashlib.sha256(content.encode()).hexdigest()
  digests.write_text(json.dumps(sums))


def _losses(workdir: pathlib.Path) -> list[float]:
  records = metrics.read(workdir)
  return [r["loss"] for r in records if r["kind"] == "train"]


class ResumeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    # The second half has other weights, and batches of another shape.
    half = _STEPS // 2 * 8 * fixtures.SEQ_LEN
    stages = (
      data_config.StageConfig(tokens=half),
      data_config.StageConfig(weights=(0.2, 0.8), seq_len=24, batch_size=12),
    )
    run = fixtures.text_config(
      self.root / "data",
      steps=_STEPS,
      checkpoint=config.CheckpointConfig(every=_EVERY, keep=2),
      eval=config.EvalConfig(every=_STEPS, max_batches=1),
      run=config.LoopConfig(
        steps=_STEPS,
        batch_size=8,
        seq_len=fixtures.SEQ_LEN,
        log_every=1,
        log_samples=True,
      ),
    )
    run = dataclasses.replace(
      run, data=dataclasses.replace(run.data, stages=stages)
    )
    self.data = run.data
    self.experiment = fixtures.write_experiment(self.root / "run.py", run)

  def _start(self, workdir: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
      fixtures.main_command(
        f"--config={self.experiment}", f"--workdir={workdir}"
      ),
      env=fixtures.main_environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def _finish(self, workdir: pathlib.Path) -> str:
    process = self._start(workdir)
    output, _ = process.communicate(timeout=300)
    self.assertEqual(process.returncode, 0, output[-3000:])
    return output

  def _kill_at(self, workdir: pathlib.Path, step: int) -> None:
    process = self._start(workdir)
    while _last_step(workdir) < step:
      self.assertIsNone(process.poll(), "ended before it could be killed")
      time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    self.assertLess(_last_step(workdir), _STEPS)

  def _check_samples(self, workdir: pathlib.Path) -> None:
    """Each planned sample was trained on once, in its place."""
    batches = pipeline.make(
      self.data, seq_len=fixtures.SEQ_LEN, global_batch_size=8
    )
    lines = samples.read(workdir)
    self.assertEqual(
      [line["step"] for line in lines], list(range(1, _STEPS + 1))
    )
    for line in lines:
      planned = batches.locate(line["step"] - 1)
      self.assertEqual(
        line["rows"], [[row.source, row.epoch, row.number] for row in planned]
      )
    for stage in (lines[: _STEPS // 2], lines[_STEPS // 2 :]):
      seen = [(row[0], row[2]) for line in stage for row in line["rows"]]
      self.assertEqual(len(set(seen)), len(seen))
    self.assertEqual({len(line["rows"]) for line in stage}, {12})

  def test_sigkill_and_rerun(self):
    whole, killed, control = (
      self.root / n for n in ("whole", "killed", "control")
    )
    self._finish(whole)
    expected = _final(whole)

    step = random.randint(2 * _EVERY, _STEPS - 4 * _EVERY)
    self._kill_at(killed, step)
    shutil.copytree(killed, control)

    output = self._finish(killed)
    self.assertIn("Going on from step", output)
    with self.subTest(f"killed at step {step}"):
      self.assertEqual(_final(killed), expected)
      self.assertEqual(_losses(killed), _losses(whole))
      self._check_samples(killed)

    # The control: without the iterator's state the result must differ.
    for meta in (control / "checkpoints").glob("*/meta"):
      _drop_iterator_state(meta)
    self._finish(control)
    self.assertNotEqual(_final(control)["arrays"], expected["arrays"])

  def test_sigterm_saves_the_step_it_is_in(self):
    workdir = self.root / "stopped"
    process = self._start(workdir)
    while _last_step(workdir) < 30:
      self.assertIsNone(process.poll())
      time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    self.assertEqual(process.returncode, 128 + signal.SIGTERM, output[-3000:])
    saved = max(
      int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*")
    )
    self.assertGreaterEqual(saved, 30)
    self.assertEqual(saved, _last_step(workdir))
    output = self._finish(workdir)
    self.assertIn(f"Going on from step {saved} ", output)

  def test_a_finished_run_is_finished(self):
    workdir = self.root / "finished"
    self._finish(workdir)
    before = _final(workdir)
    self.assertIn(f"Going on from step {_STEPS} ", self._finish(workdir))
    self.assertEqual(_final(workdir), before)


if __name__ == "__main__":
  absltest.main()
