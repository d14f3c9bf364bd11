"""What each source gives in the stages of a run, from its plan.

Samples are counted, not drawn: O(1) a source and stage for `weighted`; for
`megatron` from the counts of its order, which take 0.3 us a sample and are
estimated by the weights if there are many.
"""

import collections.abc
import dataclasses
import fractions

import numpy as np

from data import config as config_lib
from data import forecast_counts
from data import plan as plan_lib
from data import stages as stages_lib
from data import weighted
from data.megatron import mixture as megatron

# Parts of each stage of which the shares are told apart, at most, and rows in
# each, at least: the shares of few rows are those of any few.
_WINDOWS = 40
_WINDOW_ROWS = 200
# Samples in Megatron's order that are counted, if no cache keeps the counts.
_MOST_COUNTED = 1 << 23

# Samples of each source before a batch.
_Given = collections.abc.Callable[[int], list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
  """What a source gives in a stage, or in the run.

  Attributes:
    name: of the source.
    asked: its weight as an exact share; 0: it rests.
    delivered: its share of the tokens.
    num_samples: that it gives.
    num_tokens: places of the rows of these, padding included.
    num_targets: places whose target is to be predicted.
    num_padding: places without a token.
    epochs: of the source, that these samples are.
    is_estimate: the samples are not counted, being too many, but taken from
      the weights.
    targets_are_estimate: nor are targets and padding.
  """

  name: str
  asked: fractions.Fraction
  delivered: float
  num_samples: int
  num_tokens: int
  num_targets: int
  num_padding: int
  epochs: float
  is_estimate: bool
  targets_are_estimate: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A part of the run.

  Attributes:
    first_step: number of its first batch.
    num_steps: batches of it that the run reaches.
    seq_len: tokens of a row.
    batch_size: rows of a batch.
    num_tokens: places of all its batches.
    shares: of the sources.
  """

  first_step: int
  num_steps: int
  seq_len: int
  batch_size: int
  num_tokens: int
  shares: list[Share]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """Shares of the sources in some steps of a stage.

  Attributes:
    first_step: number of its first batch.
    num_steps: batches of it.
    first_token: places of the batches before it.
    num_tokens: places of its batches.
    delivered: share of each source of these.
  """

  first_step: int
  num_steps: int
  first_token: int
  num_tokens: int
  delivered: list[float]


def count(
  config: config_lib.DataConfig,
  plan: plan_lib.Plan,
  counters: collections.abc.Sequence[forecast_counts.Counter],
  *,
  end: int,
) -> tuple[list[Stage], list[Window]]:
  """Counts what the sources give, stage by stage.

  Args:
    config: of the run, resolved.
    plan: of the run.
    counters: of its sources.
    end: how many batches are taken.

  Returns:
    The stages that are reached, and the windows over all of them.
  """
  given, is_estimate = _given(config, plan, end)
  stages: list[Stage] = []
  windows: list[Window] = []
  num_tokens = 0
  for stage, stop in _reached(plan, end):
    asked = _asked(config, plan, stage)
    made = _stage(plan, stage, stop, asked, given, counters, is_estimate)
    stages.append(made)
    windows += _windows(stage, stop, given, num_tokens)
    num_tokens += made.num_tokens
  return stages, windows


def total(stages: list[Stage]) -> list[Share]:
  """The shares of the whole run; what is asked weighs stages by tokens."""
  num_tokens = sum(stage.num_tokens for stage in stages)
  shares_of_run = []
  for shares in zip(*(stage.shares for stage in stages), strict=True):
    asked = fractions.Fraction(0)
    for share, stage in zip(shares, stages, strict=True):
      asked += share.asked * stage.num_tokens
    tokens = sum(share.num_tokens for share in shares)
    share = Share(
      name=shares[0].name,
      asked=asked / num_tokens,
      delivered=tokens / num_tokens,
      num_samples=sum(share.num_samples for share in shares),
      num_tokens=tokens,
      num_targets=sum(share.num_targets for share in shares),
      num_padding=sum(share.num_padding for share in shares),
      epochs=sum(share.epochs for share in shares),
      is_estimate=any(share.is_estimate for share in shares),
      targets_are_estimate=any(share.targets_are_estimate for share in shares),
    )
    shares_of_run.append(share)
  return shares_of_run


def weights(
  config: config_lib.DataConfig, stage: stages_lib.Stage
) -> collections.abc.Sequence[float]:
  """As they are written; 0: the source rests."""
  own = [source.weight for source in config.sources] or [1.0]
  return stage.weights or own


def _given(
  config: config_lib.DataConfig, plan: plan_lib.Plan, end: int
) -> tuple[_Given, bool]:
  """How many samples come before a batch; whether that is an estimate."""
  mixture, each = plan.mixture, plan.rows_per_sample

  def num_samples(step: int) -> int:
    return stages_lib.num_rows(plan.stages, step) // each

  def by_deal(step: int) -> list[int]:
    assert isinstance(mixture, weighted.Weighted)
    sections = mixture.given(num_samples(step))
    return [sum(counts) for counts in zip(*sections, strict=True)]

  if isinstance(mixture, weighted.Weighted):
    return by_deal, False
  assert isinstance(mixture, megatron.Mixture)
  blend, shares = mixture.split.blend, mixture.split.weights
  if blend is None or shares is None:
    return (lambda step: [num_samples(step)]), False
  if num_samples(end) <= _MOST_COUNTED or config.megatron.cache:
    return (lambda step: blend.counts_before(num_samples(step)).tolist()), False
  return (lambda step: _apportion(num_samples(step), shares)), True


def _apportion(count: int, weights: list[float]) -> list[int]:
  """Whole numbers near the shares of weights, by largest remainder."""
  ideal = np.array(weights) / sum(weights) * count
  parts = np.floor(ideal).astype(np.int64)
  parts[np.argsort(parts - ideal)[: count - int(parts.sum())]] += 1
  return parts.tolist()


def _reached(
  plan: plan_lib.Plan, end: int
) -> collections.abc.Iterator[tuple[stages_lib.Stage, int]]:
  """The stages that begin before a step, and where each stops."""
  for number, stage in enumerate(plan.stages):
    following = plan.stages[number + 1 :]
    stop = min(following[0].first_step, end) if following else end
    if stage.first_step < stop:
      yield stage, stop


def _asked(
  config: config_lib.DataConfig, plan: plan_lib.Plan, stage: stages_lib.Stage
) -> list[fractions.Fraction]:
  """The weights as shares, exact as they are written."""
  written = weights(config, stage)
  if config.mixture == "megatron" and config.megatron.blend == "lengths":
    assert isinstance(plan.mixture, megatron.Mixture)
    written = [index.num_samples for index in plan.mixture.split.indices]
  exact = [fractions.Fraction(str(weight)) for weight in written]
  return [weight / sum(exact) for weight in exact]


def _stage(
  plan: plan_lib.Plan,
  stage: stages_lib.Stage,
  stop: int,
  asked: list[fractions.Fraction],
  given: _Given,
  counters: collections.abc.Sequence[forecast_counts.Counter],
  is_estimate: bool,
) -> Stage:
  before, after = given(stage.first_step), given(stop)
  num_steps = stop - stage.first_step
  num_rows = num_steps * stage.batch_size
  shares = []
  for index, counter in enumerate(counters):
    samples = after[index] - before[index]
    rows = samples * plan.rows_per_sample
    targets, padding = counter.count(before[index], after[index], stage.seq_len)
    share = Share(
      name=plan.names[index],
      asked=asked[index],
      delivered=rows / num_rows,
      num_samples=samples,
      num_tokens=rows * stage.seq_len,
      num_targets=targets,
      num_padding=padding,
      epochs=float(counter.epochs(samples, stage.seq_len)),
      is_estimate=is_estimate,
      targets_are_estimate=is_estimate or counter.is_estimated,
    )
    shares.append(share)
  return Stage(
    first_step=stage.first_step,
    num_steps=num_steps,
    seq_len=stage.seq_len,
    batch_size=stage.batch_size,
    num_tokens=num_rows * stage.seq_len,
    shares=shares,
  )


def _windows(
  stage: stages_lib.Stage, stop: int, given: _Given, first_token: int
) -> list[Window]:
  num_steps = stop - stage.first_step
  count = min(_WINDOWS, num_steps * stage.batch_size // _WINDOW_ROWS, num_steps)
  count = max(count, 1)
  steps = [stage.first_step + num_steps * i // count for i in range(count + 1)]
  counts = np.diff(np.array([given(step) for step in steps]), axis=0)
  tokens_of_step = stage.batch_size * stage.seq_len
  windows = []
  for step, following, parts in zip(steps, steps[1:], counts, strict=False):
    window = Window(
      first_step=step,
      num_steps=following - step,
      first_token=first_token + (step - stage.first_step) * tokens_of_step,
      num_tokens=(following - step) * tokens_of_step,
      delivered=(parts / parts.sum()).tolist(),
    )
    windows.append(window)
  return windows
