"""What a request for text asks of the engine: how tokens are chosen."""

import dataclasses
import hashlib
import secrets
import time

from serve import request as request_lib
from serve.api import context as context_lib
from serve.api import errors
from serve.api import requests

_NUM_SEEDS = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
  """The same for all answers of a request, but for the seed.

  Attributes:
    sampling: How tokens are chosen; its seed is that of the first answer.
    stops: Strings at which a text ends.
    include_stop: The stop string belongs to the text.
    stop_ids: Tokens at which it ends.
    skip_special_tokens: Special tokens are not text.
    min_tokens: No end before.
    num_prompt_logprobs: At each token of the prompt; None: not wanted.
    seed: As it was given, or chosen at random.
    priority: Smaller is served first.
    user: Users share the machine evenly.
    seconds: Of which `deadline` is the end.
    deadline: On time.monotonic's clock.
  """

  sampling: request_lib.Sampling
  stops: tuple[str, ...]
  include_stop: bool
  stop_ids: frozenset[int]
  skip_special_tokens: bool
  min_tokens: int
  num_prompt_logprobs: int | None
  seed: int
  priority: int
  user: str
  seconds: float
  deadline: float

  def choice_sampling(self, index: int) -> request_lib.Sampling:
    """Of one of several answers; the first has the request's seed itself."""
    seed = choice_seed(self.seed, index)
    return dataclasses.replace(self.sampling, seed=seed)


def read(
  body: requests.Generation,
  context: context_lib.Context,
  *,
  num_logprobs: int | None,
  user: str,
) -> Parameters:
  """The parameters of a request.

  Args:
    body: The request.
    context: What is served.
    num_logprobs: As `Sampling.num_logprobs`.
    user: Whose API key it came with; empty: whom the request names.

  Raises:
    errors.ApiError: A value cannot be.
  """
  defaults = context.generation

  def pick(given: float | None, usual: float | None, neutral: float) -> float:
    if given is not None:
      return given
    return neutral if usual is None else usual

  top_k = defaults.top_k if body.top_k is None else body.top_k
  if top_k is not None and (top_k < 1 or top_k >= context.vocab_size):
    top_k = None
  seed = secrets.randbelow(_NUM_SEEDS) if body.seed is None else body.seed
  seconds, deadline = limit_time(body.timeout, context)
  return Parameters(
    sampling=request_lib.Sampling(
      temperature=pick(body.temperature, defaults.temperature, 1.0),
      top_k=top_k,
      top_p=pick(body.top_p, defaults.top_p, 1.0),
      min_p=pick(body.min_p, defaults.min_p, 0.0),
      repetition_penalty=pick(
        body.repetition_penalty, defaults.repetition_penalty, 1.0
      ),
      presence_penalty=body.presence_penalty or 0.0,
      frequency_penalty=body.frequency_penalty or 0.0,
      logit_bias=_bias(body, context),
      seed=choice_seed(seed, 0),
      num_logprobs=num_logprobs,
    ),
    stops=_stops(body, context),
    include_stop=bool(body.include_stop_str_in_output),
    stop_ids=_stop_ids(body, context),
    skip_special_tokens=body.skip_special_tokens is not False,
    min_tokens=body.min_tokens or 0,
    num_prompt_logprobs=body.prompt_logprobs,
    seed=seed,
    priority=body.priority or 0,
    user=user or body.user or "",
    seconds=seconds,
    deadline=deadline,
  )


def limit_time(
  asked: float | None, context: context_lib.Context
) -> tuple[float, float]:
  """Seconds that a request may take, and when they end."""
  limit = context.config.max_seconds
  seconds = limit if asked is None else min(asked, limit)
  return seconds, time.monotonic() + seconds


def check_tokens(
  tokens: tuple[int, ...] | list[int],
  context: context_lib.Context,
  param: str,
) -> None:
  """Refuses ids that are not the model's.

  Raises:
    errors.ApiError: There is one.
  """
  if tokens and max(tokens) >= context.vocab_size:
    raise errors.refused(
      param,
      f"{param} has token {max(tokens)}, but the model's vocabulary has"
      f" {context.vocab_size}: give ids from 0 to {context.vocab_size - 1}.",
    )


def choice_seed(seed: int, index: int) -> int:
  """The seed of one of several answers, a uint32.

  The first has the seed itself, if it is a uint32, so that an answer does not
  depend on how many are asked for.
  """
  if index == 0 and 0 <= seed < _NUM_SEEDS:
    return seed
  text = f"{seed}/{index}".encode()
  digest = hashlib.blake2s(text, digest_size=4).digest()
  return int.from_bytes(digest, "little")


def _bias(
  body: requests.Generation, context: context_lib.Context
) -> tuple[tuple[int, float], ...]:
  bias = [(int(key), value) for key, value in (body.logit_bias or {}).items()]
  check_tokens([token for token, _ in bias], context, "logit_bias")
  return tuple(bias)


def _stops(
  body: requests.Generation, context: context_lib.Context
) -> tuple[str, ...]:
  stops = body.stop or ()
  stops = (stops,) if isinstance(stops, str) else tuple(stops)
  if len(stops) > context.config.max_stops:
    raise errors.refused(
      "stop",
      f"stop has {len(stops)} strings; give at most"
      f" {context.config.max_stops}.",
    )
  if stops:
    _ = context.known_words
  return stops


def _stop_ids(
  body: requests.Generation, context: context_lib.Context
) -> frozenset[int]:
  asked = body.stop_token_ids or []
  check_tokens(asked, context, "stop_token_ids")
  return frozenset(asked) | (
    frozenset() if body.ignore_eos else context.end_ids
  )


def of_embedding(
  body: requests.Embedding, context: context_lib.Context, *, user: str
) -> Parameters:
  """The parameters of a request for embeddings: nothing is chosen."""
  seconds, deadline = limit_time(body.timeout, context)
  return Parameters(
    sampling=request_lib.Sampling(temperature=0.0),
    stops=(),
    include_stop=False,
    stop_ids=frozenset(),
    skip_special_tokens=True,
    min_tokens=0,
    num_prompt_logprobs=None,
    seed=0,
    priority=body.priority or 0,
    user=user or body.user or "",
    seconds=seconds,
    deadline=deadline,
  )
