"""Every error has one form."""

import json
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve.api import errors
from serve.api import refusals


class RefusalsTest(unittest.IsolatedAsyncioTestCase):
  async def asyncSetUp(self):
    self.error = None

    async def fail(request):
      if request.method == "POST":
        await request.read()
      if self.error is not None:
        raise self.error
      return web.Response(text=refusals.route(request))

    app = web.Application(
      middlewares=[refusals.middleware], client_max_size=1000
    )
    app.add_routes([web.get("/a/{b}", fail), web.post("/post", fail)])
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)

  async def _ask(self, method="GET", path="/a/x", **settings):
    async with self.client.request(method, path, **settings) as response:
      body = json.loads(await response.text())
      self.assertEqual(
        sorted(body["error"]), ["code", "message", "param", "type"]
      )
      return response, body["error"]

  async def test_the_route_is_not_the_path(self):
    async with self.client.get("/a/secret") as response:
      self.assertEqual(await response.text(), "/a/{b}")

  async def test_what_aiohttp_refuses(self):
    response, error = await self._ask(path="/none")
    self.assertEqual((response.status, error["type"]), (404, "not_found_error"))
    self.assertIn("/openapi.json", error["message"])
    response, error = await self._ask(method="PUT", path="/post")
    self.assertEqual(response.status, 405)
    self.assertEqual(response.headers["Allow"], "POST")
    self.assertEqual(error["message"], "This route takes POST.")
    response, error = await self._ask("POST", "/post", data=b"x" * 1001)
    self.assertEqual(response.status, 413)
    self.assertEqual(error["type"], "invalid_request_error")

  async def test_an_error_of_the_api(self):
    self.error = errors.queue_full("Too many.", 3.2)
    response, error = await self._ask()
    self.assertEqual(response.status, 429)
    self.assertEqual(response.headers["Retry-After"], "4")
    self.assertEqual(error["message"], "Too many.")

  async def test_deep_nesting(self):
    self.error = RecursionError()
    response, error = await self._ask()
    self.assertEqual(response.status, 400)
    self.assertIn("deeply", error["message"])

  async def test_an_unforeseen_error(self):
    self.error = KeyError("secret")
    with self.assertLogs("serve.api.refusals", "ERROR"):
      response, error = await self._ask()
    self.assertEqual((response.status, error["type"]), (500, "server_error"))
    self.assertNotIn("secret", error["message"])

  async def test_a_redirection_is_no_error(self):
    self.error = web.HTTPFound("/a/y")
    async with self.client.get("/a/x", allow_redirects=False) as response:
      self.assertEqual(response.status, 302)


if __name__ == "__main__":
  absltest.main()
