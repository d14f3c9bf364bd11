"""A runner without a model, for tests: every error of the scheduler shows.

The state of a token is a hash of the text up to it; what follows a text is a
function of its last token's state. States are kept in pages as the scheduler
says, and each row checks that all that its tokens see is there: the states of
just this text. Steps are computed in the order in which they are launched.
"""

import bisect
from collections.abc import Mapping, Sequence
import dataclasses
import random
from typing import NamedTuple

import numpy as np

from serve import batch as batch_lib
from serve import request as request_lib
from serve import scheduler_config

VOCAB = 7


class State(NamedTuple):
  """Of a token in a page."""

  text: int
  step: int


@dataclasses.dataclass(kw_only=True)
class Slot:
  """What the device remembers of a request."""

  request: request_lib.Request
  text: list[int]
  step: int
  num_computed: int = 0


def states(text: Sequence[int], regime: int) -> list[int]:
  """Of each token, what stands for the text up to it."""
  all_states, state = [], regime
  for token in text:
    state = hash((state, token, 12345))
    all_states.append(state)
  return all_states


def choose(
  state: int,
  request: request_lib.Request,
  *,
  can_stop: bool,
  mask: int = -1,
) -> int:
  """The token behind a state: the first allowed one from a random one on."""
  first = hash((state, request.sampling.seed)) % VOCAB
  for i in range(VOCAB):
    token = (first + i) % VOCAB
    if mask >> token & 1 and (can_stop or token not in request.stop_ids):
      return token
  raise AssertionError("No token is allowed.")


def logprob(state: int, token: int) -> request_lib.TokenLogprobs:
  """Of a token behind a state."""
  return request_lib.TokenLogprobs(
    logprob=-float(hash((state, token)) % 1000), rank=1
  )


def hidden(state: int) -> np.ndarray:
  """Of a token."""
  return np.array([state % 1000, 1], np.float32)


def regime(turns: Sequence[int], length: int) -> int:
  """In which of LongRoPE's regimes a text of a length is."""
  return bisect.bisect_left(turns, length)


def write(
  request: request_lib.Request, config: scheduler_config.SchedulerConfig
) -> list[int]:
  """All that follows a prompt without a constraint, one token at a time."""
  text, num = list(request.prompt), len(request.prompt)
  while len(text) < min(num + request.max_tokens, config.max_len):
    last = states(text, regime(config.turns, len(text)))[-1]
    can_stop = _can_stop(request, len(text))
    text.append(choose(last, request, can_stop=can_stop))
    if text[-1] in request.stop_ids:
      break
  return text[num:]


def _can_stop(request: request_lib.Request, length: int) -> bool:
  """Whether a stop token may follow a text of this length."""
  return length >= len(request.prompt) + request.min_tokens


