import json
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve.api import errors


class ErrorsTest(unittest.IsolatedAsyncioTestCase):
  async def test_the_form(self):
    async def handler(request):
      raise errors.refused("n", "n is 0.", code=None)

    app = web.Application()
    app.add_routes([web.get("/", errors.handled(handler))])
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
      response = await client.get("/")
      body = await response.json()
    self.assertEqual(response.status, 400)
    error = {
      "message": "n is 0.",
      "type": "invalid_request_error",
      "param": "n",
      "code": None,
    }
    self.assertEqual(body, {"error": error})

  def test_statuses_and_headers(self):
    for error, status, header in (
      (errors.queue_full("", 0.2), 429, ("Retry-After", "1")),
      (errors.queue_full("full", 7.1), 429, ("Retry-After", "8")),
      (errors.unavailable(""), 503, ("Retry-After", "5")),
      (errors.timed_out(2), 408, ("x-should-retry", "false")),
      (errors.failed(None), 500, ("x-should-retry", "false")),
    ):
      response = error.response()
      self.assertEqual(response.status, status)
      self.assertEqual(response.headers[header[0]], header[1])
      self.assertTrue(json.loads(response.text or "")["error"]["message"])

  def test_too_long_says_the_numbers(self):
    error = errors.too_long(
      num_prompt=5, max_tokens=4, max_len=8, param="prompt"
    ).body.error
    self.assertEqual(error.code, "context_length_exceeded")
    for number in ("5", "4", "8", "9"):
      self.assertIn(number, error.message)

  def test_another_model(self):
    error = errors.unknown_model("x" * 1000, "y")
    self.assertEqual(error.status, 404)
    self.assertLess(len(error.body.error.message), 300)


if __name__ == "__main__":
  absltest.main()
