"""A text's part of a step: what the runner is told of a stay."""

from collections.abc import Sequence

from serve import batch
from serve import scheduler_config
from serve import task as task_lib


def read(stay: task_lib.Stay, size: int) -> batch.Row:
  """Of the next tokens that are still to be read.

  Args:
    stay: Whose; it has pages for them.
    size: How many.

  Raises:
    ValueError: Of the constraint.
  """
  task, request = stay.task, stay.task.request
  start, end = stay.computed, stay.computed + size
  is_last = end == len(task.tokens)
  samples = is_last and request.max_tokens > 0
  wants = request.num_prompt_logprobs is not None and not task.is_prompt_told
  return batch.Row(
    request_id=request.id,
    slot=stay.slot,
    start=start,
    length=len(task.tokens),
    tokens=tuple(task.tokens[start:end]),
    tables=stay.table.snapshot(),
    samples=samples,
    targets=tuple(task.tokens[start + 1 : end + 1]) if wants else (),
    num_prompt_logprobs=request.num_prompt_logprobs or 0,
    pools=request.pools and not task.is_prompt_told,
    masks=(
      request.constraint.masks([]) if samples and request.constraint else None
    ),
  )


def continued(stay: task_lib.Stay, num_drafts: int) -> batch.Row:
  """Of the token that was chosen last, and guesses behind it.

  Args:
    stay: Whose; it has pages for them.
    num_drafts: Guesses, at most.

  Raises:
    ValueError: Of the constraint.
  """
  task, request = stay.task, stay.task.request
  drafts: Sequence[int] = ()
  if num_drafts and task.guesser is not None:
    task.guesser.extend(task.tokens[len(task.guesser) :])
    drafts = tuple(task.guesser.propose(num_drafts))
    num_drafts = 0
  return batch.Row(
    request_id=request.id,
    slot=stay.slot,
    start=stay.computed,
    length=stay.length,
    drafts=drafts,
    num_drafts=num_drafts,
    tables=stay.table.snapshot(),
    masks=(
      request.constraint.masks(list(drafts)) if request.constraint else None
    ),
  )


def most_drafts(
  stay: task_lib.Stay, config: scheduler_config.SchedulerConfig
) -> int:
  """Guesses with which the same is written as without any."""
  if not config.num_drafts:
    return 0
  task, request = stay.task, stay.task.request
  if task.guesser is None and request.constraint is not None:
    return 0  # Grammars are not asked about guesses made on the device.
  # The last token that may be chosen ends the text.
  most = min(config.num_drafts, task.max_len - 1 - stay.length)
  # All that a row computes is computed on the same side of a turn.
  for turn in config.turns:
    if turn >= stay.length:
      most = min(most, turn - stay.length)
  return most
