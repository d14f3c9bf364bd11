"""What a run will be given, counted before it starts.

What there is of each source is in `data/forecast_sources.py`, how much the run
takes of it in `data/forecast_shares.py`, and what of that is likely not meant
in `data/forecast_warnings.py`.
"""

import dataclasses
from typing import Any

from data import config as config_lib
from data import forecast_counts
from data import forecast_shares
from data import forecast_sources
from data import forecast_warnings
from data import plan as plan_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
  """What a run will be given.

  Attributes:
    steps_asked: length of the run.
    num_steps: what the data gives of it.
    num_tokens: places of all these batches.
    sources: what there is.
    stages: those that are reached.
    total: shares of the whole run; what is asked weighs stages by tokens.
    windows: the shares over the run.
    warnings: what is likely not meant.
  """

  steps_asked: int
  num_steps: int
  num_tokens: int
  sources: list[forecast_sources.Source]
  stages: list[forecast_shares.Stage]
  total: list[forecast_shares.Share]
  windows: list[forecast_shares.Window]
  warnings: list[str]


def make(
  config: config_lib.DataConfig,
  *,
  seq_len: int,
  batch_size: int,
  num_steps: int,
) -> Forecast:
  """Counts what a run will be given.

  Args:
    config: what to train on, resolved. Text is tokenized on first use.
    seq_len: of the run, for stages without their own.
    batch_size: of the run, for stages without their own.
    num_steps: length of the run.

  Raises:
    ValueError: a setting or a source is wrong.
  """
  for field, value in (
    ("seq_len", seq_len),
    ("batch_size", batch_size),
    ("num_steps", num_steps),
  ):
    if value < 1:
      raise ValueError(f"{field} is {value}; it must be 1 or more")
  # The samples of `weighted` do not depend on the length of the run: where they
  # end too early, that is told instead of refused.
  length = num_steps if config.mixture == "megatron" else None
  plan = plan_lib.make(
    config, seq_len=seq_len, batch_size=batch_size, num_steps=length
  )
  end = num_steps
  if plan.num_steps is not None:
    end = min(end, plan.num_steps)
  counters = [
    forecast_counts.make(plan, index) for index in range(len(plan.names))
  ]
  sources = forecast_sources.describe(config, plan, counters)
  stages, windows = forecast_shares.count(config, plan, counters, end=end)
  total = forecast_shares.total(stages)
  return Forecast(
    steps_asked=num_steps,
    num_steps=end,
    num_tokens=sum(stage.num_tokens for stage in stages),
    sources=sources,
    stages=stages,
    total=total,
    windows=windows,
    warnings=forecast_warnings.find(
      config,
      plan,
      num_steps=num_steps,
      end=end,
      sources=sources,
      stages=stages,
      total=total,
    ),
  )


def to_dict(forecast: Forecast) -> dict[str, Any]:
  """All of it, for `json`; exact shares as they are written: "7/10"."""
  values = dataclasses.asdict(forecast)
  for shares in (*(s["shares"] for s in values["stages"]), values["total"]):
    for share in shares:
      share["asked"] = str(share["asked"])
  return values
