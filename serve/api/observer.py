"""Stands between handlers and engine, engine and runner, and watches.

Handlers submit to it as to the engine. It says on whose behalf, sees to the
deadline that the server sets, and keeps what the figures and the log tell.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any, Protocol

from serve import batch as batch_lib
from serve import engine as engine_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import stats as stats_lib
from serve.api import metrics as metrics_lib
from serve.api import trace as trace_lib

_SERVED = (request_lib.FinishReason.STOP, request_lib.FinishReason.LENGTH)


class Engine(Protocol):
  """What handlers ask of an engine."""

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None: ...

  def abort(self, request_id: str) -> None: ...

  def stats(self) -> stats_lib.Stats: ...


class Runner:
  """A runner, watched: when requests are admitted, and what a step computes."""

  def __init__(
    self,
    runner: engine_lib.Runner,
    requests: metrics_lib.Requests,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Watches a runner.

    Args:
      runner: Computes.
      requests: What is counted.
      clock: Time as time.monotonic tells it.
    """
    self._runner = runner
    self._requests = requests
    self._clock = clock
    self._admitted: dict[str, float] = {}

  def admit(
    self, slot: int, request: request_lib.Request, tokens: Sequence[int]
  ) -> None:
    """As Runner.admit."""
    self._admitted.setdefault(request.id, self._clock())
    self._runner.admit(slot, request, tokens)

  def run(self, batch: batch_lib.Batch) -> engine_lib.Handle:
    """As Runner.run."""
    self._requests.step_tokens.observe(sum(r.num_tokens for r in batch.rows))
    drafted = sum(bool(r.drafts or r.num_drafts) for r in batch.rows)
    if drafted:
      self._requests.drafts.inc(drafted)
    return self._runner.run(batch)

  def prepare_params(self, params: Any) -> Any:
    """As Runner.prepare_params."""
    return self._runner.prepare_params(params)

  def set_params(self, prepared: Any) -> None:
    """As Runner.set_params."""
    self._runner.set_params(prepared)

  def take_admission(self, request_id: str) -> float | None:
    """When a request was admitted, once."""
    return self._admitted.pop(request_id, None)


class Observer:
  """The engine, watched; its methods may be called from any thread."""

  def __init__(
    self,
    engine: Engine,
    requests: metrics_lib.Requests,
    *,
    runners: Sequence[Runner],
    max_seconds: float,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Watches an engine.

    Args:
      engine: Schedules.
      requests: What is counted.
      runners: Of the engine.
      max_seconds: From a request's arrival to its end.
      clock: The engine's.
    """
    self._engine = engine
    self._requests = requests
    self._runners = runners
    self._max_seconds = max_seconds
    self._clock = clock

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    """As Engine.submit; whose it is, the current call knows."""
    call = trace_lib.current()
    now = self._clock()
    latest = (now if call is None else call.arrived) + self._max_seconds
    deadline = latest if request.deadline is None else request.deadline
    trace = trace_lib.Trace(
      arrived=now,
      num_prompt=len(request.prompt),
      is_follower=request.leader is not None,
    )
    request = dataclasses.replace(
      request,
      # A key's holder may not pass for many.
      user=(call.user if call is not None else "") or request.user,
      deadline=min(deadline, latest),
    )

    def observed(output: request_lib.Output) -> None:
      self._watch(request, trace, output)
      on_output(output)

    try:
      self._engine.submit(request, observed)
    except scheduler_lib.QueueFullError:
      self._requests.rejections.inc()
      raise
    if call is not None:
      call.traces.append(trace)

  def abort(self, request_id: str) -> None:
    """As Engine.abort."""
    self._engine.abort(request_id)

  def stats(self) -> stats_lib.Stats:
    """As Engine.stats."""
    return self._engine.stats()

  def _watch(
    self,
    request: request_lib.Request,
    trace: trace_lib.Trace,
    output: request_lib.Output,
  ) -> None:
    now = self._clock()
    counts = self._requests
    if trace.admitted is None and (output.tokens or output.finish is not None):
      trace.admitted = self._take_admission(request.id)
    if output.tokens:
      if trace.first is None:
        trace.first = now
        trace.num_cached = output.num_cached
        counts.prompt_tokens.inc(trace.num_prompt)
        counts.time_to_first.observe(now - trace.arrived)
      elif trace.last is not None:
        counts.inter_token.observe(now - trace.last)
      trace.last = now
      trace.num_generated += len(output.tokens)
    if output.finish is not None:
      trace.finish = output.finish
      # Again, if it was admitted again.
      self._take_admission(request.id)
      if output.finish in _SERVED:
        self._count(request, trace, now)

  def _take_admission(self, request_id: str) -> float | None:
    times = [runner.take_admission(request_id) for runner in self._runners]
    return next((found for found in times if found is not None), None)

  def _count(
    self, request: request_lib.Request, trace: trace_lib.Trace, now: float
  ) -> None:
    """A request has got what it asked for."""
    counts = self._requests
    admitted = trace.arrived if trace.admitted is None else trace.admitted
    first = now if trace.first is None else trace.first
    counts.whole.observe(now - trace.arrived)
    counts.queue.observe(admitted - trace.arrived)
    counts.inference.observe(now - admitted)
    counts.prefill.observe(first - admitted)
    counts.decode.observe(now - first)
    if trace.num_generated > 1:
      counts.per_token.observe((now - first) / (trace.num_generated - 1))
    counts.prompt_len.observe(trace.num_prompt)
    counts.generation_len.observe(trace.num_generated)
    counts.max_tokens.observe(request.max_tokens)
