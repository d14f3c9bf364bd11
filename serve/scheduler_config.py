"""What the scheduler must know of the model, the runner and the settings."""

from collections.abc import Mapping
import dataclasses

from serve import chunks
from serve import page_tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
  """Limits.

  Attributes:
    max_rows: Slots; the first is 1.
    prefill_tokens: Tokens read in a step at most, padding included.
    max_len: Tokens of a prompt and its continuation.
    page_size: Tokens of a page.
    num_pages: By attention window (0: none), the null page included.
    prefix_caching: Whether texts begin with blocks that others computed.
    max_queued_requests: That wait although all slots are taken.
    max_queued_tokens: Of the texts that wait.
    num_drafts: Guesses at a time; 0: none are made.
    recurrent: Whether layers remember more than the pages hold: then there are
      no prefix cache and no guesses.
    step_tokens: What a step costs beside its tokens (parameters are read from
      memory, programs are launched), in tokens; on accelerators hundreds.
    turns: LongRoPE's turning points: a longer text has other states.
  """

  max_rows: int
  prefill_tokens: int
  max_len: int
  page_size: int
  num_pages: Mapping[int, int]
  prefix_caching: bool = True
  max_queued_requests: int = 256
  max_queued_tokens: int = 262_144
  num_drafts: int = 0
  recurrent: bool = False
  step_tokens: int = 32
  turns: tuple[int, ...] = ()

  @property
  def can_find(self) -> bool:
    """Whether blocks are found that others computed."""
    return self.prefix_caching and not self.recurrent and bool(self.num_pages)

  def check(self) -> None:
    """Raises ValueError if a text of full length could not be computed."""
    _check_least("max_rows", self.max_rows, 1)
    _check_least("prefill_tokens", self.prefill_tokens, chunks.MIN_TOKENS)
    _check_least("max_len", self.max_len, 2)
    _check_least("page_size", self.page_size, 1)
    _check_least("max_queued_requests", self.max_queued_requests, 1)
    _check_least("max_queued_tokens", self.max_queued_tokens, 1)
    _check_least("num_drafts", self.num_drafts, 0)
    if self.recurrent and self.num_drafts:
      raise ValueError(
        f"speculation with num_drafts={self.num_drafts} needs a model whose "
        "states can be taken back; one with recurrent layers cannot: set "
        "speculation.method=none."
      )
    for window, num in self.num_pages.items():
      needed = page_tables.most_pages(
        window,
        size=self.max_len,
        chunk=max(self.prefill_tokens, 1 + self.num_drafts),
        page_size=self.page_size,
      )
      if num - 1 < needed:
        raise ValueError(
          f"A cache of {num - 1} pages of {self.page_size} tokens (window "
          f"{window}) cannot hold a text of max_len={self.max_len}, which "
          f"needs {needed}: raise cache_tokens or lower max_len."
        )


def _check_least(field: str, value: int, least: int) -> None:
  if value < least:
    raise ValueError(f"{field}={value} must be at least {least}.")
