import unittest

from absl.testing import absltest
import msgspec

from serve.api import conversations
from serve.api import errors
from serve.api import fixtures
from serve.api import requests
from serve.api import tool_formats

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

  async def test_a_template_without_tools(self):
    context = self.context(
      "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "add"}}
    made = await self.encode(context, tools=[tool])
    self.assertStartsWith(made.rendered, "user: You may call functions.")
    self.assertIn('{"name": "add", ', made.rendered)
    self.assertEndsWith(made.rendered, "</tool_call>\n\nHi|")
    self.assertIs(made.calls, tool_formats.Format.HERMES)
    call = {"id": "1", "function": {"name": "add", "arguments": "{}"}}
    made = await self.encode(
      context,
      messages=[
        *_HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
      ],
    )
    self.assertEqual(
      made.rendered,
      "user: Hi|assistant: <tool_call>\n"
      '{"name": "add", "arguments": {}}\n</tool_call>|'
      "user: <tool_response>\n3\n</tool_response>|",
    )

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
