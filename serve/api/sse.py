"""Server-sent events, as OpenAI's clients read them."""

import asyncio
from collections.abc import Mapping

from aiohttp import web
import msgspec

from serve.api import errors

_HEADERS = {
  "Content-Type": "text/event-stream; charset=utf-8",
  "Cache-Control": "no-cache",
  "X-Accel-Buffering": "no",  # nginx would wait for more.
}


class Events:
  """A response that is sent in pieces; it begins with the first of them.

  So what is wrong before that is still an ordinary error.
  """

  def __init__(
    self,
    request: web.Request,
    *,
    seconds: float,
  ):
    """Nothing is sent yet.

    Args:
      request: Which is answered.
      seconds: How long the client may take to read what was sent.
    """
    self.response = web.StreamResponse(headers=_HEADERS)
    self._request = request
    self._seconds = seconds
    self._encoder = msgspec.json.Encoder()

  async def send(
    self, event: msgspec.Struct, headers: Mapping[str, str] | None = None
  ) -> None:
    """Sends an event; with the first go the headers.

    Raises:
      ConnectionError: Nobody reads.
    """
    await self._write(
      b"data: " + self._encoder.encode(event) + b"\n\n", headers
    )

  async def finish(self) -> None:
    """Says that this was all."""
    await self._write(b"data: [DONE]\n\n", None)
    await self.response.write_eof()

  async def fail(self, error: errors.ApiError) -> None:
    """Says what went wrong, as the last event.

    Raises:
      errors.ApiError: Nothing was sent yet: the error can be the response.
    """
    if not self.response.prepared:
      raise error
    await self.send(error.body)
    await self.response.write_eof()

  async def _write(
    self, data: bytes, headers: Mapping[str, str] | None
  ) -> None:
    try:
      async with asyncio.timeout(self._seconds):
        if not self.response.prepared:
          self.response.headers.update(headers or {})
          await self.response.prepare(self._request)
        await self.response.write(data)
    except TimeoutError as error:
      if self._request.transport is not None:
        self._request.transport.abort()
      raise ConnectionResetError("The client does not read.") from error
