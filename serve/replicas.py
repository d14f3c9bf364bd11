"""Several engines as one: data parallelism without a common step.

Each has the model, a cache and a queue of its own. A request goes to where
least is to be done, but one that begins like an earlier one goes where that
one's pages are, as long as that is not much busier.
"""

import collections
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import threading
from typing import Any

from serve import engine as engine_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import stats as stats_lib

# Beginnings of texts that are remembered.
_NUM_PREFIXES = 4096
# What each phase means for all: the first of these that one is in.
_PHASES = (
  stats_lib.Phase.DEAD,
  stats_lib.Phase.STOPPED,
  stats_lib.Phase.STARTING,
  stats_lib.Phase.DRAINING,
  stats_lib.Phase.SERVING,
)


class Replicas:
  """What an engine is, with several inside."""

  def __init__(
    self,
    engines: Sequence[engine_lib.Engine],
    *,
    prefix_tokens: int = 64,
    slack: int = 4,
  ):
    """Takes the engines over.

    Args:
      engines: At least one; their models are the same.
      prefix_tokens: Texts begin alike if they agree on so many tokens.
      slack: How many more requests an engine may have than the one with the
        fewest and still get what begins like its earlier ones.
    """
    self.engines = tuple(engines)
    self._prefix_tokens = prefix_tokens
    self._slack = slack
    self._lock = threading.Lock()
    self._places: dict[str, engine_lib.Engine] = {}
    self._prefixes: collections.OrderedDict[
      tuple[int, ...], engine_lib.Engine
    ] = collections.OrderedDict()

  def start(self) -> None:
    """Starts all."""
    for engine in self.engines:
      engine.start()

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    """As `Engine.submit`, to the engine that suits it best."""
    with self._lock:
      if request.id in self._places:
        raise ValueError(
          f"id is {request.id!r}, as of a request that is not finished; give "
          "every request its own"
        )
      choices = self._order(request)
      self._places[request.id] = choices[0]

    def listen(output: request_lib.Output) -> None:
      if output.finish is not None:
        self._forget(request.id)
      on_output(output)

    refused: Exception | None = None
    for engine in choices:
      with self._lock:
        self._places[request.id] = engine
      try:
        engine.submit(request, listen)
      except (scheduler_lib.QueueFullError, engine_lib.UnavailableError) as e:
        # The emptiest's word counts: it has the shortest wait.
        refused = refused or e
      except BaseException:
        self._forget(request.id)
        raise
      else:
        self._remember(request, engine)
        return
    self._forget(request.id)
    assert refused is not None
    raise refused

  def abort(
    self,
    request_id: str,
    reason: request_lib.FinishReason = request_lib.FinishReason.ABORTED,
  ) -> None:
    """As `Engine.abort`."""
    with self._lock:
      engine = self._places.get(request_id)
    if engine is not None:
      engine.abort(request_id, reason)

  def swap(
    self, params: Sequence[Any], *, step: int
  ) -> concurrent.futures.Future[None]:
    """As `Engine.swap`; done when all have done it.

    Args:
      params: Of each engine, on its own devices.
      step: Their training step.
    """
    both = zip(self.engines, params, strict=True)
    return _join([engine.swap(own, step=step) for engine, own in both])

  def drain(self, deadline: float) -> bool:
    """As `Engine.drain`, all at once."""
    with concurrent.futures.ThreadPoolExecutor(len(self.engines)) as pool:
      drained = pool.map(lambda engine: engine.drain(deadline), self.engines)
      return all(drained)

  def stop(self, timeout: float | None = None) -> bool:
    """As `Engine.stop`, all at once."""
    with concurrent.futures.ThreadPoolExecutor(len(self.engines)) as pool:
      stopped = pool.map(lambda engine: engine.stop(timeout), self.engines)
      return all(stopped)

  def stats(self) -> stats_lib.Stats:
    """Sums; means where a sum says nothing; the oldest of steps and times."""
    return merge([engine.stats() for engine in self.engines])

  def is_stalled(self, now: float) -> bool:
    """Whether one of them is."""
    return any(engine.is_stalled(now) for engine in self.engines)

  @property
  def num_requests(self) -> int:
    """Those that are not finished."""
    return sum(engine.num_requests for engine in self.engines)

  def _order(self, request: request_lib.Request) -> list[engine_lib.Engine]:
    """Engines, the best first."""
    order = sorted(self.engines, key=lambda engine: engine.num_requests)
    first = None
    if request.leader is not None:
      first = self._places.get(request.leader)
    if first is None:
      known = self._prefixes.get(self._prefix(request))
      if known is not None:
        ahead = known.num_requests - order[0].num_requests
        first = known if ahead <= self._slack else None
    if first is not None:
      order.remove(first)
      order.insert(0, first)
    return order

  def _prefix(self, request: request_lib.Request) -> tuple[int, ...]:
    return request.prompt[: self._prefix_tokens]

  def _remember(
    self, request: request_lib.Request, engine: engine_lib.Engine
  ) -> None:
    prefix = self._prefix(request)
    if len(prefix) < self._prefix_tokens:
      return
    with self._lock:
      self._prefixes[prefix] = engine
      self._prefixes.move_to_end(prefix)
      if len(self._prefixes) > _NUM_PREFIXES:
        self._prefixes.popitem(last=False)

  def _forget(self, request_id: str) -> None:
    with self._lock:
      self._places.pop(request_id, None)


def merge(stats: Sequence[stats_lib.Stats]) -> stats_lib.Stats:
  """Those of several engines as of one."""
  merged: dict[str, Any] = {}
  for field in dataclasses.fields(stats_lib.Stats):
    values = [getattr(one, field.name) for one in stats]
    match field.name:
      case "phase":
        merged["phase"] = next(phase for phase in _PHASES if phase in values)
      case "is_alive":
        merged["is_alive"] = all(values)
      case "step" | "last_progress":
        merged[field.name] = min(values)
      case "pages_used":
        merged["pages_used"] = sum(values) / len(values)
      case "finished":
        finished: collections.Counter[request_lib.FinishReason] = (
          collections.Counter()
        )
        for value in values:
          finished.update(value)
        merged["finished"] = dict(finished)
      case name:
        merged[name] = sum(values)
  return stats_lib.Stats(**merged)


def _join(
  futures: Sequence[concurrent.futures.Future[None]],
) -> concurrent.futures.Future[None]:
  """Done when all are, with the first error."""
  joined: concurrent.futures.Future[None] = concurrent.futures.Future()
  left = len(futures)
  lock = threading.Lock()

  def on_done(future: concurrent.futures.Future[None]) -> None:
    nonlocal left
    with lock:
      left -= 1
      is_last = left == 0
    del future
    if not is_last:
      return
    errors = [e for e in (f.exception() for f in futures) if e is not None]
    if errors:
      joined.set_exception(errors[0])
    else:
      joined.set_result(None)

  for future in futures:
    future.add_done_callback(on_done)
  return joined
