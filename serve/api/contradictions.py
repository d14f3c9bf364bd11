"""Fields that contradict each other, or say nothing without another.

What the grammar forbids beside itself, constraints.py and chat_rules.py say.
"""

from serve.api import errors
from serve.api import requests


def check(body: requests.Generation) -> None:
  """Refuses fields that cannot both be honoured.

  Raises:
    errors.ApiError: There are such.
  """
  if body.stream_options is not None and not body.stream:
    raise errors.refused(
      "stream_options",
      "stream_options are of a stream, but stream is not true; leave them out,"
      " or stream.",
    )
  match body:
    case requests.Completion():
      _check_best_of(body)
    case requests.Chat():
      if body.top_logprobs and not body.logprobs:
        raise errors.refused(
          "top_logprobs", "top_logprobs needs logprobs: true."
        )


def check_lengths(min_tokens: int | None, max_tokens: int) -> None:
  """Refuses answers that would have to be longer than they may be.

  Args:
    min_tokens: As the request says.
    max_tokens: That the answer may have, whoever says so.

  Raises:
    errors.ApiError: They would.
  """
  if min_tokens is not None and min_tokens > max_tokens:
    raise errors.refused(
      "min_tokens",
      f"min_tokens is {min_tokens}, but an answer has at most {max_tokens}"
      " tokens (max_tokens); make min_tokens smaller or max_tokens larger.",
    )


def _check_best_of(body: requests.Completion) -> None:
  if body.best_of is None:
    return
  num = 1 if body.n is None else body.n
  if body.best_of < num:
    raise errors.refused(
      "best_of",
      f"best_of is {body.best_of}, but n is {num}: of so many answers the best"
      " n are given. Make best_of at least n, or leave it out.",
    )
  if body.best_of > 1 and body.stream:
    raise errors.refused(
      "best_of",
      "best_of is known at the end, so that a stream cannot have it; leave it"
      " out, or do not stream.",
    )