class SimulatedRunner:
  """Computes a batch when it is launched."""

  def __init__(
    self, config: scheduler_config.SchedulerConfig, *, seed: int = 0
  ):
    self._config = config
    self._random = random.Random(seed)
    self._pages: dict[tuple[int, int, int], State] = {}
    self.slots: dict[int, Slot] = {}
    self.step = 0

  def run(self, batch: batch_lib.Batch) -> list[batch_lib.RowResult]:
    """The results of a step, which the host must not yet know."""
    for admission in batch.admissions:
      assert 1 <= admission.slot <= self._config.max_rows
      self.slots[admission.slot] = Slot(
        request=admission.request,
        text=list(admission.tokens),
        step=self.step,
      )
    slots = [row.slot for row in batch.rows]
    assert len(set(slots)) == len(slots)
    assert len({bool(row.tokens) for row in batch.rows}) == 1
    if batch.is_prefill:
      total = sum(row.num_tokens for row in batch.rows)
      assert total <= self._config.prefill_tokens
    inputs = [self._inputs(row) for row in batch.rows]
    written: set[tuple[int, int]] = set()
    for row, tokens in zip(batch.rows, inputs, strict=True):
      pages = self._write(row, tokens)
      assert not pages & written, "Two rows write a page."
      written |= pages
    return [
      self._read(row, tokens)
      for row, tokens in zip(batch.rows, inputs, strict=True)
    ]

  def _inputs(self, row: batch_lib.Row) -> list[int]:
    """Tokens that the row computes, after some checks."""
    slot = self.slots[row.slot]
    text = slot.text
    assert slot.request.id == row.request_id
    assert row.length == len(text)
    if self._config.recurrent:
      assert row.start in (0, slot.num_computed)
    if row.tokens:
      end = row.start + len(row.tokens)
      assert list(row.tokens) == text[row.start : end]
      assert row.samples == (end == len(text) and slot.request.max_tokens > 0)
      return list(row.tokens)
    assert row.start == len(text) - 1
    num = max(len(row.drafts), row.num_drafts)
    assert num <= self._config.num_drafts
    assert row.start + 1 + num < self._config.max_len
    if row.num_drafts:
      return [text[-1], *self._guess(slot, row)]
    return [text[-1], *row.drafts]

  def _guess(self, slot: Slot, row: batch_lib.Row) -> list[int]:
    text = list(slot.text)
    for _ in range(row.num_drafts):
      last = states(text, regime(self._config.turns, len(slot.text)))[-1]
      right = choose(
        last, slot.request, can_stop=_can_stop(slot.request, len(text))
      )
      wrong = self._random.randrange(VOCAB)
      text.append(right if self._random.random() < 0.7 else wrong)
    return text[len(slot.text) :]

  def _states(self, row: batch_lib.Row, tokens: Sequence[int]) -> list[int]:
    text = [*self.slots[row.slot].text[: row.start], *tokens]
    return states(text, regime(self._config.turns, row.length))

  def _write(
    self, row: batch_lib.Row, tokens: Sequence[int]
  ) -> set[tuple[int, int]]:
    size, pages = self._config.page_size, set()
    of_text = self._states(row, tokens)
    assert set(row.tables) == set(self._config.num_pages)
    for window, table in row.tables.items():
      for i in range(row.start, row.start + len(tokens)):
        page = table[i // size]
        assert page != batch_lib.NULL_PAGE
        assert page < self._config.num_pages[window]
        pages.add((window, page))
        state = State(of_text[i], self.step)
        self._pages[window, page, i % size] = state
    return pages

  def _check_seen(self, row: batch_lib.Row, of_text: Sequence[int]) -> None:
    """All that the row's tokens see is there."""
    size = self._config.page_size
    for window, table in row.tables.items():
      first = 0
      if window != batch_lib.NO_WINDOW:
        first = max(0, row.start - window + 1)
      for i in range(first, len(of_text)):
        assert table[i // size] != batch_lib.NULL_PAGE, (window, i)
        state = self._pages[window, table[i // size], i % size]
        assert state.text == of_text[i], (row.request_id, window, i)
        assert state.step >= self.slots[row.slot].step

  def _read(
    self, row: batch_lib.Row, tokens: Sequence[int]
  ) -> batch_lib.RowResult:
    slot = self.slots[row.slot]
    of_text = self._states(row, tokens)
    self._check_seen(row, of_text)
    slot.num_computed = row.start + len(tokens)
    of_row = of_text[row.start :]
    chosen = self._choose(row, tokens, of_row) if row.samples else []
    slot.text.extend(chosen)
    assert len(row.targets) in (0, len(tokens) - 1, len(tokens))
    return batch_lib.RowResult(
      tokens=tuple(chosen),
      prompt_logprobs=tuple(
        logprob(state, target)
        for state, target in zip(of_row, row.targets, strict=False)
      ),
      pooled=np.sum([hidden(s) for s in of_row], axis=0) if row.pools else None,
    )

  def _choose(
    self, row: batch_lib.Row, tokens: Sequence[int], of_row: Sequence[int]
  ) -> list[int]:
    """The row's next tokens: until a draft is wrong."""
    request = self.slots[row.slot].request
    assert (row.masks is not None) == (request.constraint is not None)
    if row.tokens:
      tokens, of_row = tokens[-1:], of_row[-1:]
    chosen = []
    for i, state in enumerate(of_row):
      mask = -1 if row.masks is None else int(row.masks[i, 0])
      can_stop = _can_stop(request, row.length + i)
      chosen.append(choose(state, request, can_stop=can_stop, mask=mask))
      if i + 1 == len(tokens) or chosen[-1] != tokens[i + 1]:
        break
    return chosen


def references(
  tables: Sequence[Mapping[int, Sequence[int]]],
) -> dict[tuple[int, int], int]:
  """How often each page of a window is in tables; the null page is in none."""
  counts: dict[tuple[int, int], int] = {}
  for table in tables:
    for window, pages in table.items():
      for page in pages:
        if page != batch_lib.NULL_PAGE:
          counts[window, page] = counts.get((window, page), 0) + 1
  return counts
