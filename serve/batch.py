"""What the scheduler hands to the runner for one step, and what comes back.

A step is one call of the model on a block of rows. It is launched without
knowing what the step before it has chosen: a row that decodes goes on from the
token that the device remembers for its slot.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from serve import request as request_lib

# The page that padding is written to and that stands for forgotten tokens.
NULL_PAGE = 0
# In `Row.tables`: attention without a window.
NO_WINDOW = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One request's part of a step.

  Attributes:
    request_id: Whose.
    slot: Where the runner keeps what it remembers of the request.
    start: Tokens of the text whose states are in the pages already.
    length: Tokens of the whole text so far, drafts left out; LongRoPE asks.
    tokens: Of the prompt (or of a text that is computed again), to be computed;
      empty: the one that the device remembers as chosen last.
    drafts: Guesses of what follows it, to be verified; with `tokens` none.
    num_drafts: Guesses to be made by the runner's draft model instead.
    tables: By window, the page of each logical block of the text, up to the one
      of the last token (drafts included).
    samples: Whether the next token is chosen: not in the midst of a prompt.
    targets: The token behind each of `tokens`, whose log-probability is wanted;
      empty: none. May be one shorter than `tokens`.
    num_prompt_logprobs: How many of the likeliest come with it.
    pools: The sum of the final hidden states of `tokens` is wanted.
    masks: Allowed next tokens, as `Constraint.masks`; None: all.
  """

  request_id: str
  slot: int
  start: int
  length: int
  tokens: Sequence[int] = ()
  drafts: Sequence[int] = ()
  num_drafts: int = 0
  tables: Mapping[int, Sequence[int]]
  samples: bool = True
  targets: Sequence[int] = ()
  num_prompt_logprobs: int = 0
  pools: bool = False
  masks: np.ndarray | None = None

  @property
  def num_tokens(self) -> int:
    """Tokens that the model computes."""
    return max(1, len(self.tokens)) + max(len(self.drafts), self.num_drafts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admission:
  """A request that takes a slot; what the slot had is forgotten.

  Attributes:
    slot: Which it takes.
    request: What is asked.
    tokens: Its text so far: longer than the prompt if it had to make room for
      another and comes back.
  """

  slot: int
  request: request_lib.Request
  tokens: Sequence[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """The rows of one step: all with `tokens` (prefill), or none (decode).

  Attributes:
    rows: At least one.
    admissions: What takes a slot, in order, before the step is computed.
  """

  rows: tuple[Row, ...]
  admissions: tuple[Admission, ...] = ()

  @property
  def is_prefill(self) -> bool:
    """Whether it reads texts rather than continues them."""
    return bool(self.rows[0].tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowResult:
  """What came of a row.

  Attributes:
    tokens: Chosen, in order: none, one, or with drafts up to one more than
      drafts. All but the last are drafts that were right.
    logprobs: Of each of them, if the request wants them.
    prompt_logprobs: Of each of the row's targets.
    pooled: Sum over the row's tokens [D], float32.
    is_finite: False if a logit was not; then the tokens mean nothing.
  """

  tokens: tuple[int, ...] = ()
  logprobs: tuple[request_lib.TokenLogprobs, ...] = ()
  prompt_logprobs: tuple[request_lib.TokenLogprobs, ...] = ()
  pooled: np.ndarray | None = None
  is_finite: bool = True
