import asyncio
import json
import unittest

from absl.testing import absltest
from absl.testing import parameterized

from serve.api import fixtures

_PATH = "/v1/completions"
_MODEL = json.dumps(fixtures.MODEL).encode()


def _body(rest):
  return b'{"model":' + _MODEL + b"," + rest + b"}"


class AppTest(parameterized.TestCase, unittest.IsolatedAsyncioTestCase):
  async def test_what_is_not_there(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      status, body = await client.get("/v1/nothing")
      self.assertEqual(status, 404)
      self.assertEqual(body["error"]["type"], "not_found_error")
      async with client.http.get(_PATH) as response:
        self.assertEqual(response.status, 405)
        self.assertEqual(response.headers["Allow"], "POST")
        self.assertIn("message", (await response.json())["error"])

  @parameterized.parameters(
    (b"",),
    (b"\x00",),
    (b"[]",),
    (b'"a"',),
    (b"null",),
    (b"{",),
    (b"\xff\xfe",),
    (_body(b'"prompt":"a\xff"'),),
    (_body(b'"prompt":"\\ud800"'),),
    (_body(b'"prompt":NaN'),),
    (_body(b'"prompt":["a",{}]'),),
    (_body(b'"prompt":"a","max_tokens":1e400'),),
    (_body(b'"prompt":"a","max_tokens":' + b"9" * 400),),
    (_body(b'"prompt":"a","max_tokens":1.5'),),
    (_body(b'"prompt":"a","max_tokens":true'),),
    (_body(b'"prompt":"a","stream":"yes"'),),
    (_body(b'"prompt":' + b"[" * 100_000 + b"]" * 100_000),),
    (
      _body(
        b'"prompt":"a","guided_json":' + b'{"a":' * 9_999 + b"1" + b"}" * 9_999
      ),
    ),
    (
      _body(
        b'"prompt":"a","guided_json":' + b'{"a":' * 900 + b"{}" + b"}" * 900
      ),
    ),
    (_body(b'"prompt":"a","guided_regex":"\\u0000("'),),
    (_body(b'"prompt":"a","guided_regex":"(a{1000}){1000}"'),),
    (_body(b'"prompt":"a","guided_choice":["' + b"x" * 100_000 + b'"]'),),
  )
  async def test_bodies_that_are_none(self, body):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      status, answer = await client.send(_PATH, body)
    self.assertEqual(status, 400, answer)
    self.assertSameElements(
      answer["error"], ("message", "type", "param", "code")
    )
    self.assertLess(len(answer["error"]["message"]), 5000)
    self.assertEmpty(engine.requests)

  async def test_texts_may_have_nul(self):
    engine = fixtures.FakeEngine(fixtures.saying("a"))
    async with fixtures.serving(engine) as client:
      status, body = await client.post(
        _PATH, prompt="a\0b", stop="\0", user="\0", echo=True
      )
    self.assertEqual(status, 200)
    self.assertEqual(body["choices"][0]["text"], "a\0ba")

  async def test_too_long_and_not_json(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine, max_body_bytes=10_000) as client:
      status, body = await client.send(_PATH, b" " * 10_001)
      self.assertEqual(status, 413)
      self.assertIn("max_body_bytes", body["error"]["message"])
      async with client.http.post(_PATH, data={"prompt": "a"}) as response:
        self.assertEqual(response.status, 415)
        body = await response.json()
    self.assertEqual(body["error"]["code"], "unsupported_media_type")

  async def test_others_do_not_wait_for_a_grammar(self):
    engine = fixtures.FakeEngine(fixtures.saying("a"))
    async with fixtures.serving(engine, compile_seconds=0.5) as client:
      slow = asyncio.ensure_future(
        client.post(_PATH, prompt="a", guided_regex="a")
      )
      await asyncio.sleep(0.05)
      status, _ = await client.get("/v1/models")
      self.assertEqual(status, 200)
      self.assertFalse(slow.done())
      self.assertEqual((await slow)[0], 200)

  async def test_the_document(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      status, document = await client.get("/openapi.json")
    self.assertEqual(status, 200)
    self.assertIn("/v1/chat/completions", document["paths"])


if __name__ == "__main__":
  absltest.main()
