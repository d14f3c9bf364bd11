"""The engine: one thread that computes what many have asked for.

Each turn plans a step, launches it, and only then takes in what came of the
step before it: the device works while the host thinks. A request that turns out
to have ended has one stale row in the step that was already launched; what
comes of it is dropped. Where the plan depends on what was chosen (a grammar,
guesses found in the text) the older step is taken in first.

Nothing here knows JAX: a runner computes, a scheduler decides, this connects
them with whoever asks, from any thread.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import logging
import threading
import time
from typing import Any, Protocol

from serve import batch as batch_lib
from serve import guard
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import stats as stats_lib

_LOG = logging.getLogger(__name__)

_SHUT_DOWN = "the server is shutting down"


class UnavailableError(Exception):
  """The engine takes no more requests: it drains, has stopped or is dead."""


class Handle(Protocol):
  """A step that was launched."""

  def result(self) -> Sequence[batch_lib.RowResult]:
    """Waits for it; one result per row, in order."""
    ...


class Runner(Protocol):
  """What the engine asks of whoever computes."""

  def admit(
    self, slot: int, request: request_lib.Request, tokens: Sequence[int]
  ) -> None:
    """A request takes a slot, with the text that it has so far."""
    ...

  def run(self, batch: batch_lib.Batch) -> Handle:
    """Launches a step and does not wait for it."""
    ...

  def prepare_params(self, params: Any) -> Any:
    """What `set_params` takes of other parameters; on any thread, meanwhile."""
    ...

  def set_params(self, prepared: Any) -> None:
    """Other parameters, from the next step on; at once."""
    ...


OnOutput = Callable[[request_lib.Output], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
  """A step under way.

  Attributes:
    batch: What is computed.
    handle: What comes of it.
    launched: When.
  """

  batch: batch_lib.Batch
  handle: Handle
  launched: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Swap:
  """Parameters that are prepared and wait to be used."""

  prepared: Any
  step: int
  future: concurrent.futures.Future[None]


class Engine:
  """See the module. Every method may be called from any thread."""

  def __init__(
    self,
    runner: Runner,
    scheduler: scheduler_lib.Scheduler,
    *,
    step: int = 0,
    stall_seconds: float = 60.0,
    on_death: Callable[[BaseException], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Nothing runs before `start`; requests may be submitted already.

    Args:
      runner: Computes; after `start`, on the engine's thread only, but for
        `prepare_params`.
      scheduler: Decides; from now on nobody else's.
      step: The training step of the runner's parameters.
      stall_seconds: No progress for so long, with requests, is a stall.
      on_death: Called on the engine's thread after an error that no request
        explains, when all have been told. It should end the process.
      clock: Time as time.monotonic tells it.
    """
    self._runner = runner
    self._scheduler = scheduler
    self._stall_seconds = stall_seconds
    self._on_death = on_death
    self._clock = clock
    self._thread = threading.Thread(
      target=self._main, name="engine", daemon=True
    )
    # Of parameters.
    self._preparing = threading.Lock()
    # Guards the scheduler and what follows. Nobody holds it while a step is
    # waited for, or while somebody is called back.
    self._changed = threading.Condition()
    self._phase = stats_lib.Phase.STARTING
    self._is_stopping = False
    self._is_called = False
    self._is_delivering = False
    self._listeners: dict[str, OnOutput] = {}
    self._news: list[request_lib.Output] = []
    self._swaps: list[_Swap] = []
    self._step = step
    self._last_progress = clock()
    self._counts = stats_lib.Counts()
    # The thread's own.
    self._in_flight: _Step | None = None
    self._last_result = clock()

  def start(self) -> None:
    """Starts the thread."""
    with self._changed:
      if self._phase is stats_lib.Phase.STARTING:
        self._phase = stats_lib.Phase.SERVING
    self._thread.start()

  def submit(self, request: request_lib.Request, on_output: OnOutput) -> None:
    """Queues a request.

    Args:
      request: Its id is that of no other unfinished request.
      on_output: Gets its outputs, on the engine's thread, the last with a
        finish reason: it must hand them on and return. If it raises, the
        request is aborted and nothing more comes.

    Raises:
      ValueError: The request cannot be served as it is.
      scheduler.QueueFullError: Too much waits.
      UnavailableError: The engine drains, has stopped or is dead.
    """
    if request.constraint is not None:
      constraint = guard.Constraint(request.constraint)
      request = dataclasses.replace(request, constraint=constraint)
    with self._changed:
      if self._phase not in (stats_lib.Phase.STARTING, stats_lib.Phase.SERVING):
        raise UnavailableError(
          f"the engine takes no requests: {self._phase.value}"
        )
      if request.id in self._listeners:
        raise ValueError(
          f"id is {request.id!r}, as of a request that is not finished; give "
          "every request its own"
        )
      self._scheduler.add(request)
      if not self._listeners:
        self._last_progress = self._clock()
      self._listeners[request.id] = on_output
      self._call()

  def abort(
    self,
    request_id: str,
    reason: request_lib.FinishReason = request_lib.FinishReason.ABORTED,
  ) -> None:
    """Ends a request, if it has not ended: one more output says so.

    Its slot and pages are free at once.

    Args:
      request_id: Which.
      reason: STOP if its text holds a stop string.
    """
    with self._changed:
      self._abort(request_id, reason)

  def swap(self, params: Any, *, step: int) -> concurrent.futures.Future[None]:
    """Other parameters between two steps; texts go on where they are.

    They are prepared here, on the caller's thread, while steps are computed
    with the others: until these are let go, both are in memory.

    Args:
      params: As the runner was made with.
      step: Their training step.

    Returns:
      Done when they are in use, with the error if they cannot be.
    """
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    # One after the other: they are used in this order.
    with self._preparing:
      self._check_takes_params()
      try:
        prepared = self._runner.prepare_params(params)
      except Exception as error:
        future.set_exception(error)
        return future
      with self._changed:
        self._check_takes_params()
        swap = _Swap(prepared=prepared, step=step, future=future)
        self._swaps.append(swap)
        self._call()
    return future

  def drain(self, deadline: float) -> bool:
    """Takes no more requests, and waits for those that there are.

    Args:
      deadline: On the engine's clock. What is left then ends with ERROR.

    Returns:
      Whether all ended by themselves.
    """
    with self._changed:
      if self._phase in (stats_lib.Phase.STARTING, stats_lib.Phase.SERVING):
        self._phase = stats_lib.Phase.DRAINING
      is_drained = self._changed.wait_for(
        lambda: not (self._listeners or self._is_delivering),
        max(0.0, deadline - self._clock()),
      )
      for request_id in [*self._listeners]:
        self._abort(
          request_id, request_lib.FinishReason.ERROR, error=_SHUT_DOWN
        )
    return is_drained

  def stop(self, timeout: float | None = None) -> bool:
    """Ends the thread; what is left ends with ERROR.

    Args:
      timeout: Seconds to wait for the step under way; None: as long as it
        takes.

    Returns:
      Whether the thread has ended.
    """
    with self._changed:
      self._is_stopping = True
      was_started = self._thread.ident is not None
      self._call()
    if not was_started:
      self._close(stats_lib.Phase.STOPPED, _SHUT_DOWN)
    elif threading.current_thread() is not self._thread:
      self._thread.join(timeout)
    return not self._thread.is_alive()

  def stats(self) -> stats_lib.Stats:
    """A snapshot."""
    with self._changed:
      figures = self._scheduler.figures()
      return stats_lib.Stats(
        phase=self._phase,
        is_alive=self._thread.is_alive(),
        step=self._step,
        last_progress=self._last_progress,
        num_running=figures.num_running,
        num_waiting=figures.num_waiting,
        num_waiting_tokens=figures.num_waiting_tokens,
        pages_used=figures.pages_used,
        prefix_queries=figures.num_prefix_queries,
        prefix_hits=figures.num_prefix_hits,
        num_preemptions=figures.num_preemptions,
        **self._counts.fields(),
      )

  def is_stalled(self, now: float) -> bool:
    """Whether there are requests, but no progress for too long.

    Takes no lock: it answers whatever the engine is stuck in.

    Args:
      now: On the engine's clock.
    """
    too_long = now - self._last_progress > self._stall_seconds
    return bool(self._listeners) and too_long

  @property
  def num_requests(self) -> int:
    """Those that are not finished; takes no lock."""
    return len(self._listeners)

  def _check_takes_params(self) -> None:
    if self._phase in (stats_lib.Phase.STOPPED, stats_lib.Phase.DEAD):
      raise UnavailableError(f"the engine takes no params: {self._phase.value}")

  def _main(self) -> None:
    self._last_result = self._clock()
    try:
      while self._wait_for_work():
        self._turn()
    except BaseException as error:
      _LOG.exception("the engine died")
      message = f"the engine died: {type(error).__name__}: {error}"
      self._close(stats_lib.Phase.DEAD, message)
      if self._on_death is not None:
        self._on_death(error)
    else:
      self._close(stats_lib.Phase.STOPPED, _SHUT_DOWN)

  def _wait_for_work(self) -> bool:
    """Sleeps while there is nothing to do; false: to stop."""
    with self._changed:
      if not self._is_called:
        began = self._clock()
        deadline = self._scheduler.next_deadline
        self._changed.wait_for(
          lambda: self._is_called,
          None if deadline is None else max(0.0, deadline - began),
        )
        now = self._clock()
        self._counts.add("idle_time", now - began)
        # Until now nothing could have been computed.
        self._last_result = now
      return not self._is_stopping

  def _turn(self) -> None:
    """Launches a step, then takes in the one before it."""
    if self._in_flight is not None and self._scheduler.needs_feedback:
      self._take_in(self._in_flight)
      self._in_flight = None
    self._use_swaps()
    launched = self._launch()
    self._deliver()
    if self._in_flight is not None:
      self._take_in(self._in_flight)
    self._in_flight = launched
    self._deliver()

  def _use_swaps(self) -> None:
    with self._changed:
      swaps, self._swaps = self._swaps, []
    for swap in swaps:
      try:
        self._runner.set_params(swap.prepared)
      except Exception as error:
        swap.future.set_exception(error)
        continue
      with self._changed:
        self._scheduler.swap(swap.step)
        self._step = swap.step
      swap.future.set_result(None)

  def _launch(self) -> _Step | None:
    """Plans a step and starts it; None if there is nothing to compute."""
    began = self._clock()
    with self._changed:
      self._news += self._scheduler.expire(began)
      batch = self._scheduler.schedule(began)
      # Those that failed while it was planned.
      self._news += self._scheduler.expire(began)
      # With nothing under way, only a call from outside can change that.
      self._is_called = batch is not None or self._in_flight is not None
      if self._swaps or self._news or self._is_stopping:
        self._is_called = True
      planned = self._clock()
      self._counts.add("plan_time", planned - began)
    if batch is None:
      return None
    for admission in batch.admissions:
      request = admission.request
      try:
        self._runner.admit(admission.slot, request, admission.tokens)
      except Exception as error:
        # Its row is computed all the same, and dropped.
        _LOG.exception("request %s cannot be admitted", request.id)
        reason = request_lib.FinishReason.ERROR
        with self._changed:
          self._abort(request.id, reason, error=str(error))
    handle = self._runner.run(batch)
    now = self._clock()
    with self._changed:
      self._counts.add("launch_time", now - planned)
      if self._in_flight is None:
        self._counts.add("device_idle_time", now - self._last_result)
    return _Step(batch=batch, handle=handle, launched=now)

  def _take_in(self, step: _Step) -> None:
    """Waits for a step and tells the scheduler what came of it."""
    began = self._clock()
    results = step.handle.result()
    done = self._clock()
    with self._changed:
      self._news += self._scheduler.update(step.batch, results)
      self._last_progress = done
      self._counts.add_step(
        step.batch,
        results,
        started=max(step.launched, self._last_result),
        asked=began,
        done=done,
      )
      self._counts.add("update_time", self._clock() - done)
    self._last_result = done

  def _deliver(self) -> None:
    """Hands out what is new."""
    with self._changed:
      began = self._clock()
      news, self._news = self._news, []
      calls = [(self._listener(output), output) for output in news]
      self._is_delivering = bool(calls)
    if not calls:
      return
    failed = set()
    for listener, output in calls:
      if listener is None or output.request_id in failed:
        continue
      try:
        listener(output)
      except Exception:
        _LOG.exception("whoever asked for %s failed", output.request_id)
        failed.add(output.request_id)
    with self._changed:
      for request_id in failed:
        self._scheduler.abort(request_id)
        if self._listeners.pop(request_id, None) is not None:
          self._counts.add_finished(request_lib.FinishReason.ABORTED)
      self._is_delivering = False
      if not self._listeners:
        self._changed.notify_all()
      self._counts.add("update_time", self._clock() - began)

  def _listener(self, output: request_lib.Output) -> OnOutput | None:
    """Whoever is to get it, and counts it; after the last the id is free."""
    if output.finish is None:
      listener = self._listeners.get(output.request_id)
    else:
      listener = self._listeners.pop(output.request_id, None)
      if listener is not None:
        self._counts.add_finished(output.finish)
    if listener is not None:
      self._counts.add("num_output_tokens", len(output.tokens))
    return listener

  def _abort(
    self,
    request_id: str,
    reason: request_lib.FinishReason = request_lib.FinishReason.ABORTED,
    *,
    error: str | None = None,
  ) -> None:
    output = self._scheduler.abort(request_id, reason, error=error)
    if output is not None:
      self._news.append(output)
      self._call()

  def _call(self) -> None:
    """Wakes the thread."""
    self._is_called = True
    self._changed.notify_all()

  def _close(self, phase: stats_lib.Phase, error: str) -> None:
    """Ends whatever there is, without asking the scheduler, who may be why."""
    with self._changed:
      self._phase = phase
      swaps, self._swaps = self._swaps, []
      ended = {output.request_id for output in self._news if output.finish}
      self._news += [
        request_lib.Output(
          request_id=request_id,
          finish=request_lib.FinishReason.ERROR,
          error=error,
          step=self._step,
        )
        for request_id in self._listeners
        if request_id not in ended
      ]
    for swap in swaps:
      swap.future.set_exception(UnavailableError(error))
    self._deliver()
