"""Whether the server lives, and whether it can be asked: /livez, /readyz.

Alive is not ready: while it loads and compiles, or drains, a server should be
left alone but not restarted. A server whose decoding makes no progress should.
"""

from collections.abc import Callable
import dataclasses
import enum

from aiohttp import web

ROUTES = ("/livez", "/readyz", "/health", "/ping")


class Phase(enum.Enum):
  """From the start of the process to its end."""

  LOADING = "loading"
  COMPILING = "compiling"
  WARM = "warm"  # Compiled; the engine starts.
  READY = "ready"
  DRAINING = "draining"


@dataclasses.dataclass(kw_only=True)
class Status:
  """Where the server stands; any thread may write it.

  Attributes:
    phase: What it does.
    done: Programs compiled, of `total`.
    total: 0 if nothing is counted.
  """

  phase: Phase = Phase.LOADING
  done: int = 0
  total: int = 0

  def compiled(self, done: int, total: int) -> None:
    """Programs that are compiled, of all; for Runner.warm_up."""
    self.phase = Phase.COMPILING
    self.done = done
    self.total = total

  @property
  def is_ready(self) -> bool:
    """Whether requests are taken."""
    return self.phase is Phase.READY

  def __str__(self) -> str:
    if self.phase is Phase.COMPILING:
      return f"compiling {self.done}/{self.total}"
    return self.phase.value


class Health:
  """The routes, open to anyone."""

  def __init__(self, status: Status, find_problem: Callable[[], str | None]):
    """Routes that answer from memory.

    Args:
      status: Where the server stands.
      find_problem: Why the process should be started anew; None if it need not.
    """
    self._status = status
    self._find_problem = find_problem

  def routes(self) -> list[web.RouteDef]:
    """The routes."""
    return [
      web.get("/livez", self._livez),
      web.get("/readyz", self._readyz),
      # What clients of vLLM wait for, and what SageMaker asks.
      web.get("/health", self._readyz),
      web.get("/ping", self._readyz),
    ]

  async def _livez(self, request: web.Request) -> web.Response:
    del request
    problem = self._find_problem()
    if problem is not None:
      return web.json_response({"live": False, "problem": problem}, status=503)
    return web.json_response({"live": True})

  async def _readyz(self, request: web.Request) -> web.Response:
    del request
    status = self._status
    problem = self._find_problem()
    body = {"ready": status.is_ready and not problem, "phase": str(status)}
    if status.phase is Phase.COMPILING:
      body |= {"done": status.done, "total": status.total}
    if problem is not None:
      body |= {"problem": problem}
    return web.json_response(body, status=200 if body["ready"] else 503)
