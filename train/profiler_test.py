"""Traces on schedule, by signal and by file; of whole steps."""

import gzip
import json
import os
import pathlib
import signal
import time
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp

from train import config
from train import phases
from train import profiler


class ProfilerTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.clock = phases.Clock()
    self.step = jax.jit(lambda x: x + 1)

  def _run(self, *, num_steps, between=None, **settings):
    """Steps that were traced, by the trace they are in."""
    observe = config.ObserveConfig(**settings)
    state = jnp.zeros(())
    with profiler.Profiler(self.workdir, observe, self.clock) as traces:
      for step in range(1, num_steps + 1):
        if between is not None:
          between(step)
        traces.begin(step, state)
        with self.clock.phase(phases.Phase.DISPATCH):
          state = self.step(state)
        traces.end(step, state)
    self.assertEqual(float(state), num_steps)
    return {
      folder.name: self._steps(folder)
      for folder in (self.workdir / profiler.FOLDER).glob("*")
    }

  def _steps(self, folder):
    (path,) = folder.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
      events = json.load(file)["traceEvents"]
    # The loop's phases are there by name.
    self.assertIn("dispatch", {event.get("name") for event in events})
    return sorted(
      int(event["args"]["step_num"])
      for event in events
      if event.get("name") == "train"
    )

  def test_schedule(self):
    traced = self._run(
      num_steps=8, profile_at=(2,), profile_every=5, profile_steps=2
    )
    self.assertEqual(traced, {"step-2": [2, 3], "step-5": [5, 6]})
    self.assertGreater(self.clock.seconds()[phases.Phase.PROFILE], 0)
    memory = self.workdir / profiler.FOLDER / "step-2" / "memory.prof"
    self.assertGreater(memory.stat().st_size, 0)

  def test_signal(self):
    before = signal.getsignal(profiler.SIGNAL)

    def ask(step):
      if step == 3:
        os.kill(os.getpid(), profiler.SIGNAL)

    traced = self._run(num_steps=5, between=ask, profile_steps=1)
    self.assertEqual(traced, {"step-3": [3]})
    self.assertEqual(signal.getsignal(profiler.SIGNAL), before)

  def test_file(self):
    request = self.workdir / profiler.REQUEST_FILE
    self.enter_context(mock.patch.object(profiler, "_LOOK_EVERY", 0.0))

    def ask(step):
      if step == 2:
        request.touch()

    traced = self._run(num_steps=4, between=ask, profile_steps=1)
    self.assertEqual(traced, {"step-2": [2]})
    self.assertFalse(request.exists())

  def test_the_file_is_not_looked_for_at_every_step(self):
    exists = self.enter_context(
      mock.patch.object(pathlib.Path, "exists", return_value=False)
    )
    self.enter_context(mock.patch.object(time, "monotonic", lambda: 10.0))
    self._run(num_steps=50)
    exists.assert_called_once()

  def test_a_run_that_ends_within_a_trace(self):
    traced = self._run(num_steps=2, profile_at=(2,), profile_steps=100)
    self.assertEqual(traced, {"step-2": [2]})

  def test_other_processes_do_not_follow_the_schedule(self):
    with mock.patch.object(jax, "process_index", return_value=1):
      traced = self._run(num_steps=3, profile_at=(2,), profile_steps=1)
    self.assertEmpty(traced)

  def test_another_trace_does_not_end_the_run(self):
    with (
      mock.patch.object(
        jax.profiler, "start_trace", side_effect=RuntimeError("in use")
      ),
      self.assertLogs("absl", "ERROR") as logs,
    ):
      self._run(num_steps=3, profile_at=(2,))
    self.assertIn("No trace of step 2: in use", logs.output[0])


if __name__ == "__main__":
  absltest.main()
