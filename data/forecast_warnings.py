"""What a forecast shows that is likely not meant.

Each line says where, what and mostly what to do about it.
"""

import collections.abc

from data import config as config_lib
from data import forecast_shares
from data import forecast_sources
from data import plan as plan_lib
from data import stages as stages_lib
from data import weighted

# Up to here repeated tokens are about as good as new ones (N. Muennighoff et
# al., "Scaling data-constrained language models", 2023).
MANY_EPOCHS = 4
# A share that is further from what is asked, relatively, is worth a word.
_CLOSE = 0.05
_MOST_NAMED = 4


def find(
  config: config_lib.DataConfig,
  plan: plan_lib.Plan,
  *,
  num_steps: int,
  end: int,
  sources: list[forecast_sources.Source],
  stages: list[forecast_shares.Stage],
  total: list[forecast_shares.Share],
) -> list[str]:
  """What to look at before the run starts, one line each.

  Args:
    config: of the run, resolved.
    plan: of the run.
    num_steps: its length as asked.
    end: what the data gives of it.
    sources: what there is.
    stages: those that are reached.
    total: shares of the run.
  """
  used_up = list(_used_up(config, plan, end))
  return [
    *_length_warnings(config, plan, end, num_steps),
    *_used_up_warnings(config, plan, used_up),
    *_stage_warnings(plan, stages, used_up),
    *_share_warnings(total),
    *_held_out_warnings(config, sources),
  ]


def _used_up(
  config: config_lib.DataConfig, plan: plan_lib.Plan, end: int
) -> collections.abc.Iterator[tuple[int, int]]:
  """Sources that others take the place of, and the step from which on."""
  mixture = plan.mixture
  if not isinstance(mixture, weighted.Weighted):
    return
  found: set[int] = set()
  num_samples = stages_lib.num_rows(plan.stages, end) // plan.rows_per_sample
  for first, counts in mixture.deals(num_samples):
    row = first * plan.rows_per_sample
    stage = [stage for stage in plan.stages if stage.first_row <= row][-1]
    for source, weight in enumerate(forecast_shares.weights(config, stage)):
      if weight and source not in counts and source not in found:
        found.add(source)
        within = (row - stage.first_row) // stage.batch_size
        yield source, stage.first_step + within


def _length_warnings(
  config: config_lib.DataConfig,
  plan: plan_lib.Plan,
  end: int,
  num_steps: int,
) -> collections.abc.Iterator[str]:
  """What of the run, or of its stages, does not happen."""
  for number, stage in enumerate(plan.stages):
    where = f"data.stages[{number}]"
    if stage.first_step >= end:
      yield (
        f"{where} is not reached: it begins at step {stage.first_step}, the run"
        f" ends after step {end}"
      )
    elif stage.num_steps and stage.first_step + stage.num_steps > end:
      yield (
        f"{where} is cut short: the run takes {end - stage.first_step} of its"
        f" {stage.num_steps} steps"
      )
  if end == num_steps:
    return
  ended_by = getattr(plan.mixture, "ended_by", None)
  reason = "the last of data.stages has no more tokens (0: as long as the run)"
  if ended_by is not None:
    name = plan.names[ended_by]
    reason = (
      f"data.sources[{name}] is used up"
      f" (max_epochs={config.source(name).max_epochs:g},"
      f" on_exhaustion={config.on_exhaustion})"
    )
  yield (
    f"the data ends after step {end} of {num_steps}: {reason}; training would"
    f" refuse to begin, so change that or set run.steps to {end}"
  )


def _used_up_warnings(
  config: config_lib.DataConfig,
  plan: plan_lib.Plan,
  used_up: list[tuple[int, int]],
) -> collections.abc.Iterator[str]:
  for source, step in used_up:
    name = plan.names[source]
    yield (
      f"data.sources[{name}] is used up"
      f" (max_epochs={config.source(name).max_epochs:g}) at step {step}: from"
      " there on the others share its weight (on_exhaustion=renormalize)"
    )


def _stage_warnings(
  plan: plan_lib.Plan,
  stages: list[forecast_shares.Stage],
  used_up: list[tuple[int, int]],
) -> collections.abc.Iterator[str]:
  """Where a stage delivers other shares than are asked, and why."""
  for number, stage in enumerate(stages):
    num_samples = stage.num_steps * stage.batch_size // plan.rows_per_sample
    far, coarse = [], []
    for share in stage.shares:
      missing = abs(share.num_samples - share.asked * num_samples)
      if missing >= 1 and not share.is_estimate:
        far.append(share)
      elif missing > _CLOSE * share.asked * num_samples:
        coarse.append(share)
    where = f"data.stages[{number}]" if len(stages) > 1 else "the run"
    end = stage.first_step + stage.num_steps
    gone = [plan.names[source] for source, step in used_up if step < end]
    if far:
      reason = "Megatron's order keeps no closer to the weights"
      if gone:
        reason = f"{', '.join(gone)} used up"
      yield (
        f"{where} delivers other shares than asked: {_named(far)} ({reason})"
      )
    if coarse:
      yield (
        f"{where} has {num_samples} samples, too few for the shares that are"
        f" asked: {_named(coarse)}"
      )


def _named(shares: list[forecast_shares.Share]) -> str:
  """The shares that are furthest from what is asked, relatively."""
  shares = sorted(
    shares, key=lambda share: -abs(share.delivered / float(share.asked) - 1)
  )
  parts = [
    f"{share.name} {share.delivered:.2%} instead of {float(share.asked):.2%}"
    for share in shares[:_MOST_NAMED]
  ]
  more = len(shares) - len(parts)
  return ", ".join(parts) + (f" and {more} more" if more else "")


def _share_warnings(
  total: list[forecast_shares.Share],
) -> collections.abc.Iterator[str]:
  for share in total:
    where = f"data.sources[{share.name}]"
    if not share.asked:
      yield f"{where} rests in every stage that is reached: it is never used"
    elif not share.num_samples:
      yield f"{where} is never reached: the run takes no sample of it"
  many = [
    f"{share.name} {share.epochs:.2f} times"
    for share in total
    if share.epochs > MANY_EPOCHS
  ]
  if many:
    yield (
      f"read more than {MANY_EPOCHS} times: {', '.join(many)}; text that is"
      " repeated as often teaches little that is new"
    )


def _held_out_warnings(
  config: config_lib.DataConfig, sources: list[forecast_sources.Source]
) -> collections.abc.Iterator[str]:
  for source in sources:
    if source.held_out_tokens == 0 or source.held_out_documents == 0:
      yield f"data.sources[{source.name}] has an empty held-out part"
  bare = [s.name for s in sources if s.held_out_documents is None]
  if bare:
    # Megatron's samples are split by data.megatron.split.
    is_megatron = config.mixture == "megatron"
    fix = "eval_path" if is_megatron else "eval_path or held_out"
    yield (
      f"no loss is evaluated on {', '.join(bare)}: set {fix} of data.sources"
    )
