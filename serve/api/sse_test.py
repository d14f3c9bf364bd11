import asyncio
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web
import msgspec

from serve.api import errors
from serve.api import sse


class _Event(msgspec.Struct):
  text: str


async def _ask(handler):
  """Status, headers and text of a handler's response."""
  app = web.Application()
  app.add_routes([web.get("/", errors.handled(handler))])
  async with test_utils.TestClient(test_utils.TestServer(app)) as client:
    response = await client.get("/")
    return response.status, response.headers, await response.text()


class SseTest(unittest.IsolatedAsyncioTestCase):
  async def test_events(self):
    async def handler(request):
      events = sse.Events(request, seconds=5)
      await events.send(_Event("a\n한"), {"x-more": "1"})
      await events.send(_Event("b"))
      await events.finish()
      return events.response

    status, headers, text = await _ask(handler)
    self.assertEqual(status, 200)
    self.assertEqual(
      headers["Content-Type"], "text/event-stream; charset=utf-8"
    )
    self.assertEqual(headers["Cache-Control"], "no-cache")
    self.assertEqual(headers["x-more"], "1")
    self.assertEqual(
      text,
      'data: {"text":"a\\n한"}\n\ndata: {"text":"b"}\n\ndata: [DONE]\n\n',
    )

  async def test_errors_before_and_within(self):
    for begins in (False, True):

      async def handler(request, begins=begins):
        events = sse.Events(request, seconds=5)
        if begins:
          await events.send(_Event("a"))
        await events.fail(errors.timed_out(3))
        return events.response

      status, _, text = await _ask(handler)
      self.assertEqual(status, 200 if begins else 408)
      self.assertIn('{"error":{"message":"The request was not finished', text)
      self.assertEqual(text.startswith("data: "), begins)
      self.assertNotIn("[DONE]", text)

  async def test_a_client_that_does_not_read(self):
    raised = asyncio.get_running_loop().create_future()

    async def handler(request):
      events = sse.Events(request, seconds=0.1)
      try:
        while True:
          await events.send(_Event("x" * 100_000))
      except ConnectionError as error:
        raised.set_result(error)
        raise

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    async with test_utils.TestServer(app) as server:
      reader, writer = await asyncio.open_connection(
        server.host, server.port, limit=1024
      )
      writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
      async with asyncio.timeout(10):
        self.assertIsInstance(await raised, ConnectionError)
      writer.close()
      del reader


if __name__ == "__main__":
  absltest.main()
