"""OpenAI's Python client, and what it gets is what the model says."""

import asyncio
import base64
import json
import pathlib
import struct
import tempfile
import threading
from typing import Any, Literal

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import openai
import pydantic

from serve.clients import fixtures

_HELLO = [{"role": "user", "content": "Hello, how are you?"}]
_PROMPT = "In the beginning"


def _tool(name, properties, **more):
  parameters = {
    "type": "object",
    "properties": properties,
    "required": list(properties),
    "additionalProperties": False,
  }
  function = {"name": name, "parameters": parameters, **more}
  return {"type": "function", "function": function}


_UNITS = ("c", "f")
_TOOLS = [
  _tool(
    "weather",
    {
      "unit": {"enum": list(_UNITS)},
      "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    description="What it will be like.",
  ),
  _tool("switch", {"on": {"type": "boolean"}}, strict=True),
]


class _Weather(pydantic.BaseModel):
  unit: Literal["c", "f"]
  sunny: bool
  days: list[Literal[1, 2, 3]] = pydantic.Field(min_length=1, max_length=2)


class _Place(pydantic.BaseModel):
  kind: Literal["city", "sea"]
  is_far: bool


class _Trip(pydantic.BaseModel):
  """Plans a trip; schemas of nested models have references."""

  start: _Place
  stops: list[_Place] = pydantic.Field(max_length=1)


class OpenaiPythonTest(parameterized.TestCase):
  # Its methods take what its types do not allow, such as fields of ours.
  client: Any

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model = fixtures.Model(folder)
    cls.server = cls.enterClassContext(fixtures.Server(cls.model, folder))
    cls.client = cls.enterClassContext(
      openai.OpenAI(base_url=cls.server.base_url, api_key="x", max_retries=0)
    )

  def complete(self, *, extra_body=None, **fields):
    """A completion's only choice."""
    fields = {"prompt": _PROMPT, "max_tokens": 12, "temperature": 0} | fields
    answer = self.client.completions.create(
      model=fixtures.NAME,
      extra_body={"return_token_ids": True} | (extra_body or {}),
      **fields,
    )
    (choice,) = answer.choices
    return choice

  def chat(self, **fields):
    fields = {"messages": _HELLO, "max_tokens": 12, "temperature": 0} | fields
    return self.client.chat.completions.create(model=fixtures.NAME, **fields)

  def id_of(self, text):
    (token,) = self.model.tokenizer.encode(text)
    return token

  def likeliest(self, num=12, text=_PROMPT):
    """What the model says after a prompt, computed without the server."""
    return self.model.greedy(
      self.model.prompt(text), num, ends=[self.model.tokenizer.eos_id]
    )

  def chat_prompt(self, *messages):
    text = "".join(f"{role}: {said}<|end_of_text|>" for role, said in messages)
    return self.model.tokenizer.encode_with_special_tokens(f"{text}assistant:")

  # -- Models, headers, errors ------------------------------------------------

  def test_models(self):
    (model,) = self.client.models.list().data
    self.assertEqual(model.id, fixtures.NAME)
    self.assertEqual(model.max_model_len, fixtures.MAX_LEN)
    self.assertEqual(
      self.client.models.retrieve(fixtures.NAME).id, fixtures.NAME
    )
    with self.assertRaises(openai.NotFoundError) as caught:
      self.client.models.retrieve("other")
    self.assertEqual(caught.exception.code, "model_not_found")

  def test_headers(self):
    answer = self.client.chat.completions.with_raw_response.create(
      model=fixtures.NAME,
      messages=_HELLO,
      max_tokens=2,
      extra_headers={"X-Request-Id": "mine-1"},
    )
    self.assertEqual(answer.headers["x-request-id"], "mine-1")
    self.assertEqual(answer.headers["x-checkpoint-step"], str(fixtures.STEP))
    parsed = answer.parse()
    self.assertEqual(parsed.system_fingerprint, f"step-{fixtures.STEP}")
    other = self.chat(max_tokens=2)
    self.assertNotEqual(other._request_id, "mine-1")
    self.assertLen(other._request_id, 32)
    with self.client.completions.with_streaming_response.create(
      model=fixtures.NAME, prompt=_PROMPT, max_tokens=2, stream=True
    ) as stream:
      self.assertEqual(stream.headers["x-checkpoint-step"], str(fixtures.STEP))
      self.assertIn("data: [DONE]", stream.read().decode())

  @parameterized.parameters(
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 1000}, "n"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"messages": [{"role": "nobody", "content": ""}]}, "messages[0].role"),
    ({"messages": []}, "messages"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"store": True}, "store"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"extra_body": {"never_heard_of": 1}}, "never_heard_of"),
    ({"max_tokens": 5000}, "max_tokens"),
  )
  def test_what_cannot_be_is_refused(self, fields, param):
    with self.assertRaises(openai.BadRequestError) as caught:
      self.chat(**fields)
    self.assertEqual(caught.exception.param, param)
    self.assertEqual(caught.exception.type, "invalid_request_error")

  def test_other_errors(self):
    with self.assertRaises(openai.NotFoundError) as caught:
      self.client.completions.create(model="other", prompt="a")
    self.assertEqual(caught.exception.param, "model")
    with self.assertRaises(openai.BadRequestError) as caught:
      self.complete(prompt="word " * fixtures.MAX_LEN)
    self.assertEqual(caught.exception.code, "context_length_exceeded")
    with self.assertRaises(openai.NotFoundError) as caught:
      self.client.responses.create(model=fixtures.NAME, input="a")
    self.assertEqual(caught.exception.type, "not_found_error")

  def test_timeouts(self):
    long = {
      "n": 4,
      "max_tokens": 900,
      "extra_body": {"ignore_eos": True, "timeout": 0.2},
    }
    with self.assertRaises(openai.APIStatusError) as caught:
      self.chat(**long)
    self.assertEqual(caught.exception.status_code, 408)
    self.server.until_idle(1.0)
    long["extra_body"]["timeout"] = 60
    with self.assertRaises(openai.APITimeoutError):
      self.chat(**long, timeout=0.3)
    self.server.until_idle(2.0)

  # -- Text -------------------------------------------------------------------

  def test_completion(self):
    choice = self.complete()
    tokens = self.likeliest()
    self.assertEqual(choice.token_ids, tokens)
    self.assertEqual(choice.prompt_token_ids, self.model.prompt(_PROMPT))
    self.assertEqual(choice.text, self.model.text(tokens))
    self.assertEqual(choice.finish_reason, "length")

  def test_prompts_of_all_kinds(self):
    texts = [_PROMPT, "모든 문장은", "def add("]
    ids = [self.model.prompt(text) for text in texts]
    wanted = [self.model.text(self.likeliest(6, text)) for text in texts]
    for prompt, expected in (
      (texts, wanted),
      (ids, wanted),
      (ids[0], wanted[:1]),
      (texts[1], wanted[1:2]),
    ):
      answer = self.client.completions.create(
        model=fixtures.NAME, prompt=prompt, max_tokens=6, temperature=0
      )
      self.assertEqual([c.text for c in answer.choices], expected)
      self.assertEqual(
        [c.index for c in answer.choices], [*range(len(expected))]
      )
    self.assertEqual(answer.usage.prompt_tokens, len(ids[1]))
    self.assertEqual(answer.usage.completion_tokens, 6)

  def test_chat(self):
    answer = self.chat(extra_body={"return_token_ids": True})
    prompt = self.chat_prompt(("user", _HELLO[0]["content"]))
    tokens = self.model.greedy(prompt, 12)
    (choice,) = answer.choices
    self.assertEqual(answer.prompt_token_ids, prompt)
    self.assertEqual(choice.token_ids, tokens)
    self.assertEqual(choice.message.role, "assistant")
    self.assertEqual(choice.message.content, self.model.text(tokens))
    self.assertEqual(answer.usage.prompt_tokens, len(prompt))
    self.assertEqual(answer.usage.total_tokens, len(prompt) + 12)

  def test_a_conversation(self):
    said = [("system", "Be."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    answer = self.chat(
      messages=[
        {"role": "developer", "content": "Be."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c", "name": "me"},
      ],
      extra_body={"return_token_ids": True},
    )
    self.assertEqual(answer.prompt_token_ids, self.chat_prompt(*said))

  def test_an_answer_is_gone_on_with(self):
    answer = self.chat(
      messages=[*_HELLO, {"role": "assistant", "content": "I am"}],
      extra_body={
        "continue_final_message": True,
        "add_generation_prompt": False,
        "return_token_ids": True,
      },
    )
    prompt = self.model.tokenizer.encode_with_special_tokens(
      f"user: {_HELLO[0]['content']}<|end_of_text|>assistant: I am"
    )
    self.assertEqual(answer.prompt_token_ids, prompt)

  @parameterized.parameters(1, 3)
  def test_stream(self, n):
    fields = {"n": n, "temperature": 1, "seed": 5, "max_tokens": 20}
    whole = self.chat(**fields)
    chunks = list(
      self.chat(**fields, stream=True, stream_options={"include_usage": True})
    )
    self.assertEqual(chunks[-1].usage, whole.usage)
    self.assertEmpty(chunks[-1].choices)
    self.assertLen({chunk.id for chunk in chunks}, 1)
    for index in range(n):
      parts = [
        chunk.choices[0]
        for chunk in chunks[:-1]
        if chunk.choices[0].index == index
      ]
      self.assertEqual(parts[0].delta.role, "assistant")
      text = "".join(part.delta.content or "" for part in parts)
      self.assertEqual(text, whole.choices[index].message.content)
      finishes = [part.finish_reason for part in parts]
      self.assertEqual(
        finishes,
        [None] * (len(parts) - 1) + [whole.choices[index].finish_reason],
      )

  def test_stream_of_a_completion(self):
    fields = {"model": fixtures.NAME, "prompt": [_PROMPT, "def"], "seed": 3}
    whole = self.client.completions.create(**fields, logprobs=1)
    chunks = list(
      self.client.completions.create(**fields, logprobs=1, stream=True)
    )
    for index, choice in enumerate(whole.choices):
      parts = [c.choices[0] for c in chunks if c.choices[0].index == index]
      self.assertEqual("".join(part.text for part in parts), choice.text)
      for name in ("tokens", "token_logprobs", "text_offset"):
        pieces = [
          item for part in parts for item in getattr(part.logprobs, name)
        ]
        self.assertEqual(pieces, getattr(choice.logprobs, name), name)

  def test_async(self):
    texts = ["a", "모든", "def add(", "0123", "user:", "{", "The quick", "is"]

    async def ask():
      async with openai.AsyncOpenAI(
        base_url=self.server.base_url, api_key="x", max_retries=0
      ) as client:
        answers = await asyncio.gather(
          *(
            client.completions.create(
              model=fixtures.NAME, prompt=text, max_tokens=8, temperature=0
            )
            for text in texts
          )
        )
        stream = await client.completions.create(
          model=fixtures.NAME,
          prompt=texts[0],
          max_tokens=8,
          temperature=0,
          stream=True,
        )
        chunks = [chunk async for chunk in stream]
      return answers, chunks

    answers, chunks = asyncio.run(ask())
    for text, answer in zip(texts, answers, strict=True):
      tokens = self.likeliest(8, text)
      self.assertEqual(answer.choices[0].text, self.model.text(tokens), text)
    self.assertEqual(
      "".join(chunk.choices[0].text for chunk in chunks),
      answers[0].choices[0].text,
    )

  def test_characters_are_never_torn(self):
    said = "한글 😀🎉 žluťoučký ďábelské 漢字"
    chunks = self.chat(
      max_tokens=100,
      temperature=1,
      seed=1,
      stream=True,
      extra_body={"structured_outputs": {"choice": [said]}},
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    self.assertEqual("".join(pieces), said)
    self.assertNotIn("\ufffd", "".join(pieces))
    self.assertGreater(len(pieces), 10)

  def test_n(self):
    fields = {"temperature": 1, "seed": 11, "max_tokens": 20}
    several = self.chat(**fields, n=4).choices
    texts = [choice.message.content for choice in several]
    self.assertEqual([choice.index for choice in several], [0, 1, 2, 3])
    self.assertLen(set(texts), 4)
    alone = self.chat(**fields).choices[0].message.content
    self.assertEqual(texts[0], alone)

  def test_best_of(self):
    fields = {
      "model": fixtures.NAME,
      "prompt": _PROMPT,
      "seed": 2,
      "max_tokens": 8,
      "logprobs": 0,
    }
    all_ = self.client.completions.create(**fields, n=4).choices
    (best,) = self.client.completions.create(**fields, best_of=4).choices
    means = [np.mean(choice.logprobs.token_logprobs) for choice in all_]
    self.assertEqual(best.text, all_[int(np.argmax(means))].text)

  # -- Ends -------------------------------------------------------------------

  @parameterized.parameters(False, True)
  def test_stop(self, is_included):
    text = self.complete().text
    stop = text[3:6]  # In the midst of tokens, perhaps.
    wanted = text[: text.index(stop) + (len(stop) if is_included else 0)]
    extra = {"include_stop_str_in_output": is_included}
    choice = self.complete(stop=[stop, "never"], extra_body=extra)
    self.assertEqual(choice.text, wanted)
    self.assertEqual(choice.finish_reason, "stop")
    self.assertEqual(choice.stop_reason, stop)
    pieces = self.client.completions.create(
      model=fixtures.NAME,
      prompt=_PROMPT,
      max_tokens=12,
      temperature=0,
      stop=stop,
      stream=True,
      extra_body=extra,
    )
    self.assertEqual("".join(p.choices[0].text for p in pieces), wanted)

  def test_ends_by_tokens(self):
    tokens = self.likeliest()
    choice = self.complete(extra_body={"stop_token_ids": [tokens[4]]})
    self.assertEqual(
      choice.text, self.model.text(tokens[: tokens.index(tokens[4])])
    )
    self.assertEqual(choice.finish_reason, "stop")
    eos = self.model.tokenizer.eos_id
    bias = {"logit_bias": {str(eos): 100}}
    for extra, finish, num in (
      ({}, "stop", 1),
      ({"ignore_eos": True}, "length", 12),
      ({"min_tokens": 5}, "stop", 6),
    ):
      choice = self.complete(**bias, extra_body=extra)
      self.assertEqual(choice.finish_reason, finish, extra)
      self.assertLen(choice.token_ids, num)

  def test_no_tokens(self):
    choice = self.complete(max_tokens=0, echo=True)
    self.assertEqual(choice.text, _PROMPT)
    self.assertEqual(choice.finish_reason, "length")

  # -- How tokens are chosen --------------------------------------------------

  def test_seed(self):
    def ask(seed):
      return self.complete(temperature=1, seed=seed, max_tokens=40).token_ids

    alone = ask(1)
    self.assertEqual(ask(1), alone)
    self.assertNotEqual(ask(2), alone)
    # In company, at any place of a batch.
    found = {}
    threads = [
      threading.Thread(target=lambda i=i: found.update({i: ask(i % 3)}))
      for i in range(9)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    for i in (1, 4, 7):
      self.assertEqual(found[i], alone)
    self.assertEqual(found[0], found[6])

  @parameterized.parameters(
    {"top_p": 1e-6},
    {"extra_body": {"top_k": 1}},
    {"extra_body": {"min_p": 1}},
  )
  def test_only_the_likeliest(self, **fields):
    choice = self.complete(temperature=2, seed=1, **fields)
    self.assertEqual(choice.token_ids, self.likeliest())

  def test_logit_bias(self):
    first, *_ = self.likeliest()
    forced = self.id_of("z")
    choice = self.complete(logit_bias={str(forced): 100})
    self.assertEqual(choice.text, "z" * 12)
    choice = self.complete(temperature=1, seed=1, logit_bias={str(forced): 100})
    self.assertEqual(choice.text, "z" * 12)
    choice = self.complete(logit_bias={str(first): -100}, max_tokens=1)
    rows = self.model.logprobs(self.model.prompt(_PROMPT))[-1]
    self.assertEqual(choice.token_ids, [int(np.argsort(rows)[-2])])
    # As many as can be.
    likeliest = [int(token) for token in np.argsort(rows)[::-1]]
    choice = self.complete(
      temperature=2,
      seed=1,
      max_tokens=1,
      logit_bias={str(token): -100 for token in likeliest[:300]},
    )
    self.assertIn(choice.token_ids[0], likeliest[300:])
    with self.assertRaises(openai.BadRequestError):
      self.complete(logit_bias={str(token): -100 for token in likeliest[:301]})

  @parameterized.parameters(
    {"presence_penalty": 2.0}, {"frequency_penalty": 0.7}
  )
  def test_penalties(self, **fields):
    prompt = self.model.prompt(_PROMPT)
    said = []
    first = self.id_of("z")
    counts = np.zeros(fixtures.VOCAB_SIZE)
    bias = np.zeros(fixtures.VOCAB_SIZE)
    bias[first] = 6.0  # So that something is repeated.
    for _ in range(12):
      penalty = fields.get("frequency_penalty", 0.0) * counts
      penalty += fields.get("presence_penalty", 0.0) * (counts > 0)
      rows = self.model.logprobs([*prompt, *said])[-1]
      said.append(int(np.argmax(rows + bias - penalty)))
      counts[said[-1]] += 1
    choice = self.complete(logit_bias={str(first): 6.0}, **fields)
    self.assertEqual(choice.token_ids, said)
    self.assertGreater(counts[first], 1)

  # -- Log-probabilities ------------------------------------------------------

  def test_logprobs(self):
    prompt = self.chat_prompt(("user", _HELLO[0]["content"]))
    answer = self.chat(
      logprobs=True,
      top_logprobs=5,
      temperature=1,
      seed=3,
      max_tokens=10,
      extra_body={"return_token_ids": True},
    )
    (choice,) = answer.choices
    rows = self.model.logprobs([*prompt, *choice.token_ids])[len(prompt) - 1 :]
    text = b""
    for entry, token, row in zip(
      choice.logprobs.content, choice.token_ids, rows[:-1], strict=True
    ):
      self.assertAlmostEqual(entry.logprob, row[token], delta=1e-4)
      tops = [top.logprob for top in entry.top_logprobs]
      np.testing.assert_allclose(tops, np.sort(row)[:-6:-1], atol=1e-4)
      text += bytes(entry.bytes)
    self.assertEqual(text.decode(errors="replace"), choice.message.content)

  def test_echo_with_logprobs(self):
    # As evaluations ask: nothing new, or one token that is cut off.
    ids = self.model.prompt(_PROMPT)
    for num in (0, 1):
      choice = self.complete(prompt=ids, echo=True, logprobs=1, max_tokens=num)
      found = choice.logprobs
      self.assertLen(found.tokens, len(ids) + num)
      self.assertIsNone(found.token_logprobs[0])
      self.assertIsNone(found.top_logprobs[0])
      rows = self.model.logprobs(ids)
      scores = found.token_logprobs[1 : len(ids)]
      wanted = rows[np.arange(len(ids) - 1), ids[1:]]
      np.testing.assert_allclose(scores, wanted, atol=1e-4)
      tops = [max(top.values()) for top in found.top_logprobs[1 : len(ids)]]
      np.testing.assert_allclose(tops, rows[:-1].max(axis=-1), atol=1e-4)
      self.assertStartsWith(choice.text, _PROMPT)
      for token, offset in zip(
        found.tokens[1 : len(ids)], found.text_offset[1:], strict=False
      ):
        self.assertEqual(choice.text[offset : offset + len(token)], token)

  def test_prompt_logprobs(self):
    ids = self.model.prompt(_PROMPT)
    choice = self.complete(
      prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    rows = self.model.logprobs(ids)
    self.assertIsNone(choice.prompt_logprobs[0])
    for entry, token, row in zip(
      choice.prompt_logprobs[1:], ids[1:], rows[:-1], strict=True
    ):
      found = entry[str(token)]
      self.assertAlmostEqual(found["logprob"], row[token], delta=1e-4)
      self.assertEqual(found["rank"], 1 + int((row > row[token]).sum()))
      self.assertEqual(found["decoded_token"], self.model.text([token]))

  # -- Rules ------------------------------------------------------------------

  def test_parse(self):
    answer = self.client.chat.completions.parse(
      model=fixtures.NAME,
      messages=_HELLO,
      response_format=_Weather,
      temperature=1,
      seed=1,
      max_tokens=200,
    )
    (choice,) = answer.choices
    self.assertIsInstance(choice.message.parsed, _Weather)
    self.assertEqual(choice.finish_reason, "stop")
    self.assertEqual(
      json.loads(choice.message.content), choice.message.parsed.model_dump()
    )

  def test_parse_of_what_is_cut_off(self):
    with self.assertRaises(openai.LengthFinishReasonError):
      self.client.chat.completions.parse(
        model=fixtures.NAME,
        messages=_HELLO,
        response_format=_Weather,
        max_tokens=3,
      )

  def test_json_object(self):
    answer = self.chat(
      response_format={"type": "json_object"},
      logit_bias={str(self.id_of("{")): 100, str(self.id_of("}")): 50},
      max_tokens=100,
    )
    (choice,) = answer.choices
    self.assertEqual(choice.message.content, "{}")
    self.assertEqual(choice.finish_reason, "stop")
    for seed in range(3):
      said = self.chat(
        response_format={"type": "json_object"},
        temperature=1.0,
        seed=seed,
        max_tokens=10,
      )
      self.assertStartsWith(said.choices[0].message.content, "{")

  @parameterized.parameters(
    (
      {"structured_outputs": {"regex": "[a-c]{3}-[0-9]{2}"}},
      "[a-c]{3}-[0-9]{2}",
    ),
    ({"guided_regex": "(ab|cd){2}"}, "(ab|cd){2}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z")'}}, "x[yz]"),
    ({"guided_json": {"enum": [1, "two"]}}, '1|"two"'),
  )
  def test_rules_in_other_words(self, extra, pattern):
    for seed in range(3):
      choice = self.complete(
        temperature=1, seed=seed, max_tokens=30, extra_body=extra
      )
      self.assertRegex(choice.text, f"^({pattern})$")
      self.assertEqual(choice.finish_reason, "stop")

  # -- Tools ------------------------------------------------------------------

  def check_call(self, call, *names):
    self.assertIn(call.function.name, names)
    arguments = json.loads(call.function.arguments)
    if call.function.name == "switch":
      self.assertIsInstance(arguments.pop("on"), bool)
    else:
      self.assertIn(arguments.pop("unit"), _UNITS)
      self.assertIn(arguments.pop("days"), range(1, 10))
    self.assertEmpty(arguments)

  @parameterized.parameters(0, 1, 2)
  def test_a_tool_must_be_called(self, seed):
    answer = self.chat(
      tools=_TOOLS,
      tool_choice="required",
      parallel_tool_calls=False,
      temperature=1,
      seed=seed,
      max_tokens=200,
    )
    (choice,) = answer.choices
    self.assertEqual(choice.finish_reason, "tool_calls")
    self.assertIsNone(choice.message.content)
    (call,) = choice.message.tool_calls
    self.check_call(call, "weather", "switch")
    # What was called and answered can be sent back.
    result = {"role": "tool", "tool_call_id": call.id, "content": "ok"}
    self.chat(messages=[*_HELLO, choice.message, result], tools=_TOOLS)

  def test_a_tool_is_named(self):
    named = {"type": "function", "function": {"name": "switch"}}
    for seed in range(3):
      answer = self.chat(
        tools=_TOOLS,
        tool_choice=named,
        parallel_tool_calls=False,
        temperature=1,
        seed=seed,
        max_tokens=200,
      )
      (call,) = answer.choices[0].message.tool_calls
      self.check_call(call, "switch")

  def test_a_tool_with_nested_arguments(self):
    answer = self.client.chat.completions.parse(
      model=fixtures.NAME,
      messages=_HELLO,
      tools=[openai.pydantic_function_tool(_Trip), _TOOLS[1]],
      tool_choice={"type": "function", "function": {"name": "_Trip"}},
      parallel_tool_calls=False,
      temperature=1,
      seed=1,
      max_tokens=200,
    )
    (call,) = answer.choices[0].message.tool_calls
    self.assertIsInstance(call.function.parsed_arguments, _Trip)

  def test_tools_in_a_stream(self):
    fields = {
      "tools": _TOOLS,
      "tool_choice": "required",
      "temperature": 1,
      "seed": 4,
      "max_tokens": 150,
      "parallel_tool_calls": False,
    }
    (whole,) = self.chat(**fields).choices[0].message.tool_calls
    chunks = list(self.chat(**fields, stream=True))
    deltas = [
      delta
      for chunk in chunks
      for delta in chunk.choices[0].delta.tool_calls or []
    ]
    self.assertEqual(deltas[0].function.name, whole.function.name)
    self.assertEqual([delta.index for delta in deltas], [0] * len(deltas))
    self.assertLen([delta for delta in deltas if delta.id], 1)
    pieces = [delta.function.arguments for delta in deltas]
    self.assertEqual("".join(pieces), whole.function.arguments)
    self.assertGreater(len(pieces), 3)
    self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")
    with self.client.chat.completions.stream(
      model=fixtures.NAME,
      messages=_HELLO,
      **fields | {"tools": [_TOOLS[1]]},
    ) as stream:
      kinds = {event.type for event in stream}
      (call,) = stream.get_final_completion().choices[0].message.tool_calls
    self.assertIn("tool_calls.function.arguments.done", kinds)
    self.check_call(call, "switch")

  def test_tools_need_not_be_called(self):
    without = self.chat(tools=_TOOLS[:1], tool_choice="none")
    plain = self.chat()
    self.assertEqual(
      without.choices[0].message.content, plain.choices[0].message.content
    )
    auto = self.chat(tools=_TOOLS[:1], extra_body={"return_token_ids": True})
    (choice,) = auto.choices
    prompt = self.model.tokenizer.decode(auto.prompt_token_ids)
    self.assertIn('"name": "weather"', prompt)
    tokens = self.model.greedy(auto.prompt_token_ids, 12)
    self.assertEqual(choice.message.content, self.model.text(tokens))

  # -- Embeddings -------------------------------------------------------------

  def test_embeddings(self):
    texts = [_PROMPT, "모든 문장은 끝에서", "a " * 60]
    answer = self.client.embeddings.create(
      model=fixtures.NAME, input=texts, encoding_format="float"
    )
    for text, found in zip(texts, answer.data, strict=True):
      wanted = self.model.hidden(self.model.prompt(text)).mean(axis=0)
      np.testing.assert_allclose(found.embedding, wanted, atol=1e-4)
    num = sum(len(self.model.prompt(text)) for text in texts)
    self.assertEqual(answer.usage.prompt_tokens, num)
    # The client asks for base64 by itself.
    packed = self.client.embeddings.create(model=fixtures.NAME, input=texts[0])
    self.assertEqual(packed.data[0].embedding, answer.data[0].embedding)
    raw = self.client.embeddings.with_raw_response.create(
      model=fixtures.NAME, input=texts[0], encoding_format="base64"
    )
    data = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])
    self.assertEqual(
      list(struct.unpack(f"<{len(data) // 4}f", data)),
      answer.data[0].embedding,
    )

  # -- Who leaves -------------------------------------------------------------

  def test_a_stream_that_is_left_frees_its_place(self):
    before = self.server.figures()
    stream = self.client.completions.create(
      model=fixtures.NAME,
      prompt=_PROMPT,
      n=4,
      max_tokens=1000,
      stream=True,
      extra_body={"ignore_eos": True},
    )
    for _, _ in zip(stream, range(8), strict=False):
      pass
    self.assertGreater(self.server.figures()["vllm:num_requests_running"], 0)
    stream.close()
    self.server.until_idle(1.0)
    made = self.server.figures()["vllm:generation_tokens_total"]
    self.assertLess(made - before["vllm:generation_tokens_total"], 3600)
    # All four rows are free at once.
    self.assertLen(self.chat(n=4, temperature=1).choices, 4)

  def test_nothing_is_compiled_late(self):
    for num in (1, 17, 130, 500):
      self.complete(prompt=[5] * num, max_tokens=3, n=1)
    late = self.server.figures()["cacao:compiles_after_ready_total"]
    self.assertEqual(late, 0)


if __name__ == "__main__":
  absltest.main()
