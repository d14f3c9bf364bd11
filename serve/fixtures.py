"""Fakes for the tests of this package: a runner without a model."""

from collections.abc import Callable, Sequence
import dataclasses
import threading
from typing import Any

import numpy as np

from serve import batch as batch_lib
from serve import request as request_lib

VOCAB_SIZE = 97


def next_token(text: Sequence[int], params: int = 0) -> int:
  """What the fake model says after a text; every token and place counts."""
  state = len(text)
  for token in text:
    state = (state * 33 + token + 1) % 65_537
  return (state + params) % VOCAB_SIZE


def continuation(prompt: Sequence[int], num: int, params: int = 0) -> list[int]:
  """What the fake model says after a prompt, `num` tokens of it."""
  text = list(prompt)
  for _ in range(num):
    text.append(next_token(text, params))
  return text[len(prompt) :]


class FakeRunner:
  """Computes the fake model from what it finds in the pages, as a device would.

  Pages hold tokens, so a text whose pages are mixed up, shared wrongly or given
  away too early goes on wrongly.

  Attributes:
    events: What was called, in order: `run 3`, `result 3`, `admit a`, ...
    gate: If set, a result waits until somebody releases it.
    is_blocked: Whether one does.
    before_run: Called with every batch; may raise.
    before_result: Likewise, with the number of the step.
    before_admit: Likewise, with the request.
    before_prepare: Likewise, with parameters.
    not_finite: Ids of requests whose results are not finite.
    params: The fake model's parameter.
  """

  def __init__(self, *, page_size: int = 4, windows: Sequence[int] = (0,)):
    self.events: list[str] = []
    self.gate: threading.Semaphore | None = None
    self.is_blocked = threading.Event()
    self.before_run: Callable[[batch_lib.Batch], None] = lambda batch: None
    self.before_result: Callable[[int], None] = lambda index: None
    self.before_admit: Callable[[request_lib.Request], None] = lambda r: None
    self.before_prepare: Callable[[Any], None] = lambda params: None
    self.not_finite: set[str] = set()
    self.params = 0
    self._page_size = page_size
    self._windows = windows
    # What was chosen last in each slot.
    self._last: dict[int, int] = {}
    self._pages: dict[tuple[int, int], list[int]] = {}
    self._num_steps = 0

  def admit(
    self, slot: int, request: request_lib.Request, tokens: Sequence[int]
  ) -> None:
    """A request takes a slot."""
    self.events.append(f"admit {request.id}")
    self.before_admit(request)
    del tokens
    self._last.pop(slot, None)

  def prepare_params(self, params: Any) -> dict[str, int]:
    """Another parameter, for `set_params`."""
    self.before_prepare(params)
    if not isinstance(params, int):
      raise TypeError(f"params is {params!r}, not a number")
    return {"prepared": params}

  def set_params(self, prepared: dict[str, int]) -> None:
    """Uses what was prepared."""
    self.params = prepared["prepared"]
    self.events.append(f"params {self.params}")

  def run(self, batch: batch_lib.Batch) -> "FakeHandle":
    """Computes at once, and tells later."""
    self.before_run(batch)
    index = self._num_steps
    self._num_steps += 1
    self.events.append(f"run {index}")
    return FakeHandle(
      runner=self, index=index, results=[self._row(row) for row in batch.rows]
    )

  def _row(self, row: batch_lib.Row) -> batch_lib.RowResult:
    assert row.tokens or row.slot in self._last, "nothing was chosen before"
    tokens = list(row.tokens) or [self._last[row.slot]]
    text = [*self._read(row), *tokens]
    guesses = list(row.drafts)
    if row.num_drafts:
      guesses = continuation(text, row.num_drafts, self.params)
      # Half of them are wrong.
      if len(text) % 2:
        guesses[-1] = (guesses[-1] + 1) % VOCAB_SIZE
    self._write(row, [*tokens, *guesses])
    if not row.samples:
      return batch_lib.RowResult(**self._prompt(row))
    chosen: list[int] = []
    masks = row.masks
    for guess in [*guesses, None]:
      token = next_token(text, self.params)
      if masks is not None:
        token = _allowed(masks[len(chosen)], token)
      chosen.append(token)
      text.append(token)
      if token != guess:
        break
    self._last[row.slot] = chosen[-1]
    if row.request_id in self.not_finite:
      return batch_lib.RowResult(tokens=(0,), is_finite=False)
    return batch_lib.RowResult(tokens=tuple(chosen), **self._prompt(row))

  def _prompt(self, row: batch_lib.Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if row.targets:
      found["prompt_logprobs"] = tuple(
        request_lib.TokenLogprobs(logprob=-float(t), rank=1)
        for t in row.targets
      )
    if row.pools:
      found["pooled"] = np.full([2], float(sum(row.tokens)), np.float32)
    return found

  def _read(self, row: batch_lib.Row) -> list[int]:
    """The text before the row, from each kind's pages, as far as they go."""
    text = [-1] * row.start
    for window in self._windows:
      first = max(0, row.start + 1 - window) if window else 0
      for place in range(first, row.start):
        page, offset = self._place(row, window, place)
        token = self._pages[window, page][offset]
        assert text[place] in (-1, token), "pages of two kinds differ"
        text[place] = token
    return text

  def _write(self, row: batch_lib.Row, tokens: Sequence[int]) -> None:
    for window in self._windows:
      for place, token in enumerate(tokens, start=row.start):
        page, offset = self._place(row, window, place)
        assert page != batch_lib.NULL_PAGE, "a token is written to no page"
        tokens_of_page = self._pages.setdefault(
          (window, page), [-1] * self._page_size
        )
        tokens_of_page[offset] = token

  def _place(
    self, row: batch_lib.Row, window: int, place: int
  ) -> tuple[int, int]:
    block, offset = divmod(place, self._page_size)
    return row.tables[window][block], offset


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeHandle:
  """A step of the fake runner."""

  runner: FakeRunner
  index: int
  results: list[batch_lib.RowResult]

  def result(self) -> list[batch_lib.RowResult]:
    """Waits for the gate."""
    gate, is_blocked = self.runner.gate, self.runner.is_blocked
    if gate is not None and not gate.acquire(blocking=False):
      is_blocked.set()
      assert gate.acquire(timeout=30), "nobody opened the gate"
      is_blocked.clear()
    self.runner.events.append(f"result {self.index}")
    self.runner.before_result(self.index)
    return self.results


def _allowed(mask: np.ndarray, token: int) -> int:
  """The first allowed token from `token` on."""
  for other in range(token, token + VOCAB_SIZE):
    place = other % VOCAB_SIZE
    if int(mask[place // 32]) >> (place % 32) & 1:
      return place
  raise AssertionError("nothing is allowed")


class Listener:
  """Collects the outputs of requests.

  Attributes:
    outputs: By request, in order.
  """

  def __init__(self):
    self.outputs: dict[str, list[request_lib.Output]] = {}
    self._changed = threading.Condition()

  def __call__(self, output: request_lib.Output) -> None:
    """To be given to `submit`."""
    with self._changed:
      self.outputs.setdefault(output.request_id, []).append(output)
      self._changed.notify_all()

  def tokens(self, request_id: str) -> list[int]:
    """What has come so far."""
    outputs = self.outputs.get(request_id, [])
    return [token for output in outputs for token in output.tokens]

  def finish(self, request_id: str) -> request_lib.FinishReason | None:
    """Why nothing more comes, if so."""
    outputs = self.outputs.get(request_id, [])
    return outputs[-1].finish if outputs else None

  def error(self, request_id: str) -> str:
    """What went wrong; empty: nothing."""
    outputs = self.outputs.get(request_id, [])
    return (outputs[-1].error or "") if outputs else ""

  def wait(self, *request_ids: str, timeout: float = 60) -> None:
    """Until they have ended."""
    self.wait_for(lambda: all(map(self.finish, request_ids)), timeout=timeout)

  def wait_for(
    self, is_true: Callable[[], bool], *, timeout: float = 60
  ) -> None:
    """Until something is so that only an output can bring about."""
    with self._changed:
      assert self._changed.wait_for(is_true, timeout), "waited in vain"
