"""Forecasts of made-up runs, for tests."""

import fractions

from data import forecast
from data import forecast_shares
from data import forecast_sources

_STEPS = 100


def make(
  num_sources: int, *, num_stages: int = 1, warnings: tuple[str, ...] = ()
) -> forecast.Forecast:
  """Stages of 100 steps, in which sources have 1, 2, ... of all samples.

  Source i is read i times a stage; in the second one the last source rests.

  Args:
    num_sources: at least two.
    num_stages: of equal length.
    warnings: of the forecast.
  """
  stages = []
  for number in range(num_stages):
    weights = [index + 1 for index in range(num_sources)]
    if number == 1:
      weights[-1] = 0
    shares = [
      forecast_shares.Share(
        name=f"source{index}",
        asked=fractions.Fraction(weight, sum(weights)),
        delivered=weight / sum(weights),
        num_samples=weight * _STEPS,
        num_tokens=weight * _STEPS * 10,
        num_targets=weight * _STEPS * 9,
        num_padding=weight * _STEPS,
        epochs=float(index) if weight else 0.0,
        is_estimate=False,
        targets_are_estimate=False,
      )
      for index, weight in enumerate(weights)
    ]
    stage = forecast_shares.Stage(
      first_step=number * _STEPS,
      num_steps=_STEPS,
      seq_len=10,
      batch_size=sum(weights),
      num_tokens=sum(weights) * _STEPS * 10,
      shares=shares,
    )
    stages.append(stage)
  windows = []
  num_tokens = 0
  for stage in stages:
    for part in range(4):
      window = forecast_shares.Window(
        first_step=stage.first_step + part * stage.num_steps // 4,
        num_steps=stage.num_steps // 4,
        first_token=num_tokens,
        num_tokens=stage.num_tokens // 4,
        delivered=[share.delivered for share in stage.shares],
      )
      windows.append(window)
      num_tokens += window.num_tokens
  return forecast.Forecast(
    steps_asked=num_stages * _STEPS,
    num_steps=num_stages * _STEPS,
    num_tokens=num_tokens,
    sources=[
      forecast_sources.Source(
        name=f"source{index}",
        format="dataset",
        num_documents=12,
        num_tokens=1_234_567,
        num_bytes=None if index else 5_000,
        num_cut=3,
        num_dropped=4,
        num_untrainable=5,
        held_out_documents=None if index else 6,
        held_out_tokens=None if index else 789,
      )
      for index in range(num_sources)
    ],
    stages=stages,
    total=forecast_shares.total(stages),
    windows=windows,
    warnings=list(warnings),
  )
