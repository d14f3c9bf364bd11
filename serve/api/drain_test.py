"""Who is let in, and when nobody is inside."""

import asyncio
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve.api import drain
from serve.api import health

_Phase = health.Phase


class GateTest(unittest.IsolatedAsyncioTestCase):
  async def asyncSetUp(self):
    self.status = health.Status()
    self.gate = drain.Gate(self.status, open_routes=frozenset(["/open"]))
    self.may_end = asyncio.Event()

    async def wait(request):
      await self.may_end.wait()
      if request.query:
        raise web.HTTPNotFound
      return web.Response()

    async def answer(request):
      return web.Response()

    app = web.Application(middlewares=[self.gate.middleware])
    app.add_routes([web.get("/wait", wait), web.get("/open", answer)])
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)

  async def test_phases(self):
    self.may_end.set()
    for phase in _Phase:
      self.status.phase = phase
      async with self.client.get("/open") as response:
        self.assertEqual(response.status, 200)
      async with self.client.get("/wait") as response:
        is_ready = phase is _Phase.READY
        self.assertEqual(response.status, 200 if is_ready else 503)
        self.assertEqual("Retry-After" in response.headers, not is_ready)
        connection = response.headers.get("Connection")
        is_draining = phase is _Phase.DRAINING
        self.assertEqual(connection == "close", is_draining)

  async def test_waits_for_all(self):
    await self.gate.wait_empty()
    self.status.phase = _Phase.READY
    calls = [
      asyncio.create_task(self._status(f"/wait{query}"))
      for query in ("", "?raise")
    ]
    while self.gate.num_inside < 2:
      await asyncio.sleep(0.001)
    empty = asyncio.create_task(self.gate.wait_empty())
    await asyncio.sleep(0.01)
    self.assertFalse(empty.done())
    self.may_end.set()
    await empty
    self.assertEqual(await asyncio.gather(*calls), [200, 404])
    self.assertEqual(self.gate.num_inside, 0)

  async def _status(self, path):
    async with self.client.get(path) as response:
      return response.status


if __name__ == "__main__":
  absltest.main()
