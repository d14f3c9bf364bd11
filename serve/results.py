"""What came of a row, taken into its text and told."""

from collections.abc import Sequence
from typing import Any

from serve import batch
from serve import request as request_lib
from serve import task as task_lib

_Reason = request_lib.FinishReason


def take(
  stay: task_lib.Stay, row: batch.Row, result: batch.RowResult, step: int
) -> request_lib.Output | None:
  """Takes in what a row has computed and chosen.

  Args:
    stay: Whose row it was; it is not over.
    row: What was asked.
    result: What came of it.
    step: Of the parameters.

  Returns:
    What is new, with a finish reason if the text ends; None in the midst of a
    prompt.

  Raises:
    ValueError: The request cannot go on.
  """
  if not result.is_finite:
    raise ValueError("The model's output is not finite.")
  task = stay.task
  if row.tokens:
    _add_prompt(stay, result)
    if row.start + len(row.tokens) < len(task.tokens):
      return None
  tokens = _until_stop(result.tokens, task.request.stop_ids)
  if row.samples:
    assert tokens
    stay.num_unknown -= 1
    stay.computed += len(tokens) - 1
    task.tokens.extend(tokens)
    if task.request.constraint is not None:
      task.request.constraint.accept(list(tokens))
  return request_lib.Output(
    request_id=task.request.id,
    tokens=tokens,
    logprobs=result.logprobs[: len(tokens)],
    num_cached=task.num_cached or 0,
    finish=_finish(task, tokens),
    step=step,
    **_of_prompt(stay),
  )


def _add_prompt(stay: task_lib.Stay, result: batch.RowResult) -> None:
  stay.prompt_logprobs.extend(result.prompt_logprobs)
  if result.pooled is not None:
    pooled = stay.pooled
    stay.pooled = result.pooled if pooled is None else pooled + result.pooled


def _of_prompt(stay: task_lib.Stay) -> dict[str, Any]:
  """Fields of the output that are told once."""
  task = stay.task
  if task.is_prompt_told:
    return {}
  task.is_prompt_told = True
  request, fields = task.request, dict[str, Any]()
  num = len(request.prompt)
  if request.num_prompt_logprobs is not None:
    fields["prompt_logprobs"] = (None, *stay.prompt_logprobs[: num - 1])
  if request.pools:
    assert stay.pooled is not None
    fields["pooled"] = stay.pooled / num
  return fields


def _until_stop(
  tokens: Sequence[int], stop_ids: frozenset[int]
) -> tuple[int, ...]:
  for i, token in enumerate(tokens):
    if token in stop_ids:
      return tuple(tokens[: i + 1])
  return tuple(tokens)


def _finish(task: task_lib.Task, tokens: Sequence[int]) -> _Reason | None:
  request = task.request
  if tokens and tokens[-1] in request.stop_ids:
    return _Reason.STOP
  constraint = request.constraint
  if tokens and constraint is not None and constraint.is_complete:
    return _Reason.STOP
  if len(task.tokens) >= task.max_len:
    return _Reason.LENGTH
  return None
