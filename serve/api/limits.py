"""What one client may take from the others: bytes, connections and time.

The limits of aiohttp (request line, headers) are set here as well. How much may
wait for the engine, its scheduler says; how long a request may be computed,
its deadline.
"""

import asyncio
import logging
import socket
import struct
from typing import Any

from aiohttp import http_exceptions
from aiohttp import typedefs
from aiohttp import web

from serve.api import errors


class _NotTheirs(logging.Filter):
  """Drops what aiohttp says of clients that leave, or that do not speak HTTP.

  It would quote what they sent, such as a head that is too long, with the key.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(
      error, (ConnectionError, http_exceptions.HttpProcessingError)
    )


_LOG = logging.getLogger(__name__)
_LOG.addFilter(_NotTheirs())

# Of aiohttp's server. An idle connection, or one whose first request does not
# arrive, is closed after `keepalive_timeout`.
CONNECTION: dict[str, Any] = {
  "max_line_size": 8192,
  "max_field_size": 8192,
  "max_headers": 64,
  "keepalive_timeout": 75.0,
  "lingering_time": 2.0,
  "logger": _LOG,
}
TLS_HANDSHAKE_SECONDS = 10.0

_BUSY = (
  b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
  b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Body:
  """The middleware that reads the body before a handler does.

  So a handler never waits for a client, and what it asks the engine for is
  there as a whole.
  """

  def __init__(self, *, max_bytes: int, seconds: float):
    self._max_bytes = max_bytes
    self._seconds = seconds

  @web.middleware
  async def middleware(
    self, request: web.Request, handler: typedefs.Handler
  ) -> web.StreamResponse:
    """Answers 408 or 413, or goes on with the body read."""
    if (request.content_length or 0) > self._max_bytes:
      raise web.HTTPRequestEntityTooLarge(
        max_size=self._max_bytes, actual_size=request.content_length or 0
      )
    try:
      async with asyncio.timeout(self._seconds):
        await request.read()  # Keeps it; longer than the app allows: 413.
    except TimeoutError:
      response = errors.ApiError(
        f"The body did not arrive within {self._seconds:g} seconds.",
        status=408,
        kind="timeout_error",
        code="timeout",
      ).response()
      response.force_close()
      return response
    except web.RequestPayloadError as error:
      raise errors.ApiError("The body is not what its head says.") from error
    return await handler(request)


class Connections:
  """Makes the protocol of each connection, for a listening socket."""

  def __init__(self, *, max_connections: int, write_seconds: float):
    """Nothing is served before `serve`.

    Args:
      max_connections: Open at a time; what comes above gets a 503.
      write_seconds: What is sent must be read within so long.
    """
    self._max = max_connections
    self._write_seconds = write_seconds
    self._server: web.Server | None = None
    self._open: set[_Connection] = set()

  def __len__(self) -> int:
    return len(self._open)

  def serve(self, server: web.Server) -> None:
    """Lets a server of aiohttp's have the connections that come from now on."""
    self._server = server

  def __call__(self) -> asyncio.Protocol:
    if self._server is None or len(self) >= self._max:
      return _Refusal()
    return _Connection(self._server(), self._write_seconds, self._open)


class _Refusal(asyncio.Protocol):
  """Says that it is too much, and hangs up."""

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.WriteTransport)
    transport.write(_BUSY)
    transport.close()


class _Connection(asyncio.Protocol):
  """Hands all to another protocol; breaks off if nobody reads what it sends.

  asyncio pauses writing when too much is unread. A transport that is closed in
  this state would wait forever; the kernel's timeout covers that.
  """

  def __init__(
    self,
    inner: asyncio.Protocol,
    write_seconds: float,
    all_open: "set[_Connection]",
  ):
    self._inner = inner
    self._all_open = all_open
    self._write_seconds = write_seconds
    self._transport: asyncio.Transport | None = None
    self._timer: asyncio.TimerHandle | None = None
    # Called for every packet, so without a step in between.
    self.data_received = inner.data_received
    self.eof_received = inner.eof_received

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.Transport)
    self._transport = transport
    self._all_open.add(self)
    raw = transport.get_extra_info("socket")
    if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux.
      # Later than our own timer: the kernel does not tell the client.
      milliseconds = int(2000 * self._write_seconds)
      raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    self._inner.connection_made(transport)

  def pause_writing(self) -> None:
    assert self._transport is not None
    loop = asyncio.get_running_loop()
    self._timer = loop.call_later(self._write_seconds, self._cut_off)
    self._inner.pause_writing()

  def resume_writing(self) -> None:
    self._stop_timer()
    self._inner.resume_writing()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop_timer()
    self._all_open.discard(self)
    self._inner.connection_lost(exc)

  def _cut_off(self) -> None:
    assert self._transport is not None
    raw = self._transport.get_extra_info("socket")
    if raw is not None:
      # The kernel would go on trying to send what it holds.
      raw.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
      )
    self._transport.abort()

  def _stop_timer(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None
