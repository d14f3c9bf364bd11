import asyncio
import os
import re
import subprocess
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized
from aiohttp import web
import msgspec
from schemathesis import cli

from serve.api import app
from serve.api import fixtures
from serve.api import openapi
from serve.api import refusals
from serve.api import requests


class OpenapiTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 9, 10, 11, 96, 511, 1000, 1209)
  def test_numbers_up_to(self, largest):
    pattern = re.compile(openapi.up_to(largest))
    matches = [n for n in range(2000) if pattern.match(str(n))]
    self.assertEqual(matches, list(range(largest + 1)))
    for text in ("", "-1", "00", "01", "+1", "1.0", str(largest) + "0"):
      if text != "00" or largest:
        self.assertIsNone(pattern.match(text) if text != "0" else None)

  def test_fields_and_limits(self):
    engine = fixtures.FakeEngine()
    context = fixtures.context(engine, self.folder(), max_len=100)
    document = openapi.document(app.ROUTES, context)
    schemas = document["components"]["schemas"]
    for kind, name in (
      (requests.Completion, "serve.api.requests.Completion"),
      (requests.Chat, "serve.api.requests.Chat"),
    ):
      self.assertSameElements(
        schemas[name]["properties"],
        [field.encode_name for field in msgspec.structs.fields(kind)],
      )
      self.assertFalse(schemas[name]["additionalProperties"])
    completion = schemas["serve.api.requests.Completion"]["properties"]
    self.assertEqual(completion["model"]["enum"], [fixtures.MODEL])
    self.assertEqual(completion["max_tokens"]["anyOf"][0]["maximum"], 99)
    self.assertEqual(
      completion["stop_token_ids"]["anyOf"][0]["items"]["maximum"],
      fixtures.VOCAB_SIZE - 1,
    )
    chat = schemas["serve.api.requests.Chat"]["properties"]
    names = chat["chat_template_kwargs"]["anyOf"][0]["propertyNames"]
    self.assertIn("enable_thinking", names["enum"])
    self.assertEqual(chat["documents"]["anyOf"][0]["maxItems"], 0)

  def test_schemathesis_finds_nothing(self):
    """Requests that the document allows and forbids, and all responses."""
    port = self.serve()
    program = (
      "import sys\n"
      f"from {cli.__name__} import schemathesis\n"
      "sys.exit(schemathesis())\n"
    )
    url = f"http://127.0.0.1:{port}/openapi.json"
    hooks = self.create_tempfile("hooks.py", _HOOKS)
    found = subprocess.run(
      [
        *(sys.executable, "-c", program),
        *("run", url, "--max-examples=5"),
        "--generation-deterministic",
        *("--no-color", "--phases=coverage,fuzzing"),
      ],
      env={
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SCHEMATHESIS_HOOKS": hooks.full_path,
      },
      cwd=self.create_tempdir().full_path,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
    self.assertRegex(found.stdout, r"Tested: [1-9]")

  def folder(self):
    return fixtures.folder(self.create_tempdir().full_path)

  def serve(self):
    """Serves on a thread of its own; returns the port."""
    engine = fixtures.FakeEngine(
      lambda request: fixtures.Script(
        tokens=fixtures.counting(request).tokens[:4]
      )
    )
    context = fixtures.context(engine, self.folder(), max_len=100_000)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(
      app.make(context, middlewares=[refusals.middleware]),
      access_log=None,
      handler_cancellation=True,
    )

    async def start():
      await runner.setup()
      site = web.TCPSite(runner, "127.0.0.1", 0)
      await site.start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def stop():
      asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
      loop.call_soon_threadsafe(loop.stop)
      thread.join()
      loop.close()

    self.addCleanup(stop)
    return runner.addresses[0][1]


# A schema cannot say which texts are grammars, which of two numbers is larger,
# or what fits into other limits, and ours does not say all that it could: these
# may be refused.
_HOOKS = """
import schemathesis


@schemathesis.hook
def filter_body(context, body):
  if not isinstance(body, dict):
    return True
  outputs = body.get("structured_outputs")
  if isinstance(outputs, dict) and (
    outputs.get("grammar") or outputs.get("regex") or outputs.get("json")
  ):
    return False
  if body.get("min_tokens") or isinstance(body.get("best_of"), int):
    return False
  if isinstance(body.get("stream_options"), dict) and not body.get("stream"):
    return False
  return not any(
    body.get(field)
    for field in ("guided_grammar", "guided_regex", "guided_json")
  )
"""


if __name__ == "__main__":
  absltest.main()
