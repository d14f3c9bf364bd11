"""Which requests are computed in the next step: continuous batching.

A request waits (serve/waiting.py), then has a slot and pages: a stay
(serve/stays.py), in which its text is read and then continued, a step at a time
(serve/planner.py). The engine's loop:

  outputs = scheduler.expire(now)
  batch = scheduler.schedule(now)
  for admission in batch.admissions: tell the runner
  launch the step
  outputs = scheduler.update(batch of the step before, its results)

A step is scheduled before the tokens of the one before are known: they are
counted (a text's longest length is known in advance, and never overrun), but
one of them may turn out to be the last. The request's row in the next step is
then stale, and its result is dropped. What needs to know the tokens, a
constraint or guesses, is not scheduled before the update.

Pages and slots are free at once, also while steps under way use them: the
device computes steps in the order of their launch, so who gets a page writes it
after all who had it before. For the same reason a block can be found as soon as
the step that computes it is scheduled.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import heapq

from serve import batch as batch_lib
from serve import fairness
from serve import planner as planner_lib
from serve import request as request_lib
from serve import results as results_lib
from serve import scheduler_config
from serve import stays as stays_lib
from serve import task as task_lib
from serve import waiting

_Reason = request_lib.FinishReason


class QueueFullError(Exception):
  """Too much waits already.

  Attributes:
    retry_after: Seconds until it is worth asking again.
  """

  def __init__(self, message: str, retry_after: float):
    super().__init__(message)
    self.retry_after = retry_after


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
  """How things stand.

  Attributes:
    num_running: Requests with a slot.
    num_waiting: Requests without.
    num_waiting_tokens: Of their texts.
    pages_used: Share of the pages in use, of the window with most.
    num_prefix_queries: Prompt tokens that were looked for, ever.
    num_prefix_hits: Of them, found.
    num_preemptions: Stays that were ended for want of pages, ever.
  """

  num_running: int
  num_waiting: int
  num_waiting_tokens: int
  pages_used: float
  num_prefix_queries: int
  num_prefix_hits: int
  num_preemptions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flight:
  """A step under way; a stay and the parameters' step for its results."""

  batch: batch_lib.Batch
  stays: Sequence[task_lib.Stay]
  step: int


