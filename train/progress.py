"""Turns each step's device metrics into console lines and records."""

from collections.abc import Callable, Iterator
import contextlib
import math
from typing import Any

from absl import logging
import jax

from train import goodput
from train import memory
from train import metrics as metrics_lib
from train import phases

_Phase = phases.Phase
# The console says so where devices waited this share of the time for data.
_MUCH_WAITING = 0.05


class Progress:
  """Reports every so many steps, and stops a run that diverges.

  A step's metrics are read when the next step has been dispatched, so that
  the device never waits for the console.
  """

  def __init__(
    self,
    writer: metrics_lib.Writer,
    *,
    clock: phases.Clock,
    ledger: goodput.Ledger,
    start_step: int,
    total_steps: int,
    log_every: int,
    flops_per_token: Callable[[int], float],
    peak_flops: float,
  ):
    self._writer = writer
    self._clock = clock
    self._ledger = ledger
    self._total = total_steps
    self._every = log_every
    self._flops_per_token = flops_per_token
    self._peak = peak_flops
    self._pending = None
    self._window_step = start_step
    self._window_tokens = 0.0
    self._window_flops = 0.0
    self._window_start = clock.seconds()

  def fetch[Batch](self, batches: Iterator[Batch]) -> Batch:
    """The next batch; the wait for it counts as the devices' if they compute.

    It is lost only if they have run dry when the batch is there: what they
    still did at its beginning is then counted as waiting too.
    """
    with self._clock.phase(_Phase.DATA_WAIT) as span:
      batch = next(batches)
      if self._pending is not None:
        _, metrics = self._pending
        if not metrics["loss"].is_ready():
          span.phase = _Phase.DEVICE
    return batch

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
    with self._clock.phase(_Phase.DEVICE):
      metrics = jax.device_get(metrics)
    values = {k: v.tolist() for k, v in metrics.items()}
    checked = ("loss", "grad_norm", "param_norm")
    if not all(math.isfinite(values[name]) for name in checked):
      raise metrics_lib.NonFiniteError(
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

  @contextlib.contextmanager
  def outside(self, phase: phases.Phase) -> Iterator[None]:
    """Around what is not a step: it does not count in the rates."""
    self.flush()
    with self._clock.phase(phase):
      yield

  def _log(self, step: int, values: dict[str, Any]) -> None:
    num_steps = step - self._window_step
    now = self._clock.seconds()
    spent = {p: now[p] - self._window_start[p] for p in now}
    seconds = sum(spent[phase] for phase in phases.OF_STEP)
    tokens_per_second = self._window_tokens / seconds
    values["tokens_per_second"] = tokens_per_second
    values["step_seconds"] = seconds / num_steps
    flops_per_second = self._window_flops / seconds
    values["tflops_per_device"] = flops_per_second / jax.device_count() / 1e12
    extra = ""
    if self._peak:
      values["mfu"] = flops_per_second / self._peak
      extra += f" mfu {100 * values['mfu']:4.1f}%"
    waiting = spent[_Phase.DATA_WAIT] / seconds
    if waiting >= _MUCH_WAITING:
      extra += f" waiting for data {100 * waiting:.0f}%"
    if "router/max_load" in values:
      least, most = values["router/min_load"], values["router/max_load"]
      extra += f" experts {least:.2f}-{most:.2f}"
    for phase, of_phase in spent.items():
      if phase in phases.OF_STEP or of_phase:
        values[f"seconds/{phase}"] = of_phase / num_steps
    values |= memory.usage()
    values["goodput"] = self._ledger.account().goodput
    eta = (self._total - step) * values["step_seconds"]
    logging.info(
      "step %d/%d loss %.4f lr %.2e gnorm %.2f %s tok/s%s eta %s",
      step,
      self._total,
      values["loss"],
      values["learning_rate"],
      values["grad_norm"],
      f"{tokens_per_second:,.0f}",
      extra,
      phases.duration(eta),
    )
    self._writer.write(step, "train", values)
    self._ledger.write(step)
    self._window_step = step
    self._window_tokens = 0.0
    self._window_flops = 0.0
    self._window_start = now
