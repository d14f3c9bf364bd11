"""A line about each request, and nothing that must not be in it."""

import asyncio
import json
import re
from typing import Literal
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve import request as request_lib
from serve.api import logs
from serve.api import refusals
from serve.api import trace

_SECRET = "sk-1234"


def _trace():
  call = trace.current()
  assert call is not None
  call.user = "key-2"
  call.traces.append(
    trace.Trace(
      arrived=call.arrived,
      num_prompt=12,
      num_cached=8,
      first=call.arrived + 0.5,
      last=call.arrived + 1.5,
      num_generated=5,
      finish=request_lib.FinishReason.STOP,
    )
  )


class LogsTest(unittest.IsolatedAsyncioTestCase):
  async def _start(self, log_format: Literal["json", "text"] = "json"):
    self.lines = []
    self.seen = []
    self.may_end = asyncio.Event()
    self.has_begun = asyncio.Event()
    app = web.Application(
      middlewares=[
        logs.Logs(
          log_format,
          model_name=lambda: "tiny",
          observe=lambda *seen: self.seen.append(seen),
          write=self.lines.append,
        ).middleware,
        refusals.middleware,
      ]
    )
    app.on_response_prepare.append(logs.add_headers)

    async def generate(request):
      await request.read()
      _trace()
      return web.Response()

    async def wait(request):
      self.has_begun.set()
      await self.may_end.wait()
      return web.Response()

    async def quiet(request):
      return web.Response(status=int(request.query.get("status", 200)))

    app.add_routes(
      [
        web.post("/v1/chat/{name}", generate),
        web.get("/wait", wait),
        web.get("/livez", quiet),
      ]
    )
    # It cancels the handlers of clients that leave, as ours does.
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)

  async def test_json(self):
    await self._start()
    headers = {"x-request-id": "mine-1", "Authorization": f"Bearer {_SECRET}"}
    async with self.client.post(
      f"/v1/chat/{_SECRET}?q={_SECRET}", data=_SECRET, headers=headers
    ) as response:
      self.assertEqual(response.headers["x-request-id"], "mine-1")
      self.assertEqual(response.headers["Server"], "cacao")
    (line,) = self.lines
    self.assertNotIn(_SECRET, line)
    entry = json.loads(line)
    self.assertRegex(entry.pop("time"), r"^\d{4}-.*T.*\+00:00$")
    self.assertGreater(entry.pop("seconds"), 0)
    self.assertEqual(
      entry,
      {
        "request_id": "mine-1",
        "method": "POST",
        "route": "/v1/chat/{name}",
        "status": 200,
        "user": "key-2",
        "model": "tiny",
        "prompt_tokens": 12,
        "cached_tokens": 8,
        "generated_tokens": 5,
        "ttft": 0.5,
        "tpot": 0.25,
        "finish_reason": "stop",
      },
    )
    self.assertEqual(self.seen, [("/v1/chat/{name}", 200)])

  async def test_text(self):
    await self._start("text")
    await self.client.post("/v1/chat/x")
    (line,) = self.lines
    self.assertRegex(line, r"^\S+ POST /v1/chat/{name} request_id=\w{32} ")
    self.assertIn(" status=200 ", line)
    self.assertIn(" ttft=0.5 ", line)

  async def test_ids(self):
    await self._start()
    for given in ("", "a b", "x" * 129, 'a"b', "ä"):
      async with self.client.get(
        "/wait/none", headers={"x-request-id": given}
      ) as response:
        self.assertRegex(response.headers["x-request-id"], r"^\w{32}$")
      self.assertEqual(
        json.loads(self.lines[-1])["request_id"],
        response.headers["x-request-id"],
      )
    self.assertEqual(len({json.loads(x)["request_id"] for x in self.lines}), 5)

  async def test_errors(self):
    await self._start()
    async with self.client.get(f"/{_SECRET}") as response:
      self.assertEqual(response.status, 404)
    entry = json.loads(self.lines[-1])
    self.assertEqual((entry["route"], entry["status"]), ("none", 404))
    async with self.client.request("PUT", "/livez") as response:
      self.assertEqual(response.status, 405)
    self.assertFalse([x for x in self.lines if _SECRET in x])

  async def test_probes_are_quiet_while_all_is_well(self):
    await self._start()
    await self.client.get("/livez")
    self.assertEqual(self.lines, [])
    await self.client.get("/livez?status=503")
    self.assertEqual(json.loads(self.lines[-1])["status"], 503)
    self.assertEqual(self.seen, [("/livez", 200), ("/livez", 503)])

  async def test_who_leaves(self):
    await self._start()
    call = asyncio.create_task(self.client.get("/wait"))
    await self.has_begun.wait()
    call.cancel()
    async with asyncio.timeout(10):
      while not self.lines:
        await asyncio.sleep(0.001)
    self.assertEqual(json.loads(self.lines[-1])["status"], 499)

  async def test_a_line_is_one_line(self):
    await self._start("text")
    await self.client.get("/a%0Ab", headers={"x-request-id": "a\tb"})
    self.assertFalse(re.search(r"[\n\t]", self.lines[-1]))


if __name__ == "__main__":
  absltest.main()
