"""Several real processes: as one they train, stop, go on and fail."""

import dataclasses
import json
import pathlib
import signal
import socket
import subprocess
import time

from absl.testing import absltest
import jax
import numpy as np

from model import checkpoint
from model import sharding
from train import config as config_lib
from train import fixtures
from train import metrics
from train import samples

_STEPS = 6
# Seconds after which a run hangs, on a machine with much else to do.
_PATIENCE = 600


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def _losses(workdir: pathlib.Path) -> list[float]:
  return [r["loss"] for r in metrics.read(workdir) if r["kind"] == "train"]


def _rows(workdir: pathlib.Path, num_parts: int) -> list[list]:
  """The rows of each step, all parts of a batch joined."""
  parts = [samples.read(workdir, part) for part in range(num_parts)]
  return [
    [row for line in lines for row in line["rows"]]
    for lines in zip(*parts, strict=True)
  ]


class MultihostTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    run = fixtures.text_config(self.root / "data", steps=_STEPS)
    run = dataclasses.replace(
      run,
      run=config_lib.LoopConfig(
        steps=_STEPS,
        batch_size=8,
        seq_len=fixtures.SEQ_LEN,
        log_every=1,
        log_samples=True,
      ),
      eval=dataclasses.replace(
        run.eval,
        every=5000,  # And at the end.
        prompts=("In the beginning",),
        sample_tokens=3,
        temperature=0.0,
      ),
      checkpoint=config_lib.CheckpointConfig(every=4, keep=5),
    )
    self.experiment = fixtures.write_experiment(self.root / "run.py", run)

  def _start(
    self, workdir, *, processes, devices, flags=(), flags_of_last=()
  ) -> list[subprocess.Popen]:
    """Starts a run; its output goes to files beside the workdir."""
    port = _free_port()
    started = []
    for process in range(processes):
      arguments = [
        f"--config={self.experiment}",
        f"--workdir={workdir}",
        *flags,
      ]
      if processes > 1:
        arguments += [
          f"--coordinator=localhost:{port}",
          f"--num_processes={processes}",
          f"--process_id={process}",
        ]
      if process == processes - 1:
        arguments += flags_of_last
      with self._output(workdir, process).open("w") as output:
        started.append(
          subprocess.Popen(
            fixtures.main_command(*arguments),
            env=fixtures.main_environment()
            | {
              "XLA_FLAGS": "--xla_backend_optimization_level=0 "
              f"--xla_force_host_platform_device_count={devices}"
            },
            stdout=output,
            stderr=subprocess.STDOUT,
          )
        )
      self.addCleanup(started[-1].wait)
      self.addCleanup(started[-1].kill)
    return started

  def _output(self, workdir, process) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}-{process}.txt")

  def _finish(self, workdir, started, code=0):
    for process, each in enumerate(started):
      try:
        each.wait(timeout=_PATIENCE)
      except subprocess.TimeoutExpired:
        self.fail(f"{process} hangs: {self._texts(workdir, started)}")
    codes = [each.returncode for each in started]
    self.assertEqual(
      codes, [code] * len(started), self._texts(workdir, started)
    )

  def _texts(self, workdir, started) -> str:
    return "\n".join(
      f"--- {i}:\n{self._output(workdir, i).read_text()[-3000:]}"
      for i in range(len(started))
    )

  def _run(self, workdir, **settings):
    started = self._start(workdir, **settings)
    self._finish(workdir, started)

  def _wait_for_step(self, workdir, started, step):
    while len(_losses(workdir)) < step:
      for each in started:
        self.assertIsNone(each.poll(), self._texts(workdir, started))
      time.sleep(0.05)

  def _assert_same_run(self, one, other, num_parts):
    np.testing.assert_allclose(_losses(other), _losses(one), rtol=1e-5)
    self.assertEqual(_rows(other, num_parts), _rows(one, 1))
    texts = [
      [r["text"] for r in metrics.read(w) if r["kind"] == "sample/0"]
      for w in (one, other)
    ]
    self.assertEqual(*texts)
    held_out = [
      [r["nats_per_token"] for r in metrics.read(w) if r["kind"] == "eval/a"]
      for w in (one, other)
    ]
    np.testing.assert_allclose(*held_out, rtol=1e-5)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    params = [
      checkpoint.load(w / "checkpoints" / str(_STEPS), mesh).params
      for w in (one, other)
    ]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *params
    )

  def test_processes_equal_one(self):
    one = self.root / "one"
    self._run(one, processes=1, devices=1)
    four = self.root / "four"
    self._run(
      four,
      processes=4,
      devices=1,
      # Process 1 has the third part of the rows.
      flags=("--config.mesh.data=2", "--config.mesh.dcn_fsdp=2"),
    )
    self._assert_same_run(one, four, 4)
    # Two hosts share out the heads, so both have all rows.
    two = self.root / "two"
    self._run(two, processes=2, devices=1, flags=("--config.mesh.tensor=2",))
    self._assert_same_run(one, two, 1)

    # The first speaks, the others write.
    self.assertIn(f"step {_STEPS}/{_STEPS}", self._output(four, 0).read_text())
    self.assertNotIn("step 1/", self._output(four, 3).read_text())
    log = (four / "logs" / "process-3.log").read_text()
    self.assertIn(f"step {_STEPS}/{_STEPS}", log)

  def test_one_is_told_to_stop(self):
    workdir = self.root / "stopped"
    started = self._start(
      workdir, processes=2, devices=1, flags=("--config.run.steps=5000",)
    )
    self._wait_for_step(workdir, started, 10)
    started[1].send_signal(signal.SIGTERM)
    self._finish(workdir, started, code=128 + signal.SIGTERM)
    steps = checkpoint.steps(workdir / "checkpoints")
    saved = steps[-1]
    self.assertLess(saved, 5000)
    self.assertLen(_losses(workdir), saved)
    self.assertLen(samples.read(workdir, 1), saved)

    # It goes on, from the one before if the newest is damaged.
    digests = workdir / "checkpoints" / str(saved) / "meta" / "digests.json"
    digests.write_text(
      json.dumps(json.loads(digests.read_text()) | {"arrays": {}})
    )
    self._run(
      workdir,
      processes=2,
      devices=2,
      flags=(f"--config.run.steps={saved + 2}", "--allow_config_changes"),
    )
    output = self._output(workdir, 0).read_text()
    self.assertIn(f"Moved step {saved}", output)
    self.assertIn(f"Going on from step {steps[-2]} in", output)
    self.assertLen(_losses(workdir), saved + 2)
    self.assertLen(samples.read(workdir, 1), saved + 2)
    # And so does another number of processes.
    self._run(
      workdir,
      processes=1,
      devices=1,
      flags=(f"--config.run.steps={saved + 3}", "--allow_config_changes"),
    )
    lines = samples.read(workdir)
    self.assertEqual([line["step"] for line in lines], [*range(1, saved + 4)])
    self.assertEqual([len(line["rows"]) for line in lines[-2:]], [4, 8])

  def test_one_fails(self):
    workdir = self.root / "failed"
    started = self._start(
      workdir,
      processes=2,
      devices=1,
      flags_of_last=("--config.data.sources[0].path=/no/such/data",),
    )
    self._finish(workdir, started, code=1)
    text = self._output(workdir, 0).read_text()
    self.assertIn("Process 1 failed, so all end: ValueError", text)
    self.assertIn("/no/such/data", text)

  def test_one_is_killed(self):
    workdir = self.root / "killed"
    started = self._start(
      workdir, processes=2, devices=1, flags=("--config.run.steps=5000",)
    )
    self._wait_for_step(workdir, started, 5)
    started[1].kill()
    self.assertNotEqual(started[0].wait(timeout=_PATIENCE), 0)

  def test_refuses_half_of_the_flags(self):
    done = subprocess.run(
      fixtures.main_command(
        f"--config={self.experiment}",
        f"--workdir={self.root / 'none'}",
        "--num_processes=2",
      ),
      env=fixtures.main_environment() | {"PYTHONUNBUFFERED": "1"},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 1)
    self.assertIn("--num_processes needs --coordinator", done.stderr)


if __name__ == "__main__":
  absltest.main()
