"""Where a run's wall time goes: each moment is in exactly one phase."""

from collections.abc import Iterator
import contextlib
import enum
import os
import pathlib
import time

import jax


class Phase(enum.StrEnum):
  """What the loop is doing, as its main thread sees it.

  Attributes:
    STARTUP: Starting the process, imports, opening the data.
    COMPILE: Tracing and compiling the step.
    STATE: Making the first state, or reading it from a checkpoint.
    DATA_WAIT: Waiting for a batch while the devices have nothing to do.
    DISPATCH: Handing batch and step to the devices.
    DEVICE: Waiting for the devices, which compute.
    CHECKPOINT: What of saving holds the loop up.
    EVALUATE: Held-out loss and samples.
    PROFILE: Starting traces, and writing them.
    LAYERS: Statistics of the layers (layer_stats.py).
    OTHER: Reports, and Python between the rest.
  """

  STARTUP = "startup"
  COMPILE = "compile"
  STATE = "state"
  DATA_WAIT = "data_wait"
  DISPATCH = "dispatch"
  DEVICE = "device"
  CHECKPOINT = "checkpoint"
  EVALUATE = "evaluate"
  PROFILE = "profile"
  LAYERS = "layers"
  OTHER = "other"


# What a step is made of; the rest stands between steps.
OF_STEP = (Phase.DATA_WAIT, Phase.DISPATCH, Phase.DEVICE, Phase.OTHER)


class Span:
  """A stretch of time, in a phase that may be named when it is over."""

  def __init__(self, phase: Phase):
    self.phase = phase


class Clock:
  """Seconds by phase; their sum is the time since the clock began.

  Not for several threads.
  """

  def __init__(self, *, began: float | None = None):
    """Starts in STARTUP.

    Args:
      began: When the run did, as `time.time()` gives it; now if not given.
    """
    now = time.time()
    self.began = now if began is None else min(began, now)
    self._since = time.perf_counter() - (now - self.began)
    self._phase = Phase.STARTUP
    self._seconds = dict.fromkeys(Phase, 0.0)

  def enter(self, phase: Phase) -> None:
    """Ends the phase that is under way and begins `phase`."""
    self._charge()
    self._phase = phase

  @contextlib.contextmanager
  def phase(self, phase: Phase) -> Iterator[Span]:
    """The body's time is in `phase`; a trace shows it under that name."""
    self._charge()
    outer, self._phase = self._phase, phase
    span = Span(phase)
    try:
      with jax.profiler.TraceAnnotation(phase.value):
        yield span
    finally:
      self._phase = span.phase
      self._charge()
      self._phase = outer

  def seconds(self) -> dict[Phase, float]:
    """By phase, up to now."""
    self._charge()
    return dict(self._seconds)

  def _charge(self) -> None:
    """Counts the time since the last call for the present phase."""
    now = time.perf_counter()
    self._seconds[self._phase] += now - self._since
    self._since = now


def process_start() -> float:
  """When this process began, as `time.time()`; now where /proc is missing."""
  try:
    stat = pathlib.Path("/proc/self/stat").read_text(encoding="utf-8")
    uptime = pathlib.Path("/proc/uptime").read_text(encoding="utf-8")
  except OSError:
    return time.time()
  # The name, in parentheses, may have spaces: fields from the third on.
  ticks = int(stat.rpartition(")")[2].split()[19])
  age = float(uptime.split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
  return time.time() - max(0.0, age)


def duration(seconds: float) -> str:
  """1:02:03 or 2:03, for people."""
  minutes, second = divmod(int(seconds + 0.5), 60)
  hours, minute = divmod(minutes, 60)
  return (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
