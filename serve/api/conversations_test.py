import unittest

from absl.testing import absltest
import msgspec

from serve.api import conversations
from serve.api import errors
from serve.api import fixtures
from serve.api import requests

_HELLO = [{"role": "user", "content": "Hi"}]


class ConversationsTest(absltest.TestCase, unittest.IsolatedAsyncioTestCase):
  def context(self, template=fixtures.TEMPLATE, **settings):
    folder = fixtures.folder(self.create_tempdir().full_path, template)
    return fixtures.context(fixtures.FakeEngine(), folder, **settings)

  async def encode(self, context, **fields):
    body = msgspec.convert(
      {"model": "m", "messages": _HELLO, **fields}, requests.Chat
    )
    return await conversations.encode(
      body, body.messages, context, tools=body.tools or []
    )

  async def test_prompt(self):
    made = await self.encode(self.context())
    self.assertEndsWith(made.rendered, "assistant<|end_header_id|>\n")
    self.assertEqual(made.prompt.tokens[0], 1)
    self.assertEqual(made.template, fixtures.TEMPLATE)
    made = await self.encode(self.context(), add_generation_prompt=False)
    self.assertEndsWith(made.rendered, "Hi<|eot_id|>")

  async def test_what_the_template_asks_for(self):
    context = self.context("{{ reasoning_effort }}{{ documents }}")
    made = await self.encode(
      context, reasoning_effort="low", documents=[{"a": "b"}]
    )
    self.assertEqual(made.rendered, "low[{'a': 'b'}]")

  async def test_refuses(self):
    with self.assertRaisesRegex(errors.ApiError, "has no chat template"):
      await self.encode(self.context(None))
    with self.assertRaisesRegex(errors.ApiError, "writes nothing"):
      await self.encode(self.context("{# #}"))
    with self.assertRaisesRegex(errors.ApiError, "has room for 8 tokens"):
      await self.encode(
        self.context(max_len=8),
        messages=[{"role": "user", "content": "x" * 10_000}],
      )

  def test_literals(self):
    context = self.context()
    self.assertEqual(conversations.literal("a\n", context), '"a\\n"')
    literal = conversations.literal("<|eot_id|>", context)
    self.assertEqual(literal, f"<[{fixtures.END}]>")


if __name__ == "__main__":
  absltest.main()
