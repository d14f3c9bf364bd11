"""What the scheduler remembers of a request, and of its stay in a slot."""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

import numpy as np

from serve import page_tables
from serve import prefix
from serve import request as request_lib


class Guesser(Protocol):
  """Knows one text, and guesses how it goes on: serve/ngram.py."""

  def __len__(self) -> int:
    """Tokens of the text that it knows."""
    ...

  def extend(self, tokens: Sequence[int]) -> None:
    """Appends to the text."""
    ...

  def propose(self, num_tokens: int) -> Sequence[int]:
    """At most so many tokens that may follow."""
    ...


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Task:
  """A request from its arrival to its end.

  Attributes:
    request: What is asked.
    order: Smaller came earlier.
    tokens: The text as far as it is known: the prompt and what followed.
    max_len: Tokens that the text may have.
    can_find: Whether it may begin with blocks that were found.
    leader: Waits until that one's prompt was launched; None: for nobody.
    guesser: Guesses what follows; None: nobody does, or the runner.
    chain: The names of its blocks, of the newest stay.
    num_cached: Prompt tokens that were found; None: it never had a slot.
    is_prompt_launched: Whether the prompt was computed once, or soon will be.
    is_prompt_told: Whether what was asked of the prompt was told.
    is_over: Whether it has ended.
    stay: While it has a slot.
  """

  request: request_lib.Request
  order: int
  tokens: list[int]
  max_len: int
  can_find: bool
  leader: "Task | None" = None
  guesser: Guesser | None = None
  chain: prefix.Chain | None = None
  num_cached: int | None = None
  is_prompt_launched: bool = False
  is_prompt_told: bool = False
  is_over: bool = False
  stay: "Stay | None" = None

  @property
  def rank(self) -> tuple[int, int]:
    """Smaller deserves its place more; no two are alike."""
    return self.request.priority, self.order

  @property
  def num_outputs(self) -> int:
    """Tokens behind the prompt that are known."""
    return len(self.tokens) - len(self.request.prompt)

  @property
  def is_ready(self) -> bool:
    """Whether it need not wait for another request."""
    leader = self.leader
    return leader is None or leader.is_prompt_launched or leader.is_over


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Stay:
  """A task in a slot. Who must leave and comes back has another stay.

  A step under way refers to stays: the results of one that is over are dropped.

  Attributes:
    task: Whose.
    slot: Which.
    table: Its pages.
    num_found: Tokens that need not be computed.
    regime: How many of LongRoPE's turning points the text was longer than when
      it came: its states are computed accordingly.
    computed: Tokens whose states are in the pages, or will be when the steps
      under way are done; guesses left out.
    is_reading: Whether tokens known on arrival are still to be computed.
    num_unknown: Tokens that steps under way choose.
    prompt_logprobs: Of the prompt's tokens but the first.
    pooled: The sum of the prompt's final hidden states, so far.
    is_over: Whether the slot was given up.
  """

  task: Task
  slot: int
  table: page_tables.Table
  num_found: int
  regime: int
  computed: int
  is_reading: bool = True
  num_unknown: int = 0
  prompt_logprobs: list[request_lib.TokenLogprobs] = dataclasses.field(
    default_factory=list
  )
  pooled: np.ndarray | None = None
  is_over: bool = False

  @property
  def num_unread(self) -> int:
    """Tokens known on arrival that are still to be computed."""
    return len(self.task.tokens) - self.computed

  @property
  def length(self) -> int:
    """Tokens of the text, those that are not known yet included."""
    return len(self.task.tokens) + self.num_unknown
