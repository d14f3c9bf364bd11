"""Prompts of requests to token ids that fit into the context."""

import dataclasses
import itertools
from typing import Any

from serve import conventions
from serve.api import context as context_lib
from serve.api import errors
from serve.api import parameters
from serve.api import requests

# A token is seldom longer. What cannot fit is refused before it is encoded.
_MOST_BYTES_PER_TOKEN = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
  """One prompt; each is itself alone, even if another has its words.

  Attributes:
    tokens: Its ids, at least one.
    text: As it was given; None: it was given as ids.
    num_added: Of the tokens, at the beginning: the text does not have them.
  """

  tokens: tuple[int, ...]
  text: str | None = None
  num_added: int = 0


async def encode(
  given: requests.Prompt,
  context: context_lib.Context,
  *,
  add_special_tokens: bool,
  param: str,
  most: int,
) -> list[Prompt]:
  """The prompts of a request: a text, several, ids, or several lists of them.

  Args:
    given: By the request.
    context: What is served.
    add_special_tokens: Texts begin as the tokenizer says.
    param: The field that they are in.
    most: So many may be given.

  Raises:
    errors.ApiError: They are mixed, or ids are not the model's.
  """
  items: list[Any] = [given] if isinstance(given, str) else list(given)
  if all(isinstance(item, int) for item in items):
    items = [items]
  if len(items) > most:
    raise errors.refused(
      param,
      f"{param} has {len(items)} texts; give at most {most} in a request.",
    )
  if all(isinstance(item, str) for item in items):
    return [
      await _encode_text(str(item), context, add_special_tokens, param)
      for item in items
    ]
  if not all(isinstance(item, list) for item in items):
    raise errors.refused(
      param,
      f"{param} mixes texts and token ids; give a text, a list of texts, a list"
      " of ids, or a list of such lists.",
      code="invalid_type",
    )
  prompts = [Prompt(tokens=tuple(item)) for item in items]
  for prompt in prompts:
    parameters.check_tokens(prompt.tokens, context, param)
  return prompts


def encode_text(
  text: str, context: context_lib.Context, *, add_special_tokens: bool
) -> list[int]:
  """Ids of a text, in which names of special tokens are these."""
  tokenizer = context.known_words.tokenizer
  if add_special_tokens:
    return conventions.encode(text, tokenizer, context.start)
  return tokenizer.encode_with_special_tokens(text)


def check_size(text: str, context: context_lib.Context, param: str) -> None:
  """Refuses a text that is certainly too long, without a look at it.

  Raises:
    errors.ApiError: It is.
  """
  if len(text) > _MOST_BYTES_PER_TOKEN * context.max_len:
    raise errors.too_long(
      num_prompt=len(text) // _MOST_BYTES_PER_TOKEN,
      max_tokens=0,
      max_len=context.max_len,
      param=param,
    )


def max_tokens(
  prompt: tuple[int, ...],
  asked: int | None,
  context: context_lib.Context,
  *,
  usual: int | None,
  param: str,
) -> int:
  """How many tokens an answer may have.

  Args:
    prompt: Before it.
    asked: By the request.
    context: What is served.
    usual: Where nothing is asked, if there is room; None: all there is.
    param: The field of the prompt.

  Raises:
    errors.ApiError: The context has no room for both.
  """
  room = context.max_len - len(prompt)
  if asked is None:
    asked = max(room, 1) if usual is None else min(usual, max(room, 1))
  if asked > room:
    raise errors.too_long(
      num_prompt=len(prompt),
      max_tokens=asked,
      max_len=context.max_len,
      param=param if room < 1 else "max_tokens",
    )
  return asked


async def _encode_text(
  text: str,
  context: context_lib.Context,
  add_special_tokens: bool,
  param: str,
) -> Prompt:
  check_size(text, context, param)
  tokens = await context.work(
    lambda: encode_text(text, context, add_special_tokens=add_special_tokens)
  )
  num_added = _count_added(tokens, context) if add_special_tokens else 0
  if not tokens:
    # Nothing was asked for: what the model has seen before a text.
    tokens = [context.known_words.tokenizer.eos_id]
    num_added = 1
  return Prompt(tokens=tuple(tokens), text=text, num_added=num_added)


def _count_added(tokens: list[int], context: context_lib.Context) -> int:
  """How many ids a text was begun with, such as a BOS."""
  if context.start is conventions.Start.AFTER_END:
    return 1
  tokenizer = context.known_words.tokenizer
  added = tokenizer.encode_with_special_tokens("", add=True)
  # What is added to the end differs from what the text begins with.
  pairs = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(tokens, added, strict=False)
  )
  return len(list(pairs))
