"""What a request has cost: tokens."""

from collections.abc import Iterable

from serve.api import choices as choices_lib
from serve.api import responses


def of(choices: Iterable[choices_lib.Choice]) -> responses.Usage:
  """Of some answers. A prompt counts once, however many answer it."""
  choices = list(choices)
  leaders = [choice for choice in choices if choice.request.leader is None]
  leaders = leaders or choices[:1]
  prompt = sum(len(choice.request.prompt) for choice in leaders)
  completion = sum(len(choice.tokens) for choice in choices)
  return responses.Usage(
    prompt_tokens=prompt,
    completion_tokens=completion,
    total_tokens=prompt + completion,
    prompt_tokens_details=responses.PromptDetails(
      cached_tokens=sum(choice.num_cached for choice in leaders)
    ),
  )