class Scheduler:
  """Of one runner. Not thread-safe: all of it is the engine thread's."""

  def __init__(
    self,
    config: scheduler_config.SchedulerConfig,
    *,
    step: int = 0,
    make_guesser: Callable[[], task_lib.Guesser] | None = None,
  ):
    """Begins with nothing to do.

    Args:
      config: Limits.
      step: Training step of the parameters.
      make_guesser: Guesses a text's next tokens, for each request; None with
        config.num_drafts: the runner's draft model does.
    """
    config.check()
    self._config = config
    self._make_guesser = make_guesser
    self._step = step
    self._served = fairness.Fairness()
    self._waiting = waiting.Waiting(self._served)
    self._pace = waiting.Pace()
    self._stays = stays_lib.Stays(config)
    self._planner = planner_lib.Planner(
      config,
      waiting=self._waiting,
      pace=self._pace,
      stays=self._stays,
      served=self._served,
    )
    self._tasks: dict[str, task_lib.Task] = {}
    self._num_tasks = 0
    self._flights: collections.deque[_Flight] = collections.deque()
    # With order and id; those of tasks that are over are passed by.
    self._deadlines: list[tuple[float, int, str]] = []
    # Endings that came about while a step was scheduled.
    self._failed: list[request_lib.Output] = []

  def add(self, request: request_lib.Request) -> None:
    """Queues a request.

    If max_tokens goes beyond the context, the text ends with it, by LENGTH:
    whether that is refused is for the API to say.

    Args:
      request: With an id that no other one has.

    Raises:
      QueueFullError: Too many requests, or tokens of prompts, wait already.
      ValueError: It can never be computed.
    """
    self._check_request(request)
    self._check_queue(request)
    task = self._make_task(request)
    self._num_tasks += 1
    self._tasks[request.id] = task
    self._waiting.add(task)
    if request.deadline is not None:
      heapq.heappush(
        self._deadlines, (request.deadline, task.order, request.id)
      )

  def abort(
    self,
    request_id: str,
    reason: _Reason = _Reason.ABORTED,
    *,
    error: str | None = None,
  ) -> request_lib.Output | None:
    """Ends a request now; results of steps under way are dropped.

    Args:
      request_id: Which.
      reason: STOP if a stop string was found.
      error: What went wrong.

    Returns:
      Its last output; None if it is not there any more.
    """
    task = self._tasks.get(request_id)
    return None if task is None else self._end(task, reason, error)

  def expire(self, now: float) -> list[request_lib.Output]:
    """Ends requests past their deadlines.

    To be called before `schedule`; also tells which requests failed in it.
    """
    outputs, self._failed = self._failed, []
    while self._deadlines and self._deadlines[0][0] <= now:
      _, order, request_id = heapq.heappop(self._deadlines)
      task = self._tasks.get(request_id)
      if task is not None and task.order == order:
        outputs.append(self._end(task, _Reason.DEADLINE))
    return outputs

  def schedule(self, now: float) -> batch_lib.Batch | None:
    """What to compute next; the caller launches it, or else calls `fail`.

    Args:
      now: On time.monotonic's clock.

    Returns:
      A step; None if there is nothing to do before an update or, with no step
      under way, before `expire` or `add`.
    """
    plan = self._planner.plan(now)
    for task, error in self._planner.failed:
      self._failed.append(self._end(task, _Reason.ERROR, error))
    self._planner.failed.clear()
    if plan is None:
      return None
    batch = batch_lib.Batch(rows=plan.rows, admissions=plan.admissions)
    self._flights.append(
      _Flight(batch=batch, stays=plan.stays, step=self._step)
    )
    return batch

  def update(
    self, batch: batch_lib.Batch, results: Sequence[batch_lib.RowResult]
  ) -> list[request_lib.Output]:
    """Takes in what a step has chosen.

    Args:
      batch: Of `schedule`; all in their order, each once.
      results: Of its rows.

    Returns:
      What is new, of requests that are not over.
    """
    flight = self._flights.popleft()
    assert flight.batch is batch
    outputs = []
    for stay, row, result in zip(
      flight.stays, batch.rows, results, strict=True
    ):
      if not stay.is_over:
        output = self._take(stay, row, result, flight.step)
        if output is not None:
          outputs.append(output)
    return outputs

  def swap(self, step: int) -> None:
    """The next step is computed with other parameters.

    Requests that run go on from what they have; others find nothing of it.

    Args:
      step: Training step of the parameters.
    """
    self._step = step
    self._stays.forget_all()

  def fail(self, error: str) -> list[request_lib.Output]:
    """Ends everything: a step was not launched, or not computed."""
    self._flights.clear()
    self._planner.forget()
    outputs, self._failed = self._failed, []
    for task in list(self._tasks.values()):
      outputs.append(self._end(task, _Reason.ERROR, error))
    self._stays.forget_all()
    return outputs

  @property
  def needs_feedback(self) -> bool:
    """Whether somebody cannot go on before an update."""
    return any(
      stay.num_unknown and self._planner.is_fed_back(stay)
      for stay in self._stays
    )

  @property
  def has_work(self) -> bool:
    """Whether a request is not over, or its end not told."""
    return bool(self._tasks or self._failed)

  @property
  def next_deadline(self) -> float | None:
    """Before this, `expire` ends nothing."""
    return self._deadlines[0][0] if self._deadlines else None

  def figures(self) -> Figures:
    """For metrics."""
    return Figures(
      num_running=len(self._stays),
      num_waiting=len(self._waiting),
      num_waiting_tokens=self._waiting.num_tokens,
      pages_used=self._stays.pages_used,
      num_prefix_queries=self._planner.num_prefix_queries,
      num_prefix_hits=self._planner.num_prefix_hits,
      num_preemptions=self._planner.num_preemptions,
    )

  def _check_request(self, request: request_lib.Request) -> None:
    num, most = len(request.prompt), self._config.max_len
    if request.id in self._tasks:
      raise ValueError(f"id={request.id!r} is that of another request.")
    if not num:
      raise ValueError("prompt is empty: at least one token is needed.")
    if num + min(request.max_tokens, 1) > most:
      raise ValueError(
        f"prompt has {num} tokens; with its continuation a text may have "
        f"max_len={most}: shorten it."
      )

  def _check_queue(self, request: request_lib.Request) -> None:
    num = len(self._waiting)
    tokens = self._waiting.num_tokens + len(request.prompt)
    # Whoever comes when nobody waits is never refused.
    most = self._config.max_queued_requests + self._stays.num_slots
    if num >= most or (num and tokens > self._config.max_queued_tokens):
      raise QueueFullError(
        f"{num} requests with {self._waiting.num_tokens} tokens wait already.",
        self._pace.seconds(num),
      )

  def _make_task(self, request: request_lib.Request) -> task_lib.Task:
    # Of the prompt's tokens something is wanted: all must be computed.
    wants_all = request.num_prompt_logprobs is not None or request.pools
    can_find = self._config.can_find and not wants_all
    return task_lib.Task(
      request=request,
      order=self._num_tasks,
      tokens=list(request.prompt),
      max_len=min(
        len(request.prompt) + request.max_tokens, self._config.max_len
      ),
      can_find=can_find,
      leader=self._tasks.get(request.leader or "") if can_find else None,
      guesser=self._make_guesser() if self._make_guesser else None,
    )

  def _take(
    self,
    stay: task_lib.Stay,
    row: batch_lib.Row,
    result: batch_lib.RowResult,
    step: int,
  ) -> request_lib.Output | None:
    """Takes in what came of a row."""
    task = stay.task
    try:
      output = results_lib.take(stay, row, result, step)
    except ValueError as error:
      if not result.is_finite:
        self._stays.forget(stay)
      return self._end(task, _Reason.ERROR, str(error))
    if output is None:
      return None
    user = task.request.user
    self._served.charge(user, fairness.OUTPUT_TOKEN * len(output.tokens))
    self._stays.name_blocks(stay)
    if output.finish is not None:
      self._remove(task)
    return output

  def _end(
    self, task: task_lib.Task, reason: _Reason, error: str | None = None
  ) -> request_lib.Output:
    """Ends a request, with nothing more to tell."""
    self._remove(task)
    return request_lib.Output(
      request_id=task.request.id,
      num_cached=task.num_cached or 0,
      finish=reason,
      error=error,
      step=self._step,
    )

  def _remove(self, task: task_lib.Task) -> None:
    task.is_over = True
    task.leader = None
    del self._tasks[task.request.id]
    if task.stay is None:
      self._waiting.remove(task)
    else:
      self._stays.close(task.stay)
