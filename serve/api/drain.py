"""Which requests are let in, and the end of those that are in.

Before the server is ready, and from SIGTERM on, routes that need the model
answer 503 and when to come again. What is under way goes on for a while.
"""

import asyncio

from aiohttp import typedefs
from aiohttp import web

from serve.api import errors
from serve.api import health
from serve.api import refusals


class Gate:
  """The middleware, and a count of the requests inside of it."""

  def __init__(self, status: health.Status, *, open_routes: frozenset[str]):
    """Lets requests in while the server is ready.

    Args:
      status: Where the server stands.
      open_routes: That do not need the model; they are not waited for either.
    """
    self._status = status
    self._open = open_routes.union(health.ROUTES)
    self._num_inside = 0
    self._is_empty = asyncio.Event()
    self._is_empty.set()

  @property
  def num_inside(self) -> int:
    """Requests under way."""
    return self._num_inside

  async def wait_empty(self) -> None:
    """Until no request is under way."""
    await self._is_empty.wait()

  @web.middleware
  async def middleware(
    self, request: web.Request, handler: typedefs.Handler
  ) -> web.StreamResponse:
    """Answers 503, or goes on."""
    if refusals.route(request) in self._open:
      return await handler(request)
    if not self._status.is_ready:
      response = errors.unavailable(
        f"The server takes no requests now: {self._status}."
      ).response()
      if self._status.phase is health.Phase.DRAINING:
        response.force_close()  # The next try may reach another server.
      return response
    self._num_inside += 1
    self._is_empty.clear()
    try:
      return await handler(request)
    finally:
      self._num_inside -= 1
      if not self._num_inside:
        self._is_empty.set()
