"""Every field that clients can send changes the answer, or is refused by name.

None is ignored. The fields are those of the openai package's methods, and what
users of vLLM, SGLang and TGI send beside them. How answers to the filters of
tokens and to penalties have to be, NumPy says.
"""

import inspect
import pathlib
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import openai

from serve.clients import fixtures

_PROMPT = "In the beginning"
_SAMPLED = {"temperature": 2.0, "seed": 1}
_LONG = {"temperature": 1.0, "seed": 1, "max_tokens": 100}
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_FUNCTION = {"name": "f", "parameters": _NOTHING}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
# A field, a value, and fields without which it would say nothing. Ids below 6
# are special tokens; 7 is one of a text.
_HONOURED: list[tuple[str, Any, dict[str, Any]]] = [
  ("n", 2, {}),
  ("temperature", 2.0, {"seed": 1}),
  ("top_p", 1e-6, _SAMPLED),
  ("top_k", 1, _SAMPLED),
  ("min_p", 1.0, _SAMPLED),
  ("presence_penalty", 2.0, _LONG),
  ("frequency_penalty", 2.0, _LONG),
  ("repetition_penalty", 50.0, _LONG),
  ("logit_bias", {"7": 100}, {}),
  ("seed", 2, _SAMPLED),
  ("stop", ["<"], {"logit_bias": {"<": 100}}),
  (
    "include_stop_str_in_output",
    True,
    {"logit_bias": {"<": 100}, "stop": ["<"]},
  ),
  ("stop_token_ids", [7], {"logit_bias": {"7": 100}}),
  ("ignore_eos", True, {"logit_bias": {"EOS": 100}}),
  ("min_tokens", 4, {"logit_bias": {"EOS": 100}}),
  (
    "skip_special_tokens",
    False,
    {"logit_bias": {"EOS": 100}, "ignore_eos": True},
  ),
  ("prompt_logprobs", 1, {}),
  ("return_token_ids", True, {}),
  ("response_format", _SCHEMA, {}),
  ("structured_outputs", {"choice": ["y"]}, {}),
  ("guided_json", {"const": 1}, {}),
  ("guided_regex", "y{3}", {}),
  ("guided_choice", ["y"], {}),
  ("guided_grammar", 'start: "y"', {}),
  ("max_tokens", 3, {}),
  ("stream", True, {}),
  ("stream_options", {"include_usage": True}, {"stream": True}),
]
_HONOURED_BY_KIND: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {
  "chat": [
    *_HONOURED,
    ("messages", [{"role": "user", "content": "b"}], {}),
    ("logprobs", True, {}),
    ("top_logprobs", 2, {"logprobs": True}),
    ("max_completion_tokens", 3, {}),
    ("tools", _TOOLS, {}),
    ("tool_choice", "required", {"tools": _TOOLS}),
    (
      "parallel_tool_calls",
      False,
      {
        "tools": _TOOLS,
        "tool_choice": "required",
        "max_tokens": 100,
        # The text ends only where nothing else may come.
        "logit_bias": {"EOS": -100},
      },
    ),
    ("add_generation_prompt", False, {}),
    ("continue_final_message", True, {"add_generation_prompt": False}),
  ],
  "completions": [
    *_HONOURED,
    ("prompt", "b", {}),
    ("logprobs", 2, {}),
    ("best_of", 3, _SAMPLED),
    ("echo", True, {}),
    ("add_special_tokens", False, {}),
  ],
  "embeddings": [
    ("input", "b", {}),
    ("add_special_tokens", False, {}),
    ("encoding_format", "base64", {}),
  ],
}
# They change no text: labels, order and deadlines.
_ACCEPTED: dict[str, dict[str, Any]] = {
  "user": {"user": "a"},
  "priority": {"priority": 3},
  "timeout": {"timeout": 50},
}
_ACCEPTED_BY_KIND: dict[str, dict[str, dict[str, Any]]] = {
  "chat": _ACCEPTED
  | {
    "metadata": {"metadata": {"a": "b"}},
    "safety_identifier": {"safety_identifier": "a"},
    "prompt_cache_key": {"prompt_cache_key": "a"},
    "service_tier": {"service_tier": "default"},
    "store": {"store": False},
    "modalities": {"modalities": ["text"]},
    "prompt_cache_retention": {"prompt_cache_retention": "in_memory"},
  },
  "completions": _ACCEPTED,
  "embeddings": _ACCEPTED,
}
_OF_OTHERS: dict[str, Any] = {
  "allowed_token_ids": [1],
  "bad_words": ["a"],
  "best_off": 2,
  "cache_salt": "a",
  "details": True,
  "do_sample": False,
  "ebnf": 'root ::= "a"',
  "json_schema": "{}",
  "kv_transfer_params": {},
  "length_penalty": 2.0,
  "logits_processors": [],
  "lora_path": "a",
  "max_new_tokens": 3,
  "mm_processor_kwargs": {},
  "no_stop_trim": True,
  "regex": "a",
  "repetition_detection": {},
  "request_id": "a",
  "return_tokens_as_token_ids": True,
  "spaces_between_special_tokens": False,
  "stop_regex": "a",
  "truncate": 3,
  "truncate_prompt_tokens": 3,
  "typical_p": 0.5,
  "use_beam_search": True,
  "vllm_xargs": {},
}
_REFUSED: dict[str, dict[str, Any]] = {
  "chat": _OF_OTHERS
  | {
    "add_special_tokens": True,
    "audio": {"voice": "a", "format": "wav"},
    "best_of": 2,
    "chat_template": "a",
    "chat_template_kwargs": {"enable_thinking": True},
    "documents": [{"title": "a", "text": "b"}],
    "echo": True,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "moderation": {"type": "auto"},
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
  },
  "completions": _OF_OTHERS | {"suffix": "a", "tools": _TOOLS},
  "embeddings": {
    "dimensions": 5,
    "input_type": "query",
    "normalize": True,
    "task": "retrieval",
    "truncate_prompt_tokens": 3,
  },
}
_BASE: dict[str, dict[str, Any]] = {
  "chat": {
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 12,
    "temperature": 0,
  },
  "completions": {"prompt": _PROMPT, "max_tokens": 12, "temperature": 0},
  "embeddings": {"input": _PROMPT, "encoding_format": "float"},
}
_OF_CLIENT = ("self", "extra_headers", "extra_query", "extra_body", "timeout")
_NUM_DRAWN = 512


