"""What is asked of the engine, and what it answers: plain values.

A request is one prompt and one continuation. What the API offers beyond that (n
choices, the best of several, many prompts in one call) is several requests.
"""

import dataclasses
import enum
from typing import Protocol

import numpy as np

# Most log-probabilities that can be asked for at a position.
MAX_LOGPROBS = 20


class Constraint(Protocol):
  """Which tokens may come next: a grammar and where a text stands in it."""

  def masks(self, drafts: list[int]) -> np.ndarray:
    """What is allowed next, and behind each draft in turn.

    Args:
      drafts: Tokens that may come next. Behind one that is not allowed,
        everything is.

    Returns:
      uint32 [1 + len(drafts), ceil(V / 32)]; bit i % 32 of word i // 32 says
      whether token i is allowed.
    """
    ...

  def accept(self, tokens: list[int]) -> None:
    """Moves on behind tokens that were chosen.

    Raises:
      ValueError: One of them was not allowed.
    """
    ...

  @property
  def is_complete(self) -> bool:
    """Whether nothing but the end of the text can follow."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a token is chosen from the logits, in this order.

  Penalties and biases change logits; a constraint removes tokens; then
  temperature; then top_k, top_p and min_p remove tokens.

  Attributes:
    temperature: Divides the logits; 0 takes the likeliest token.
    top_k: Only so many of the likeliest tokens; None: all.
    top_p: Only the likeliest tokens whose probabilities just reach this sum.
    min_p: Only tokens at least this times as likely as the likeliest.
    repetition_penalty: Divides positive logits, multiplies negative ones, of
      tokens in prompt or output (arXiv:1909.05858); 1: none.
    presence_penalty: Subtracted from logits of tokens in the output.
    frequency_penalty: Subtracted for each time that they are in the output.
    logit_bias: Added to the logits, by token.
    seed: Of the random choices, which depend on it and on the position in the
      text alone; uint32.
    num_logprobs: The log-probability of the chosen token, and of so many of the
      likeliest, before anything was changed; None: none at all.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  logit_bias: tuple[tuple[int, float], ...] = ()
  seed: int = 0
  num_logprobs: int | None = None

  @property
  def has_penalties(self) -> bool:
    """Whether what was said before changes logits."""
    return (
      self.repetition_penalty != 1.0
      or self.presence_penalty != 0.0
      or self.frequency_penalty != 0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A prompt and what is to be made of it; checked before it is queued.

  Attributes:
    id: Unique among the requests that are not finished.
    prompt: Token ids, at least one.
    max_tokens: Of the continuation; 0 only computes the prompt.
    min_tokens: Until then no stop token is chosen.
    stop_ids: Tokens that end the text; the chosen one is the last of `tokens`.
    sampling: How tokens are chosen.
    constraint: What the continuation must obey.
    num_prompt_logprobs: As `Sampling.num_logprobs`, for the prompt's tokens.
    pools: The mean of the prompt's final hidden states is wanted.
    priority: Smaller is served first.
    user: Within a priority, users share the machine evenly.
    deadline: On time.monotonic's clock; then it ends unfinished. None: never.
    leader: Id of another request with the same prompt: this one waits for that
      one's prompt, which it then need not compute.
  """

  id: str
  prompt: tuple[int, ...]
  max_tokens: int
  min_tokens: int = 0
  stop_ids: frozenset[int] = frozenset()
  sampling: Sampling = Sampling()
  constraint: Constraint | None = None
  num_prompt_logprobs: int | None = None
  pools: bool = False
  priority: int = 0
  user: str = ""
  deadline: float | None = None
  leader: str | None = None


class FinishReason(enum.Enum):
  """Why nothing more comes."""

  STOP = "stop"  # A stop token, a stop string or a complete constraint.
  LENGTH = "length"  # max_tokens, or the end of the context.
  ABORTED = "aborted"  # Whoever asked has left.
  DEADLINE = "deadline"
  ERROR = "error"  # This request's own: the others are unharmed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
  """Of one position.

  Attributes:
    logprob: Of the token that is there.
    rank: How many tokens are at least as likely, itself included.
    top: The likeliest tokens and their log-probabilities, likeliest first.
  """

  logprob: float
  rank: int
  top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """News of a request, in order; the last has a finish reason.

  Attributes:
    request_id: Whose.
    tokens: New ones, at most a few.
    logprobs: Of each of them, if asked for.
    prompt_logprobs: Of each prompt token but the first (None), once.
    pooled: The mean hidden state [D], float32, once.
    num_cached: Prompt tokens that were found computed; known with the first.
    finish: None if more comes.
    error: What went wrong.
    step: The checkpoint's training step that computed the newest of this.
  """

  request_id: str
  tokens: tuple[int, ...] = ()
  logprobs: tuple[TokenLogprobs, ...] = ()
  prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
  pooled: np.ndarray | None = None
  num_cached: int = 0
  finish: FinishReason | None = None
  error: str | None = None
  step: int = 0
