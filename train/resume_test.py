"""A killed run, started again, ends with the bits of one that was not."""

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

from train import config
from train import fixtures
from train import metrics

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
    run = fixtures.text_config(
      self.root / "data",
      steps=_STEPS,
      checkpoint=config.CheckpointConfig(every=_EVERY, keep=2),
      eval=config.EvalConfig(every=_STEPS, max_batches=1),
      run=config.LoopConfig(
        steps=_STEPS, batch_size=8, seq_len=fixtures.SEQ_LEN, log_every=1
      ),
    )
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
