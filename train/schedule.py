"""Learning rate as a function of the step."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
  """Linear warm-up, then one of the following.

    constant: stays at the peak.
    cosine:   half a cosine down to `final_ratio` of the peak.
    linear:   a line down to it.
    inverse_sqrt: the peak * sqrt(warmup_steps / step), from the end of warm-up
              on; it needs no end.
    wsd:      warm-up, stable, decay (MiniCPM, arXiv:2404.06395): the peak until
              the last `decay_steps`, then a line down; a run can be branched
              off the stable part at any step.

  Attributes:
    kind: One of the above.
    peak: Learning rate after warm-up.
    warmup_steps: Steps from 0 to the peak.
    decay_steps: Length of wsd's decay; only for wsd.
    final_ratio: Learning rate at the end, as a share of the peak.
    steps: Where the decay ends; run.steps if unset.
  """

  kind: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = (
    "cosine"
  )
  peak: float
  warmup_steps: int = 0
  decay_steps: int | None = None
  final_ratio: float = 0.1
  steps: int | None = None

  def __post_init__(self):
    if not self.peak > 0:
      raise ValueError(f"schedule.peak={self.peak} must be positive.")
    if self.warmup_steps < 0:
      raise ValueError(
        f"schedule.warmup_steps={self.warmup_steps} must be 0 or more."
      )
    if not 0 <= self.final_ratio <= 1:
      raise ValueError(
        f"schedule.final_ratio={self.final_ratio} must be between 0 and 1."
      )
    if (self.kind == "wsd") != (self.decay_steps is not None):
      raise ValueError(
        f"schedule.decay_steps={self.decay_steps} with schedule.kind="
        f"{self.kind!r}: set it for wsd, and for wsd only."
      )
    if self.kind == "inverse_sqrt" and not self.warmup_steps:
      raise ValueError(
        "schedule.warmup_steps=0 with schedule.kind='inverse_sqrt', which is "
        "measured in them; set it to 1 or more."
      )
    for name in ("decay_steps", "steps"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"schedule.{name}={value} must be at least 1.")


def make(config: ScheduleConfig, *, run_steps: int) -> optax.Schedule:
  """step -> learning rate.

  Step s is the s-th update, from 0; warm-up gives it (s + 1) / warmup_steps of
  the peak, so that no update is wasted on a rate of 0.

  Raises:
    ValueError: Warm-up and decay do not fit into the steps.
  """
  total = run_steps if config.steps is None else config.steps
  decay = config.decay_steps or 0
  if config.warmup_steps + decay > total:
    raise ValueError(
      f"schedule.warmup_steps={config.warmup_steps} + decay_steps={decay} "
      f"exceed the {total} steps of the schedule; shorten them or set "
      "schedule.steps."
    )
  final = config.peak * config.final_ratio
  after = total - config.warmup_steps
  if config.kind == "constant" or after == 0:
    main = optax.constant_schedule(config.peak)
  elif config.kind == "cosine":
    main = optax.cosine_decay_schedule(
      config.peak, after, alpha=config.final_ratio
    )
  elif config.kind == "inverse_sqrt":
    warm = config.warmup_steps

    def main(step):
      return config.peak * jnp.sqrt(warm / (jnp.maximum(step, 0) + warm))
  elif config.kind == "linear":
    main = optax.linear_schedule(config.peak, final, after)
  else:
    main = optax.linear_schedule(
      config.peak, final, decay, transition_begin=after - decay
    )
  if config.warmup_steps == 0:
    return main
  warmup = optax.linear_schedule(
    config.peak / config.warmup_steps,
    config.peak,
    config.warmup_steps - 1 or 1,
  )
  return optax.join_schedules([warmup, main], [config.warmup_steps])
