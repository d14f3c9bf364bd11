import asyncio
import unittest

from absl.testing import absltest
from absl.testing import parameterized

from data import tokenizer as tokenizer_lib
from serve import engine as engine_lib
from serve import request as request_lib
from serve import scheduler
from serve.api import fixtures

_PATH = "/v1/completions"


class CompletionsTest(parameterized.TestCase, unittest.IsolatedAsyncioTestCase):
  async def test_a_text_and_what_is_asked_of_the_engine(self):
    engine = fixtures.FakeEngine(fixtures.saying("Hello, 한글 world"))
    async with fixtures.serving(engine) as client:
      response = await client.http.post(
        _PATH,
        json={
          "model": fixtures.MODEL,
          "prompt": "Hi",
          "max_tokens": 40,
          "temperature": 0.5,
          "top_p": 0.9,
          "top_k": 3,
          "min_p": 0.1,
          "presence_penalty": 1,
          "frequency_penalty": -1,
          "repetition_penalty": 1.5,
          "logit_bias": {"7": -100, "8": 2.5},
          "seed": 11,
          "stop_token_ids": [9],
          "min_tokens": 2,
          "user": "u",
          "priority": -3,
          "timeout": 5,
        },
      )
      body = await response.json()
    self.assertEqual(response.status, 200)
    self.assertEqual(response.headers["x-checkpoint-step"], "7")
    self.assertEqual(body["object"], "text_completion")
    self.assertEqual(body["model"], fixtures.MODEL)
    self.assertEqual(body["system_fingerprint"], "step-7")
    choice = {
      "index": 0,
      "text": "Hello, 한글 world",
      "logprobs": None,
      "finish_reason": "stop",
      "stop_reason": None,
    }
    self.assertEqual(body["choices"], [choice])
    (asked,) = engine.requests
    num = len(fixtures.saying("Hello, 한글 world")(asked).tokens)
    self.assertEqual(
      body["usage"],
      {
        "prompt_tokens": 3,
        "completion_tokens": num,
        "total_tokens": 3 + num,
        "prompt_tokens_details": {"cached_tokens": 1},
      },
    )
    self.assertEqual(asked.prompt[0], 1)  # BOS
    self.assertEqual(asked.max_tokens, 40)
    self.assertEqual(asked.min_tokens, 2)
    self.assertEqual(asked.stop_ids, {9, fixtures.END})
    self.assertEqual(asked.user, "u")
    self.assertEqual(asked.priority, -3)
    self.assertIsNotNone(asked.deadline)
    self.assertEqual(
      asked.sampling,
      request_lib.Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logit_bias=((7, -100.0), (8, 2.5)),
        seed=11,
        num_logprobs=None,
      ),
    )

  async def test_prompts_of_all_kinds(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      for prompt, wanted in (
        ("", [(1,)]),
        (["", ""], [(1,), (1,)]),
        ([7, 8], [(7, 8)]),
        ([[7], [8, 9.0]], [(7,), (8, 9)]),
      ):
        engine.requests.clear()
        status, body = await client.post(_PATH, prompt=prompt, max_tokens=1)
        self.assertEqual(status, 200, body)
        self.assertEqual([r.prompt for r in engine.requests], wanted)
        indices = [choice["index"] for choice in body["choices"]]
        self.assertEqual(indices, list(range(len(wanted))))
      engine.requests.clear()
      await client.post(_PATH, prompt="", add_special_tokens=False)
      # Nothing to go on with: after the end of another text.
      self.assertEqual(engine.requests[0].prompt, (2,))
      self.assertEqual(engine.requests[0].max_tokens, 16)

  async def test_choices_share_a_prompt_and_have_their_own_seeds(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      _, body = await client.post(
        _PATH, prompt=["a", "bc"], n=2, seed=3, max_tokens=2
      )
      _, alone = await client.post(_PATH, prompt="a", seed=3, max_tokens=2)
    first, second, third, fourth, single = engine.requests
    self.assertIsNone(first.leader)
    self.assertEqual(second.leader, first.id)
    self.assertIsNone(third.leader)
    self.assertEqual(fourth.leader, third.id)
    self.assertEqual([first.sampling.seed, third.sampling.seed], [3, 3])
    self.assertEqual(second.sampling.seed, fourth.sampling.seed)
    self.assertNotEqual(first.sampling.seed, second.sampling.seed)
    self.assertEqual(single.sampling.seed, 3)
    self.assertEqual(alone["choices"][0]["text"], body["choices"][0]["text"])
    self.assertEqual(
      body["usage"]["prompt_tokens"], len(first.prompt) + len(third.prompt)
    )
    self.assertEqual(body["usage"]["completion_tokens"], 8)

  @parameterized.parameters(-1, -(2**63), 2**63 - 1, 2**32)
  async def test_any_seed(self, seed):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      for _ in range(2):
        status, _ = await client.post(_PATH, prompt="a", seed=seed)
        self.assertEqual(status, 200)
    first, second = engine.requests
    self.assertEqual(first.sampling.seed, second.sampling.seed)
    self.assertBetween(first.sampling.seed, 0, 2**32 - 1)

  async def test_best_of(self):
    # The fake's log-probabilities fall with the token.
    def script(request):
      number = int(request.id.rpartition("-")[2])
      return fixtures.Script(tokens=[(60, 50, 55)[number]])

    engine = fixtures.FakeEngine(script)
    async with fixtures.serving(engine) as client:
      _, body = await client.post(_PATH, prompt="a", n=2, best_of=3)
      _, all_of_them = await client.post(_PATH, prompt="a", n=3, best_of=3)
      self.assertLen(all_of_them["choices"], 3)
      status, refusal = await client.post(
        _PATH, prompt="a", best_of=2, stream=True
      )
    self.assertEqual(status, 400)
    self.assertEqual(refusal["error"]["param"], "best_of")
    texts = [choice["text"] for choice in body["choices"]]
    vocabulary = fixtures.context(engine).known_words.vocabulary
    self.assertEqual(texts, [vocabulary.text(50), vocabulary.text(55)])
    self.assertEqual([c["index"] for c in body["choices"]], [0, 1])
    self.assertIsNone(body["choices"][0]["logprobs"])
    self.assertEqual(body["usage"]["completion_tokens"], 3)

  async def test_echo_with_logprobs(self):
    engine = fixtures.FakeEngine(fixtures.saying("bye"))
    async with fixtures.serving(engine) as client:
      for max_tokens in (0, 1):
        _, body = await client.post(
          _PATH,
          prompt=[1, 50, 51, 52],
          max_tokens=max_tokens,
          echo=True,
          logprobs=1,
        )
        (choice,) = body["choices"]
        logprobs = choice["logprobs"]
        num = 4 + max_tokens
        for name in logprobs:
          self.assertLen(logprobs[name], num)
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertIsNone(logprobs["top_logprobs"][0])
        self.assertEqual(logprobs["token_logprobs"][1:4], [-0.5, -0.51, -0.52])
        self.assertEqual("".join(logprobs["tokens"][1:]), choice["text"])
        self.assertEqual(choice["finish_reason"], "length")
        for place, token in enumerate(logprobs["tokens"][1:], start=1):
          offset = logprobs["text_offset"][place]
          self.assertEqual(choice["text"][offset : offset + len(token)], token)
    self.assertEqual(engine.requests[0].num_prompt_logprobs, 1)

  async def test_echo_of_a_torn_character(self):
    tokenizer = tokenizer_lib.Tokenizer.load(fixtures.TOKENIZER)
    ids = tokenizer.encode_with_special_tokens("龘")
    self.assertLen(ids, 3)
    for said, num, text, offsets in (
      ([*ids[2:], 50], 2, "龘" + tokenizer.decode([50]), [0, 0, 0, 1]),
      ([50, 51], 1, "\ufffd" + tokenizer.decode([50]), [0, 0, 1]),
      ([], 0, "\ufffd", [0, 0]),
    ):
      script = fixtures.Script(tokens=said)
      engine = fixtures.FakeEngine(lambda _, script=script: script)
      async with fixtures.serving(engine) as client:
        for stream in (False, True):
          asked = {
            "prompt": ids[:2],
            "max_tokens": num,
            "echo": True,
            "logprobs": 0,
          }
          if stream:
            events = await client.stream(_PATH, **asked)
            choices = [event["choices"][0] for event in events[:-1]]
          else:
            _, body = await client.post(_PATH, **asked)
            choices = body["choices"]
          self.assertEqual("".join(c["text"] for c in choices), text)
          places = []
          for choice in choices:
            places += choice["logprobs"]["text_offset"]
          self.assertEqual(places, offsets)

  async def test_what_the_server_adds_is_not_echoed(self):
    engine = fixtures.FakeEngine(fixtures.saying("bye"))
    async with fixtures.serving(engine) as client:
      for prompt, tokens in (
        ("ab", ["a", "b"]),
        ("<|begin_of_text|>a", ["<|begin_of_text|>", "a"]),
        ("", []),
      ):
        for adds in (True, False):
          _, body = await client.post(
            _PATH,
            prompt=prompt,
            max_tokens=0,
            echo=True,
            logprobs=0,
            add_special_tokens=adds,
          )
          (choice,) = body["choices"]
          found = choice["logprobs"]
          self.assertEqual(found["tokens"], tokens)
          for values in found.values():
            self.assertLen(values, len(tokens))
          # The BOS has none.
          if tokens:
            self.assertIsNone(found["token_logprobs"][0])
          self.assertEqual(choice["text"], prompt)

  async def test_the_token_at_the_end_is_among_the_logprobs(self):
    engine = fixtures.FakeEngine(fixtures.saying(""))
    async with fixtures.serving(engine) as client:
      _, body = await client.post(_PATH, prompt="a", logprobs=0)
    (choice,) = body["choices"]
    self.assertEqual(choice["text"], "")
    self.assertEqual(choice["logprobs"]["tokens"], ["<|eot_id|>"])
    self.assertEqual(body["usage"]["completion_tokens"], 1)

  async def test_prompt_logprobs_and_ids(self):
    engine = fixtures.FakeEngine(fixtures.saying("b"))
    async with fixtures.serving(engine) as client:
      _, body = await client.post(
        _PATH, prompt=[50, 51], prompt_logprobs=1, return_token_ids=True
      )
      events = await client.stream(
        _PATH, prompt=[50, 51], prompt_logprobs=1, return_token_ids=True
      )
    (choice,) = body["choices"]
    entry = {"logprob": -0.51, "rank": 1, "decoded_token": "N"}
    self.assertEqual(choice["prompt_logprobs"], [None, {"51": entry}])
    self.assertEqual(choice["prompt_token_ids"], [50, 51])
    self.assertEqual(choice["token_ids"][-1], fixtures.END)
    first = events[0]["choices"][0]
    self.assertEqual(first["prompt_logprobs"], choice["prompt_logprobs"])
    self.assertNotIn("prompt_logprobs", events[1]["choices"][0])

  @parameterized.parameters(
    ({"stop": "lo"}, "Hel", "lo"),
    ({"stop": ["wor", ", w"]}, "Hello", ", w"),
    ({"stop": "lo", "include_stop_str_in_output": True}, "Hello", "lo"),
    ({"stop": ["absent"]}, "Hello, world", None),
    ({"stop": "H", "min_tokens": 1}, "Hello, world", None),
  )
  async def test_stop(self, fields, text, reason):
    engine = fixtures.FakeEngine(fixtures.saying("Hello, world", seconds=1e-3))
    async with fixtures.serving(engine) as client:
      _, body = await client.post(_PATH, prompt="a", **fields)
      (choice,) = body["choices"]
      self.assertEqual(choice["text"], text)
      self.assertEqual(choice["stop_reason"], reason)
      self.assertEqual(choice["finish_reason"], "stop")
      events = await client.stream(_PATH, prompt="a", **fields)
    streamed = "".join(event["choices"][0]["text"] for event in events[:-1])
    self.assertEqual(streamed, text)

  async def test_stop_tokens_and_ignoring_the_end(self):
    engine = fixtures.FakeEngine(
      lambda request: fixtures.Script(tokens=[50, fixtures.END, 51, 52])
    )
    async with fixtures.serving(engine) as client:
      _, body = await client.post(
        _PATH, prompt="a", ignore_eos=True, stop_token_ids=[51]
      )
    (choice,) = body["choices"]
    self.assertEqual(choice["text"], "M")
    self.assertEqual(choice["stop_reason"], 51)
    self.assertEqual(body["usage"]["completion_tokens"], 3)

  async def test_stream(self):
    engine = fixtures.FakeEngine(fixtures.saying("한글 ok"))
    async with fixtures.serving(engine) as client:
      _, whole = await client.post(_PATH, prompt="a", n=2, logprobs=1, seed=1)
      events = await client.stream(
        _PATH,
        prompt="a",
        n=2,
        logprobs=1,
        seed=1,
        stream_options={"include_usage": True},
      )
    self.assertEqual(events[-1], "[DONE]")
    self.assertEqual(events[-2]["choices"], [])
    self.assertEqual(events[-2]["usage"], whole["usage"])
    self.assertLen({event["id"] for event in events[:-1]}, 1)
    for index in range(2):
      pieces = [
        event["choices"][0]
        for event in events[:-2]
        if event["choices"][0]["index"] == index
      ]
      wanted = whole["choices"][index]
      self.assertEqual("".join(p["text"] for p in pieces), wanted["text"])
      for name, values in wanted["logprobs"].items():
        joined = [v for piece in pieces for v in piece["logprobs"][name]]
        self.assertEqual(joined, values)
      reasons = [piece["finish_reason"] for piece in pieces]
      self.assertEqual(reasons, [None] * (len(pieces) - 1) + ["stop"])
    self.assertIsNone(events[0]["usage"])

  async def test_usage_with_every_chunk_or_none(self):
    engine = fixtures.FakeEngine(fixtures.saying("ab"))
    async with fixtures.serving(engine) as client:
      events = await client.stream(
        _PATH, prompt="a", stream_options={"continuous_usage_stats": True}
      )
      numbers = [event["usage"]["completion_tokens"] for event in events[:-1]]
      self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
      events = await client.stream(_PATH, prompt="a")
    self.assertNotIn("usage", events[0])

  @parameterized.parameters(
    ({"prompt": [512]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"logit_bias": {"512": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
    ({"repetition_penalty": 1e-46}, "repetition_penalty"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop_token_ids": [512]}, "stop_token_ids"),
    ({"stop_token_ids": [*range(33)]}, "stop_token_ids"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": {"type": "nothing"}}, "guided_json"),
    ({"guided_grammar": "nonsense"}, "guided_grammar"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
  )
  async def test_refuses(self, fields, param):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      status, body = await client.post(_PATH, **({"prompt": "a"} | fields))
    self.assertEqual(status, 400)
    self.assertEqual(body["error"]["param"], param)
    self.assertEqual(body["error"]["type"], "invalid_request_error")
    self.assertEmpty(engine.requests)

  async def test_the_context_is_full(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine, max_len=8) as client:
      for fields, param in (
        ({"prompt": [5] * 8}, "prompt"),
        ({"prompt": [5] * 6, "max_tokens": 3}, "max_tokens"),
        ({"prompt": "x" * 10_000}, "prompt"),
      ):
        status, body = await client.post(_PATH, **fields)
        self.assertEqual(status, 400)
        self.assertEqual(body["error"]["code"], "context_length_exceeded")
        self.assertEqual(body["error"]["param"], param)
      # What is not asked for may be less.
      await client.post(_PATH, prompt=[5] * 6)
    self.assertEqual(engine.requests[0].max_tokens, 2)

  async def test_the_engine_refuses(self):
    engine = fixtures.FakeEngine()
    full = scheduler.QueueFullError("64 requests wait.", 2.5)
    async with fixtures.serving(engine) as client:
      for error, status, code in (
        (full, 429, "queue_full"),
        (engine_lib.UnavailableError("It drains."), 503, "unavailable"),
        (ValueError("It does not fit."), 400, None),
      ):
        engine.refuses = error
        response = await client.http.post(
          _PATH, json={"model": fixtures.MODEL, "prompt": "a"}
        )
        body = await response.json()
        self.assertEqual(response.status, status)
        self.assertEqual(body["error"]["code"], code)
        if status == 429:
          self.assertEqual(response.headers["Retry-After"], "3")

  @parameterized.parameters(
    (request_lib.FinishReason.ERROR, 500, "request_failed"),
    (request_lib.FinishReason.DEADLINE, 408, "timeout"),
  )
  async def test_the_engine_fails(self, finish, status, code):
    engine = fixtures.FakeEngine(
      lambda request: fixtures.Script(
        tokens=[50, 51], finish=finish, error="It went wrong."
      )
    )
    async with fixtures.serving(engine) as client:
      response = await client.http.post(
        _PATH, json={"model": fixtures.MODEL, "prompt": "a"}
      )
      body = await response.json()
      self.assertEqual(response.status, status)
      self.assertEqual(response.headers["x-should-retry"], "false")
      self.assertEqual(body["error"]["code"], code)
      # Within a stream the error is the last event.
      events = await client.stream(_PATH, prompt="a")
    self.assertEqual(events[0]["choices"][0]["text"], "M")
    self.assertEqual(events[-1]["error"]["code"], code)

  async def test_one_failed_choice_ends_all(self):
    def script(request):
      if request.leader is None:
        return fixtures.Script(tokens=[50] * 1000, seconds=0.01)
      return fixtures.Script(
        tokens=[50], finish=request_lib.FinishReason.ERROR, error="no"
      )

    engine = fixtures.FakeEngine(script)
    async with fixtures.serving(engine) as client:
      status, _ = await client.post(_PATH, prompt="a", n=2, max_tokens=1000)
      self.assertEqual(status, 500)
      await _until(lambda: not engine.num_running)
    self.assertEqual(engine.aborted, [engine.requests[0].id])

  @parameterized.parameters(True, False)
  async def test_a_client_that_leaves_ends_its_request(self, stream):
    # Nothing comes for a long time, so that no write can fail.
    engine = fixtures.FakeEngine(
      lambda request: fixtures.Script(tokens=[50] * 9, seconds=60)
    )
    async with fixtures.serving(engine) as client:
      asked = asyncio.ensure_future(
        client.post(_PATH, prompt="a", stream=stream)
      )
      await _until(lambda: engine.num_running)
      asked.cancel()
      await _until(lambda: not engine.num_running)
    self.assertLen(engine.aborted, 1)

  async def test_without_a_tokenizer(self):
    engine = fixtures.FakeEngine(
      lambda request: fixtures.Script(tokens=[50, fixtures.END])
    )
    async with fixtures.serving(engine, None) as client:
      _, body = await client.post(
        _PATH, prompt=[7], logprobs=1, echo=True, max_tokens=3
      )
      (choice,) = body["choices"]
      self.assertEqual(choice["text"], "")
      self.assertEqual(choice["token_ids"], [50, fixtures.END])
      self.assertEqual(
        choice["logprobs"]["tokens"],
        ["token_id:7", "token_id:50", f"token_id:{fixtures.END}"],
      )
      for fields in ({"prompt": "a"}, {"prompt": [7], "stop": "a"}):
        status, body = await client.post(_PATH, **fields)
        self.assertEqual(status, 400)
        self.assertEqual(body["error"]["code"], "no_tokenizer")


async def _until(condition):
  async with asyncio.timeout(5):
    while not condition():
      await asyncio.sleep(0.01)


if __name__ == "__main__":
  absltest.main()
