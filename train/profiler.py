"""Traces of a few steps: on schedule, or when somebody asks.

To ask a run that is under way, send it SIGUSR2 or make a file in its workdir:

  kill -USR2 PID
  touch WORKDIR/profile_now

The next `observe.profile_steps` steps are then traced into
`WORKDIR/profiles/step-N`: for TensorBoard's profiler, and `*.trace.json.gz` for
https://ui.perfetto.dev; `memory.prof` says what holds device memory (pprof).
"""

import pathlib
import signal
import threading
import time
from typing import Any

from absl import logging
import jax

from train import config as config_lib
from train import phases

REQUEST_FILE = "profile_now"
FOLDER = "profiles"
SIGNAL = signal.SIGUSR2

# Seconds between looks at the request file: it may lie on a slow file system.
_LOOK_EVERY = 1.0


class Profiler:
  """Traces this process; call `begin` before each step and `end` after it.

  A schedule and the file are for the first process, the signal for the process
  that gets it: a trace makes a process slower, and no other needs to agree.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: config_lib.ObserveConfig,
    clock: phases.Clock,
  ):
    self._workdir = workdir
    self._config = config
    self._clock = clock
    self._first = jax.process_index() == 0
    self._requested = False
    self._next_look = 0.0
    self._last_step: int | None = None  # Of the trace under way.
    self._folder = workdir / FOLDER
    self._annotation: jax.profiler.StepTraceAnnotation | None = None
    self._previous: Any = None

  def __enter__(self) -> "Profiler":
    # Python takes signals in the main thread only.
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(SIGNAL, self._handle)
    return self

  def __exit__(self, *unused) -> None:
    """Ends a trace that is under way."""
    if self._previous is not None:
      signal.signal(SIGNAL, self._previous)
    if self._last_step is not None:
      self._stop(None)

  def begin(self, step: int, state: Any) -> None:
    """Starts a trace if one is due with update number `step`.

    Args:
      step: The update that is about to be made.
      state: What it begins with; awaited, so that no earlier step is traced.
    """
    if self._last_step is None and self._is_due(step):
      self._start(step, state)
    if self._last_step is not None:
      self._annotation = jax.profiler.StepTraceAnnotation(
        "train", step_num=step
      )
      self._annotation.__enter__()

  def end(self, step: int, state: Any) -> None:
    """Ends the trace if `step` is its last; `state` is what the step gave."""
    if self._annotation is not None:
      self._annotation.__exit__(None, None, None)
      self._annotation = None
    if step == self._last_step:
      self._stop(state)

  def _handle(self, number, frame) -> None:
    del number, frame
    self._requested = True

  def _is_due(self, step: int) -> bool:
    if self._requested:
      self._requested = False
      return True
    if not self._first:
      return False
    every = self._config.profile_every
    if step in self._config.profile_at or (every and step % every == 0):
      return True
    now = time.monotonic()
    if now < self._next_look:
      return False
    self._next_look = now + _LOOK_EVERY
    request = self._workdir / REQUEST_FILE
    if not request.exists():
      return False
    request.unlink(missing_ok=True)
    return True

  def _start(self, step: int, state: Any) -> None:
    with self._clock.phase(phases.Phase.PROFILE):
      jax.block_until_ready(state)
      options = jax.profiler.ProfileOptions()
      # Python's calls would slow the step down and hide what matters.
      options.python_tracer_level = 0
      folder = self._workdir / FOLDER / f"step-{step}"
      try:
        jax.profiler.start_trace(folder, profiler_options=options)
      except RuntimeError as error:
        # Such as another profiler's trace: no reason to end a run.
        logging.error("No trace of step %d: %s", step, error)
        return
    self._folder = folder
    self._last_step = step + self._config.profile_steps - 1

  def _stop(self, state: Any) -> None:
    with self._clock.phase(phases.Phase.PROFILE):
      self._last_step = None
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      jax.profiler.save_device_memory_profile(str(self._folder / "memory.prof"))
    logging.info("Trace: %s", self._folder)
