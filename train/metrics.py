"""What a run reports: console, TensorBoard and `metrics.jsonl`."""

from collections.abc import Callable
import json
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
import tensorboardX

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(Exception):
  """Training has diverged: loss, gradient or parameters are not finite."""


class Writer:
  """Appends numbers to `metrics.jsonl` and to TensorBoard events.

  Only the first process writes. A resumed run first drops what an earlier one
  wrote beyond the step it resumes from: those steps are made again.
  """

  def __init__(self, workdir: pathlib.Path, *, start_step: int):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    path = workdir / METRICS_FILE
    _truncate(path, start_step)
    self._file = path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start_step + 1
    )

  def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
    """One record; TensorBoard has it as `kind/name`.

    Numbers as scalars, texts as text, lists of numbers as histograms.
    """
    if not self._active:
      return
    record = {"step": step, "kind": kind} | values
    self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, str):
        self._board.add_text(f"{kind}/{name}", value, step)
      elif isinstance(value, list):
        self._board.add_histogram(f"{kind}/{name}", np.array(value), step)
      else:
        self._board.add_scalar(f"{kind}/{name}", value, step)

  def close(self) -> None:
    """Flushes both."""
    if self._active:
      self._file.close()
      self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """All records of a run, in the order in which they were written."""
  path = workdir / METRICS_FILE
  if not path.exists():
    return []
  with path.open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _truncate(path: pathlib.Path, step: int) -> None:
  """Drops records after `step`, and a line cut short by a crash."""
  if not path.exists():
    return
  kept = []
  with path.open(encoding="utf-8") as lines:
    for line in lines:
      if line.endswith("\n") and json.loads(line)["step"] <= step:
        kept.append(line)
  scratch = path.with_suffix(".tmp")
  scratch.write_text("".join(kept), encoding="utf-8")
  os.replace(scratch, path)


class Progress:
  """Turns each step's device metrics into console lines and records.

  A step's metrics are read when the next step has been dispatched, so that
  the device never waits for the console.
  """

  def __init__(
    self,
    writer: Writer,
    *,
    start_step: int,
    total_steps: int,
    log_every: int,
    flops_per_token: Callable[[int], float],
    peak_flops: float,
  ):
    self._writer = writer
    self._total = total_steps
    self._every = log_every
    self._flops_per_token = flops_per_token
    self._peak = peak_flops
    self._pending = None
    self._window_step = start_step
    self._window_tokens = 0.0
    self._window_flops = 0.0
    self._window_start = time.perf_counter()

  def record(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of update number `step` (1 is the first)."""
    self.flush()
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Reads the metrics taken last, which waits for their step.

    Raises:
      NonFiniteError: Its loss, gradient or parameters are not finite.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = {k: v.tolist() for k, v in jax.device_get(metrics).items()}
    checked = ("loss", "grad_norm", "param_norm")
    if not all(math.isfinite(values[name]) for name in checked):
      raise NonFiniteError(
        f"Step {step}: "
        + ", ".join(f"{name}={values[name]}" for name in checked)
        + ". The state was not saved; the newest "
        "checkpoint is from before. Lower schedule.peak or "
        "optimizer.clip_norm, or look at the data of this step."
      )
    self._window_tokens += values["tokens"]
    self._window_flops += values["tokens"] * self._flops_per_token(step)
    if step % self._every == 0 or step == self._total:
      self._log(step, values)

  def pause(self) -> float:
    """Call before time that is not training; give the result to `resume`."""
    self.flush()
    return time.perf_counter()

  def resume(self, paused: float) -> None:
    """Leaves the time since `paused` out of the rates."""
    self._window_start += time.perf_counter() - paused

  def _log(self, step: int, values: dict[str, Any]) -> None:
    seconds = time.perf_counter() - self._window_start
    num_steps = step - self._window_step
    tokens_per_second = self._window_tokens / seconds
    values["tokens_per_second"] = tokens_per_second
    values["step_seconds"] = seconds / num_steps
    mfu_text = ""
    if self._peak:
      values["mfu"] = self._window_flops / seconds / self._peak
      mfu_text = f" mfu {100 * values['mfu']:4.1f}%"
    eta = (self._total - step) * values["step_seconds"]
    logging.info(
      "step %d/%d loss %.4f lr %.2e gnorm %.2f %s tok/s%s eta %s",
      step,
      self._total,
      values["loss"],
      values["learning_rate"],
      values["grad_norm"],
      f"{tokens_per_second:,.0f}",
      mfu_text,
      duration(eta),
    )
    self._writer.write(step, "train", values)
    self._window_step = step
    self._window_tokens = 0.0
    self._window_flops = 0.0
    self._window_start = time.perf_counter()


def duration(seconds: float) -> str:
  """1:02:03 or 2:03, for people."""
  minutes, second = divmod(int(seconds + 0.5), 60)
  hours, minute = divmod(minutes, 60)
  return (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