class FieldsTest(parameterized.TestCase):
  # Its methods take what its types do not allow.
  methods: dict[str, Any]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model = fixtures.Model(folder)
    cls.server = cls.enterClassContext(fixtures.Server(cls.model, folder))
    client = cls.enterClassContext(
      openai.OpenAI(base_url=cls.server.base_url, api_key="x", max_retries=0)
    )
    cls.methods = {
      "chat": client.chat.completions,
      "completions": client.completions,
      "embeddings": client.embeddings,
    }

  def names(self, kind):
    """Parameters of a method of the client, but its own."""
    names = inspect.signature(self.methods[kind].create).parameters
    return set(names) - set(_OF_CLIENT)

  def ask(self, kind, **fields):
    """An answer, without what differs from call to call."""
    names = self.names(kind)
    fields = _BASE[kind] | fields
    if bias := fields.get("logit_bias"):
      (mark,) = self.model.tokenizer.encode("<")
      ids = {"EOS": str(self.model.tokenizer.eos_id), "<": str(mark)}
      fields["logit_bias"] = {ids.get(t, t): bias[t] for t in bias}
    extra = {name: fields.pop(name) for name in [*fields] if name not in names}
    answer = self.methods[kind].create(
      model=fixtures.NAME, extra_body=extra, **fields
    )
    parts = [answer] if hasattr(answer, "model_dump") else list(answer)
    return [_plain(part.model_dump()) for part in parts]

  @parameterized.parameters("chat", "completions", "embeddings")
  def test_nothing_is_forgotten(self, kind):
    told = {name for name, _, _ in _HONOURED_BY_KIND[kind]}
    told |= {*_ACCEPTED_BY_KIND[kind], *_REFUSED[kind], "model"}
    self.assertEmpty(self.names(kind) - told)

  @parameterized.parameters("chat", "completions", "embeddings")
  def test_honoured(self, kind):
    for name, value, more in _HONOURED_BY_KIND[kind]:
      with self.subTest(name):
        with_it = self.ask(kind, **(more | {name: value}))
        self.assertNotEqual(with_it, self.ask(kind, **more))

  @parameterized.parameters("chat", "completions", "embeddings")
  def test_accepted(self, kind):
    without = self.ask(kind)
    for name, fields in _ACCEPTED_BY_KIND[kind].items():
      with self.subTest(name):
        self.assertEqual(self.ask(kind, **fields), without)

  @parameterized.parameters("chat", "completions", "embeddings")
  def test_refused(self, kind):
    for name, value in _REFUSED[kind].items():
      with self.subTest(name):
        with self.assertRaises(openai.BadRequestError) as caught:
          self.ask(kind, **{name: value})
        param = str(caught.exception.param)
        self.assertEqual(param.partition("[")[0].partition(".")[0], name)

  def test_nul(self):
    # In texts it is a character as others.
    text = "a\0b"
    ids = self.model.prompt(text)
    for kind, fields in (
      ("completions", {"prompt": text, "stop": ["\0"]}),
      ("chat", {"messages": [{"role": "user", "content": text}]}),
      ("chat", {"guided_choice": [text], "user": text}),
    ):
      (answer,) = self.ask(kind, **fields)
      if "guided_choice" in fields:
        said = answer["choices"][0]["message"]["content"]
        self.assertEqual(said, text)
    (echoed,) = self.ask("completions", prompt=text, echo=True, max_tokens=0)
    self.assertEqual(echoed["choices"][0]["text"], text)
    _, found = self.server.ask("POST", "/tokenize", {"prompt": text})
    self.assertEqual(found["tokens"], ids)
    _, found = self.server.ask("POST", "/detokenize", {"tokens": ids[1:]})
    self.assertEqual(found["prompt"], text)
    # In names it is refused, as is one that JSON has not escaped.
    for kind, fields in (
      ("chat", {"messages": [{"role": "user\0", "content": "a"}]}),
      ("chat", {"temperature\0": 1}),
      ("chat", {"tool_choice": "auto\0", "tools": _TOOLS}),
      ("completions", {"logit_bias": {"7\0": 1}}),
      ("embeddings", {"encoding_format": "float\0"}),
    ):
      refused = self.assertRaises(openai.BadRequestError)
      with self.subTest(str(fields)), refused:
        self.ask(kind, **fields)
    status, _ = self.server.ask("POST", "/v1/completions", b'{"prompt": "\0"}')
    self.assertEqual(status, 400)

  def test_what_is_no_text_and_no_token(self):
    for prompt in ([], [fixtures.VOCAB_SIZE], [-1], [[]], ["a", [7]], [2**70]):
      with self.subTest(str(prompt)):
        with self.assertRaises(openai.BadRequestError) as caught:
          self.ask("completions", prompt=prompt)
        self.assertStartsWith(caught.exception.param, "prompt")
    status, found = self.server.ask(
      "POST", "/v1/completions", b'{"model": "tiny", "prompt": "\xff"}'
    )
    self.assertEqual(status, 400, found)
    (answer,) = self.ask("completions")
    self.assertLen(answer["choices"], 1)

  @parameterized.parameters(
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.4},
    {"min_p": 0.3},
    {"top_k": 20, "top_p": 0.6, "min_p": 0.02, "temperature": 1.5},
  )
  def test_tokens_are_drawn_as_numpy_says(self, **fields):
    logits = self.model.logits(self.model.prompt(_PROMPT))[-1]
    wanted = _probabilities(
      logits.astype(np.float64) / fields.get("temperature", 1.0), fields
    )
    counts = np.zeros(fixtures.VOCAB_SIZE)
    for seed in range(_NUM_DRAWN // 128):
      (answer,) = self.ask(
        "completions",
        **{"temperature": 1.0} | fields,
        n=128,
        max_tokens=1,
        seed=seed,
        return_token_ids=True,
      )
      for choice in answer["choices"]:
        counts[choice["token_ids"]] += 1
    self.assertEqual(counts.sum(), _NUM_DRAWN)
    self.assertEmpty(np.flatnonzero((counts > 0) & (wanted == 0)))
    # Pearson's statistic, as many standard deviations above what is usual.
    kept = wanted > 0
    expected = _NUM_DRAWN * wanted[kept]
    statistic = np.sum((counts[kept] - expected) ** 2 / expected)
    freedom = kept.sum() - 1
    self.assertGreater(freedom, 0)
    deviation = np.sqrt(2 * freedom + np.sum(1 / expected))
    self.assertLess(statistic, freedom + 4 * deviation)

  def test_repetition_penalty(self):
    prompt = self.model.prompt(_PROMPT)
    for penalty in (0.5, 1.7):
      said: list[int] = []
      for _ in range(12):
        logits = self.model.logits([*prompt, *said])[-1].copy()
        seen = [*{*prompt, *said}]
        found = logits[seen]
        logits[seen] = np.where(found > 0, found / penalty, found * penalty)
        said.append(int(logits.argmax()))
      (answer,) = self.ask(
        "completions",
        repetition_penalty=penalty,
        return_token_ids=True,
        ignore_eos=True,
      )
      self.assertEqual(answer["choices"][0]["token_ids"], said)

  def test_what_is_found_in_the_cache_changes_nothing(self):
    ids = [6 + (7 * n) % 200 for n in range(400)]
    create = self.methods["completions"].create

    def ask():
      return create(
        model=fixtures.NAME,
        prompt=ids,
        logprobs=3,
        temperature=0,
        extra_body={"return_token_ids": True},
      )

    first, second = ask(), ask()
    cached = first.usage.prompt_tokens_details
    self.assertEqual(cached.cached_tokens if cached else 0, 0)
    cached = second.usage.prompt_tokens_details
    self.assertGreaterEqual(cached.cached_tokens, 384)
    self.assertEqual(first.choices[0].token_ids, second.choices[0].token_ids)
    np.testing.assert_allclose(
      first.choices[0].logprobs.token_logprobs,
      second.choices[0].logprobs.token_logprobs,
      atol=1e-5,
    )


def _plain(answer):
  for name in ("id", "created"):
    answer.pop(name, None)
  if usage := answer.get("usage"):
    usage.pop("prompt_tokens_details", None)
  for choice in answer.get("choices", ()):
    for call in (choice.get("message") or {}).get("tool_calls") or ():
      call.pop("id", None)
  return answer


def _probabilities(logits, fields):
  """After top_k, top_p of what it leaves, and min_p."""
  found = np.exp(logits - logits.max())
  found /= found.sum()
  kept = np.ones(len(found), bool)
  order = np.argsort(-found)
  if "top_k" in fields:
    kept[order[fields["top_k"] :]] = False
  if "top_p" in fields:
    left = np.where(kept, found, 0)
    left /= left.sum()
    before = np.cumsum(left[order]) - left[order]
    kept[order[before >= fields["top_p"]]] = False
  if "min_p" in fields:
    kept[found < fields["min_p"] * found.max()] = False
  found = np.where(kept, found, 0)
  return found / found.sum()


if __name__ == "__main__":
  absltest.main()
