"""What one call of the API asked of the engine, and when what came of it.

A handler runs in a context that knows its `Call`; the observer, through which
every request goes to the engine, adds a `Trace` for each. So neither handlers
nor the engine know that they are watched. Times are time.monotonic's.
"""

import contextvars
import dataclasses
import time

from serve import request as request_lib


@dataclasses.dataclass(kw_only=True)
class Trace:
  """One request to the engine; written on the engine's thread.

  Attributes:
    arrived: When it was submitted.
    num_prompt: Tokens of its prompt.
    admitted: When it first got a slot.
    first: When its first tokens came.
    last: When its last tokens came.
    num_generated: Tokens that came.
    num_cached: Prompt tokens that were found computed.
    is_follower: Whether its prompt is another's, too.
    finish: Why it ended; None: it has not, or nobody asks any more.
  """

  arrived: float
  num_prompt: int
  admitted: float | None = None
  first: float | None = None
  last: float | None = None
  num_generated: int = 0
  num_cached: int = 0
  is_follower: bool = False
  finish: request_lib.FinishReason | None = None


@dataclasses.dataclass(kw_only=True)
class Call:
  """One HTTP request.

  Attributes:
    id: The client's, or ours.
    user: Whose API key it came with; empty: none is needed.
    arrived: When its head was read.
    traces: What was asked of the engine.
  """

  id: str
  user: str = ""
  arrived: float = dataclasses.field(default_factory=time.monotonic)
  traces: list[Trace] = dataclasses.field(default_factory=list)

  @property
  def num_prompt(self) -> int:
    """Prompt tokens; a prompt of several choices counts once."""
    return sum(t.num_prompt for t in self.traces if not t.is_follower)

  @property
  def num_cached(self) -> int:
    """Prompt tokens that were found computed."""
    return sum(t.num_cached for t in self.traces if not t.is_follower)

  @property
  def num_generated(self) -> int:
    """Tokens of all choices."""
    return sum(t.num_generated for t in self.traces)

  @property
  def time_to_first(self) -> float | None:
    """Seconds to the first token of any choice."""
    firsts = [t.first for t in self.traces if t.first is not None]
    return min(firsts) - self.arrived if firsts else None

  @property
  def time_per_token(self) -> float | None:
    """Mean seconds of a token after the first of its choice."""
    seconds = 0.0
    num = 0
    for trace in self.traces:
      if trace.first is not None and trace.last is not None:
        seconds += trace.last - trace.first
        num += trace.num_generated - 1
    return seconds / num if num > 0 else None

  @property
  def finish(self) -> str:
    """Why it ended; `aborted` if nobody waited for that."""
    reasons = {
      (t.finish or request_lib.FinishReason.ABORTED).value for t in self.traces
    }
    return ",".join(sorted(reasons))


_CALL: contextvars.ContextVar[Call | None] = contextvars.ContextVar(
  "call", default=None
)


def begin(call: Call | None) -> None:
  """Makes it the current call of this task and of those that it starts."""
  _CALL.set(call)


def current() -> Call | None:
  """The HTTP request on whose behalf this runs; None outside of one."""
  return _CALL.get()
