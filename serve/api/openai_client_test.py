"""The openai client, as its users have it, against a server."""

import asyncio
import base64
import json
import struct
import threading
from typing import Any

from absl.testing import absltest
from aiohttp import web
import openai

from serve.api import app
from serve.api import fixtures
from serve.api import refusals

_HELLO: Any = [{"role": "user", "content": "Hello!"}]
_TOOL: Any = {
  "type": "function",
  "function": {
    "name": "add",
    "parameters": {
      "type": "object",
      "properties": {"a": {"type": "integer"}},
      "required": ["a"],
      "additionalProperties": False,
    },
    "strict": True,
  },
}
_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class OpenaiClientTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.engine = fixtures.FakeEngine(fixtures.saying("Hi there."))
    folder = fixtures.folder(self.create_tempdir().full_path)
    context = fixtures.context(self.engine, folder, max_len=1024)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(
      app.make(context, middlewares=[refusals.middleware]),
      access_log=None,
      handler_cancellation=True,
    )

    async def start():
      await runner.setup()
      await web.TCPSite(runner, "127.0.0.1", 0).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def stop():
      asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
      loop.call_soon_threadsafe(loop.stop)
      thread.join()
      loop.close()

    self.addCleanup(stop)
    self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    # Its types know OpenAI's models alone.
    self.client: Any = openai.OpenAI(
      base_url=self.url, api_key="x", max_retries=2, timeout=20
    )
    self.addCleanup(self.client.close)

  def test_models(self):
    (model,) = self.client.models.list().data
    self.assertEqual(model.id, fixtures.MODEL)
    found = self.client.models.retrieve(fixtures.MODEL)
    self.assertEqual(found.id, fixtures.MODEL)
    with self.assertRaises(openai.NotFoundError) as caught:
      self.client.models.retrieve("other")
    self.assertEqual(caught.exception.code, "model_not_found")

  def test_chat(self):
    answer = self.client.chat.completions.with_raw_response.create(
      model=fixtures.MODEL,
      messages=_HELLO,
      temperature=0.5,
      seed=1,
      logprobs=True,
      top_logprobs=2,
      extra_body={"top_k": 5, "repetition_penalty": 1.1},
    )
    self.assertEqual(answer.headers["x-checkpoint-step"], "7")
    parsed = answer.parse()
    (choice,) = parsed.choices
    self.assertEqual(choice.message.content, "Hi there.")
    self.assertLen(choice.logprobs.content[0].top_logprobs, 2)
    self.assertGreater(parsed.usage.prompt_tokens_details.cached_tokens, 0)
    # What was answered can be sent back as it is.
    messages = [*_HELLO, choice.message, *_HELLO]
    self.client.chat.completions.create(model=fixtures.MODEL, messages=messages)

  def test_stream(self):
    chunks = list(
      self.client.chat.completions.create(
        model=fixtures.MODEL,
        messages=_HELLO,
        stream=True,
        stream_options={"include_usage": True},
      )
    )
    text = "".join(
      chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
    )
    self.assertEqual(text, "Hi there.")
    self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
    num = len(self.engine.script(self.engine.requests[0]).tokens)
    self.assertEqual(chunks[-1].usage.completion_tokens, num)

  def test_stream_helper_with_tools(self):
    self.engine.script = fixtures.saying(_CALL)
    with self.client.chat.completions.stream(
      model=fixtures.MODEL, messages=_HELLO, tools=[_TOOL]
    ) as stream:
      kinds = [event.type for event in stream]
      answer = stream.get_final_completion()
    self.assertIn("tool_calls.function.arguments.delta", kinds)
    (call,) = answer.choices[0].message.tool_calls
    self.assertEqual(json.loads(call.function.arguments), {"a": 1})
    self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
    # strict: what is called follows the schema.
    self.assertIsNotNone(self.engine.requests[0].constraint)

  def test_tools_and_their_answers(self):
    self.engine.script = fixtures.saying(_CALL)
    answer = self.client.chat.completions.create(
      model=fixtures.MODEL,
      messages=_HELLO,
      tools=[_TOOL],
      tool_choice="required",
      parallel_tool_calls=False,
    )
    message = answer.choices[0].message
    (call,) = message.tool_calls
    self.assertEqual(call.function.name, "add")
    self.engine.script = fixtures.saying("2")
    answer = self.client.chat.completions.create(
      model=fixtures.MODEL,
      messages=[
        *_HELLO,
        message,
        {"role": "tool", "tool_call_id": call.id, "content": "2"},
      ],
      tools=[_TOOL],
    )
    self.assertEqual(answer.choices[0].message.content, "2")

  def test_json_schema(self):
    self.engine.script = fixtures.saying('{"a":1}')
    answer = self.client.chat.completions.create(
      model=fixtures.MODEL,
      messages=_HELLO,
      response_format={
        "type": "json_schema",
        "json_schema": {
          "name": "sum",
          "schema": _TOOL["function"]["parameters"],
          "strict": True,
        },
      },
    )
    self.assertEqual(json.loads(answer.choices[0].message.content), {"a": 1})
    constraint = self.engine.requests[0].constraint
    constraint.accept(list(self.engine.script(None).tokens))

  def test_completions(self):
    answer = self.client.completions.create(
      model=fixtures.MODEL,
      prompt=["a", "b"],
      n=2,
      echo=True,
      logprobs=1,
      max_tokens=2,
      stop=["x"],
    )
    self.assertLen(answer.choices, 4)
    logprobs = answer.choices[0].logprobs
    # The BOS was not asked for, and is not echoed.
    self.assertEqual(logprobs.tokens[0], "a")
    self.assertLen(logprobs.tokens, 3)
    chunks = self.client.completions.create(
      model=fixtures.MODEL, prompt="a", stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    self.assertEqual(text, "Hi there.")

  def test_embeddings(self):
    plain = self.client.embeddings.create(
      model=fixtures.MODEL, input=["a", "bc"], encoding_format="float"
    )
    self.assertLen(plain.data, 2)
    # The client asks for base64 by itself.
    packed = self.client.embeddings.create(model=fixtures.MODEL, input="a")
    self.assertEqual(packed.data[0].embedding, plain.data[0].embedding)
    raw = self.client.embeddings.with_raw_response.create(
      model=fixtures.MODEL, input="a", encoding_format="base64"
    )
    data = json.loads(raw.text)["data"][0]["embedding"]
    self.assertEqual(
      list(struct.unpack("<4f", base64.b64decode(data))),
      plain.data[0].embedding,
    )

  def test_errors(self):
    def ask(**fields):
      self.client.chat.completions.create(
        **({"model": fixtures.MODEL, "messages": _HELLO} | fields)
      )

    with self.assertRaises(openai.BadRequestError) as caught:
      ask(temperature=3)
    self.assertEqual(caught.exception.param, "temperature")
    with self.assertRaises(openai.NotFoundError):
      ask(model="other")
    with self.assertRaises(openai.BadRequestError) as caught:
      ask(max_tokens=5000)
    self.assertEqual(caught.exception.code, "context_length_exceeded")
    self.assertEmpty(self.engine.requests)
    # A deadline is not a reason to ask again.
    self.engine.script = lambda request: fixtures.Script(
      tokens=[50], finish=fixtures.DEADLINE
    )
    with self.assertRaises(openai.APIStatusError) as caught:
      ask()
    self.assertEqual(caught.exception.status_code, 408)
    self.assertLen(self.engine.requests, 1)

  def test_async(self):
    async def ask():
      client: Any
      async with openai.AsyncOpenAI(
        base_url=self.url, api_key="x", timeout=20
      ) as client:
        answers = await asyncio.gather(
          *(
            client.chat.completions.create(
              model=fixtures.MODEL, messages=_HELLO
            )
            for _ in range(8)
          )
        )
        stream = await client.chat.completions.create(
          model=fixtures.MODEL, messages=_HELLO, stream=True
        )
        chunks = [chunk async for chunk in stream]
      return answers, chunks

    answers, chunks = asyncio.run(ask())
    for answer in answers:
      self.assertEqual(answer.choices[0].message.content, "Hi there.")
    self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")


if __name__ == "__main__":
  absltest.main()
