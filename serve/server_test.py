"""A server's life with a fake model: readiness, overload, drain, death."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import tempfile
from typing import Any
import unittest

from absl.testing import absltest

from serve import config as config_lib
from serve import request as request_lib
from serve import server as server_lib
from serve import server_fixtures as fixtures

_ABORTED = request_lib.FinishReason.ABORTED


def _kill(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


async def _read_first(response):
  return json.loads(await response.content.readline())


class StartTest(unittest.IsolatedAsyncioTestCase):
  async def test_says_what_it_does_until_it_is_ready(self):
    fake = fixtures.Fake()
    fake.may_load.clear()
    fake.may_compile.clear()
    async with fixtures.Running(fake, waits=False) as server:
      self.assertEqual(await server.get("/livez"), (200, {"live": True}))
      status, body = await server.get("/readyz")
      self.assertEqual((status, body["phase"]), (503, "loading"))
      self.assertEqual(await server.get("/health"), (503, body))
      status, _ = await server.get("/")
      self.assertEqual(status, 200)
      fake.may_load.set()
      await server.until(lambda: _has_phase(server, "compiling 2/3"))
      status, body = await server.get("/readyz")
      self.assertEqual((body["done"], body["total"]), (2, 3))
      async with server.post(max_tokens=1) as response:
        self.assertEqual(response.status, 503)
        self.assertEqual(response.headers["Retry-After"], "5")
        error = (await response.json())["error"]
        self.assertIn("compiling 2/3", error["message"])
      self.assertEqual(
        await server.get("/stats"), (200, {"phase": "compiling 2/3"})
      )
      self.assertEqual(await server.figure("cacao:ready"), 0)
      fake.may_compile.set()
      await server.until(lambda: _has_phase(server, "ready"))
      self.assertEqual((await server.get("/readyz"))[0], 200)
      self.assertEqual((await server.complete(max_tokens=2))[0], 200)
      self.assertEqual(await server.figure("cacao:ready"), 1)

  async def test_a_signal_while_it_loads_ends_it(self):
    fake = fixtures.Fake()
    fake.may_load.clear()
    async with fixtures.Running(fake, waits=False) as server:
      _kill()
      ended = await server.ended
      self.assertEqual(ended, server_lib.Ended(code=0, is_clean=False))

  async def test_what_loading_raises(self):
    fake = fixtures.Fake(error=ValueError("--checkpoint=x: no model"))
    fake.may_load.clear()
    async with fixtures.Running(fake, waits=False) as server:
      fake.may_load.set()
      with self.assertRaisesRegex(ValueError, "no model"):
        await server.ended

  async def test_a_port_that_is_taken(self):
    async with fixtures.Running() as server:
      port = int(server.url.rpartition(":")[2])
      with self.assertRaisesRegex(ValueError, f"api.port={port} cannot be"):
        async with fixtures.Running(port=port):
          pass


async def _has_phase(server, phase):
  return (await server.get("/readyz"))[1]["phase"] == phase


class ServeTest(unittest.IsolatedAsyncioTestCase):
  async def test_serves_and_tells_what_it_did(self):
    async with fixtures.Running() as server:
      status, events = await server.complete(max_tokens=9)
      self.assertEqual(status, 200)
      self.assertEqual(sum(len(event["tokens"]) for event in events), 9)
      _, stats = await server.get("/stats")
      self.assertEqual(stats["model"], fixtures.MODEL)
      self.assertEqual(stats["generated_tokens"], 9)
      self.assertEqual(stats["step"], 7)
      self.assertEqual(
        await server.figure(
          "vllm:request_success_total", finished_reason="length"
        ),
        1,
      )

  async def test_overload_is_refused_and_counted(self):
    fake = fixtures.Fake(max_rows=1, max_queued=2)
    async with fixtures.Running(fake) as server:
      answers = await asyncio.gather(
        *(server.complete(max_tokens=30) for _ in range(20))
      )
      codes = [status for status, _ in answers]
      refused = codes.count(429)
      self.assertEqual(codes.count(200) + refused, 20)
      self.assertGreater(refused, 0)
      self.assertEqual(
        await server.figure("vllm:admission_rejections_total"), refused
      )

  async def test_who_leaves_is_forgotten(self):
    async with fixtures.Running() as server:
      stats = server.fake.engine.stats
      with self.assertNoLogs(level="WARNING"):
        for _ in range(20):
          response = await server.post(max_tokens=4000)
          await _read_first(response)
          response.close()
        await server.until(lambda: stats().num_running == 0)
      self.assertEqual(stats().finished[_ABORTED], 20)
      self.assertEqual(stats().pages_used, 0)
      await server.until(lambda: _is_counted(server, 499, 20))

  async def test_too_many_connections(self):
    async with fixtures.Running(max_connections=2) as server:
      first = await server.post(max_tokens=4000)
      second = await server.post(max_tokens=4000)
      async with server.post(max_tokens=1) as response:
        self.assertEqual(response.status, 503)
        self.assertEqual(response.headers["Retry-After"], "1")
      first.close()
      second.close()
      await server.until(lambda: server.fake.engine.num_requests == 0)
      self.assertEqual((await server.complete(max_tokens=1))[0], 200)

  async def test_an_unforeseen_error(self):
    async with fixtures.Running() as server:
      with self.assertLogs("serve.api.refusals", "ERROR"):
        status, body = await server.get("/fail")
      self.assertEqual(status, 500)
      self.assertEqual(body["error"]["type"], "server_error")
      self.assertNotIn("secret", str(body))

  async def test_a_stall_is_not_alive(self):
    fake = fixtures.Fake(stall_seconds=0.1)
    async with fixtures.Running(fake) as server:
      hold = asyncio.Event()
      loop = asyncio.get_running_loop()

      def wait(batch):
        del batch
        asyncio.run_coroutine_threadsafe(hold.wait(), loop).result()

      fake.runner.before_run = wait
      answer = asyncio.create_task(server.complete(max_tokens=3))
      await server.until(lambda: _has_status(server, "/livez", 503))
      self.assertEqual((await server.get("/readyz"))[0], 503)
      hold.set()
      self.assertEqual((await answer)[0], 200)
      self.assertEqual((await server.get("/livez"))[0], 200)


async def _has_status(server, path, status):
  return (await server.get(path))[0] == status


async def _is_counted(server, status, number):
  name = "cacao:http_requests_total"
  try:
    found = await server.figure(name, route=fixtures.ROUTE, status=str(status))
  except AssertionError:
    return False
  return found == number


class EndTest(unittest.IsolatedAsyncioTestCase):
  async def test_drains_under_load(self):
    fake = fixtures.Fake(max_rows=4)
    async with fixtures.Running(fake) as server:
      answers = [
        asyncio.create_task(server.complete(max_tokens=50)) for _ in range(12)
      ]
      await server.until(lambda: fake.engine.num_requests == 12)
      _kill()
      await server.until(lambda: _has_phase(server, "draining"))
      async with server.post(max_tokens=1) as response:
        self.assertEqual(response.status, 503)
        self.assertEqual(response.headers["Retry-After"], "5")
        self.assertEqual(response.headers["Connection"], "close")
      self.assertEqual((await server.get("/livez"))[0], 200)
      for answer in answers:
        status, events = await answer
        self.assertEqual((status, events[-1]["finish"]), (200, "length"))
      ended = await server.ended
      self.assertEqual(ended, server_lib.Ended(code=0, is_clean=True))
      self.assertTrue(fake.is_closed)

  async def test_ends_what_takes_too_long(self):
    async with fixtures.Running(drain_seconds=0.2) as server:
      answer = asyncio.create_task(server.complete(max_tokens=4000))
      await server.until(lambda: server.fake.engine.num_requests)
      _kill()
      status, events = await answer
      self.assertEqual((status, events[-1]["finish"]), (200, "error"))
      self.assertTrue(events[-1]["error"])
      self.assertEqual((await server.ended).code, 0)

  async def test_a_second_signal_ends_at_once(self):
    async with fixtures.Running(drain_seconds=600.0) as server:
      answer = asyncio.create_task(server.complete(max_tokens=4000))
      await server.until(lambda: server.fake.engine.num_requests)
      _kill()
      await server.until(lambda: _has_phase(server, "draining"))
      _kill(signal.SIGINT)
      _, events = await answer
      self.assertEqual(events[-1]["finish"], "error")
      ended = await server.ended
      self.assertEqual(ended, server_lib.Ended(code=0, is_clean=True))

  async def test_a_dead_engine_ends_it(self):
    def die(batch):
      raise MemoryError("no room")

    async with fixtures.Running() as server:
      answer = asyncio.create_task(server.complete(max_tokens=4000))
      await server.until(lambda: server.fake.engine.num_requests)
      with self.assertLogs("absl", "ERROR") as logs:
        server.fake.runner.before_run = die
        _, events = await answer
        ended = await server.ended
      self.assertEqual(events[-1]["finish"], "error")
      self.assertEqual(ended.code, 1)
      self.assertIn("exit code 1: MemoryError: no room", logs.output[-1])


class SettingsTest(unittest.IsolatedAsyncioTestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def _path(self, name, content=None):
    path = os.path.join(self.folder, name)
    if content is not None:
      with open(path, "w") as file:
        file.write(content)
    return path

  async def test_keys(self):
    path = self._path("keys", "# ours\nsecret-1\n\nsecret-2\n")
    async with fixtures.Running(api_keys=path) as server:
      for route in ("/metrics", "/stats", "/none"):
        self.assertEqual((await server.get(route))[0], 401, route)
      for route in ("/livez", "/readyz", "/health", "/", "/page.js"):
        self.assertEqual((await server.get(route))[0], 200, route)
      async with server.post(max_tokens=1) as response:
        self.assertEqual(response.status, 401)
        self.assertEqual(response.headers["WWW-Authenticate"], "Bearer")
        error = (await response.json())["error"]
        self.assertEqual(error["code"], "invalid_api_key")
      users = []
      fake = server.fake
      fake.runner.before_admit = lambda request: users.append(request.user)
      for key in ("secret-2", "secret-1"):
        headers = {"Authorization": f"Bearer {key}"}
        status, _ = await server.complete(max_tokens=1, headers=headers)
        self.assertEqual(status, 200)
      self.assertEqual(users, ["key-2", "key-1"])
      self._path("keys", "secret-3\n")
      _kill(signal.SIGHUP)
      await asyncio.sleep(0)
      for key, expected in (("secret-1", 401), ("secret-3", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        status, _ = await server.get("/stats", headers=headers)
        self.assertEqual(status, expected)

  async def test_tls(self):
    cert, key = self._path("cert.pem"), self._path("key.pem")
    command = [
      *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
      *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
      *(
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        key,
        "-out",
        cert,
      ),
    ]
    subprocess.run(command, check=True, capture_output=True)
    async with fixtures.Running(
      host="localhost", tls_cert=cert, tls_key=key
    ) as server:
      self.assertTrue(server.url.startswith("https://localhost:"))
      trusting = ssl.create_default_context(cafile=cert)
      status, _ = await server.get("/readyz", ssl=trusting)
      self.assertEqual(status, 200)
      old = ssl.create_default_context(cafile=cert)
      old.maximum_version = ssl.TLSVersion.TLSv1_1
      with self.assertRaises((ssl.SSLError, OSError)):
        port = int(server.url.rpartition(":")[2])
        await asyncio.open_connection("localhost", port, ssl=old)

  def test_bad_files(self):
    load = fixtures.Fake()
    empty = self._path("empty", "# nothing\n")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
      ({"api_keys": self._path("none")}, "--api_keys=.*none cannot be read"),
      ({"api_keys": empty}, "has no key"),
      ({"tls_cert": empty, "tls_key": empty}, "give PEM files"),
    )
    for settings, message in cases:
      config = config_lib.ApiConfig(**settings)
      with self.assertRaisesRegex(ValueError, message):
        server_lib.Server(config, load=load)


if __name__ == "__main__":
  absltest.main()
