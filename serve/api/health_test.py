"""Alive is not ready."""

import json
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve.api import health

_Phase = health.Phase


class HealthTest(unittest.IsolatedAsyncioTestCase):
  async def asyncSetUp(self):
    self.status = health.Status()
    self.problem = None
    app = web.Application()
    app.add_routes(health.Health(self.status, lambda: self.problem).routes())
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)

  async def _get(self, route):
    async with self.client.get(route) as response:
      return response.status, json.loads(await response.text())

  async def test_phases(self):
    for phase in _Phase:
      self.status.phase = phase
      self.assertEqual(await self._get("/livez"), (200, {"live": True}))
      is_ready = phase is _Phase.READY
      expected = 200 if is_ready else 503
      for route in ("/readyz", "/health", "/ping"):
        status, body = await self._get(route)
        self.assertEqual((status, body["ready"]), (expected, is_ready))
        self.assertStartsWith(body["phase"], phase.value)

  def assertStartsWith(self, text, start):  # noqa: N802
    self.assertTrue(text.startswith(start), text)

  async def test_progress(self):
    self.status.compiled(3, 40)
    _, body = await self._get("/readyz")
    self.assertEqual(
      body,
      {"ready": False, "phase": "compiling 3/40", "done": 3, "total": 40},
    )

  async def test_a_problem(self):
    self.status.phase = _Phase.READY
    self.problem = "the engine died"
    status, body = await self._get("/livez")
    self.assertEqual((status, body["problem"]), (503, "the engine died"))
    status, body = await self._get("/readyz")
    self.assertEqual((status, body["ready"]), (503, False))
    self.assertEqual(body["problem"], "the engine died")


if __name__ == "__main__":
  absltest.main()
