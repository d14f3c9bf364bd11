import json
import unittest

from absl.testing import absltest
from absl.testing import parameterized

from serve.api import fixtures

_GOLDEN = json.loads((fixtures.TOKENIZER / "golden.json").read_text())


class TokensTest(parameterized.TestCase, unittest.IsolatedAsyncioTestCase):
  async def test_prompts(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      for case in _GOLDEN["encode"][:20]:
        status, body = await client.post("/tokenize", prompt=case["text"])
        self.assertEqual(status, 200)
        self.assertEqual(body["tokens"], case["ids"])
        self.assertEqual(body["count"], len(body["tokens"]))
        self.assertEqual(body["max_model_len"], 4096)
        _, body = await client.post(
          "/tokenize", prompt=case["text"], add_special_tokens=False
        )
        self.assertEqual(body["tokens"], case["ids_no_special"])

  async def test_names_and_messages(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      _, body = await client.post(
        "/tokenize",
        messages=[{"role": "user", "content": "Hi"}],
        return_token_strs=True,
      )
      self.assertEqual(body["token_strs"][0], "<|begin_of_text|>")
      self.assertLen(body["token_strs"], body["count"])
      _, text = await client.post("/detokenize", tokens=body["tokens"])
    self.assertStartsWith(text["prompt"], "<|begin_of_text|>")
    self.assertIn("Hi<|eot_id|>", text["prompt"])

  async def test_what_a_remote_tokenizer_asks(self):
    """As lm-evaluation-harness's RemoteTokenizer does."""
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      _, info = await client.get("/tokenizer_info")
      self.assertEqual(info["eos_token"], "<|end_of_text|>")
      self.assertEqual(info["bos_token"], "<|begin_of_text|>")
      self.assertIn("start_header_id", info["chat_template"])
      for name, token in (("eos_token", 2), ("bos_token", 1)):
        _, body = await client.send(
          "/tokenize",
          json.dumps(
            {"prompt": info[name], "add_special_tokens": False}
          ).encode(),
        )
        self.assertEqual(body["tokens"], [token])

  @parameterized.parameters(
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [{}]}, "messages[0].role"),
    (
      "/tokenize",
      {"prompt": "a", "add_generation_prompt": True},
      "add_generation_prompt",
    ),
    ("/detokenize", {"tokens": [512]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ("/detokenize", {}, "tokens"),
  )
  async def test_refuses(self, path, fields, param):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      status, body = await client.post(path, **fields)
      self.assertEqual(status, 400)
      self.assertEqual(body["error"]["param"], param)
      status, _ = await client.post(path, **(fields | {"model": "x"}))
      self.assertIn(status, (400, 404))

  async def test_without_a_tokenizer(self):
    async with fixtures.serving(fixtures.FakeEngine(), None) as client:
      status, body = await client.get("/tokenizer_info")
    self.assertEqual(status, 400)
    self.assertEqual(body["error"]["code"], "no_tokenizer")


if __name__ == "__main__":
  absltest.main()
