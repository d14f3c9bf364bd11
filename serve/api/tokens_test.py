import json
import unittest

from absl.testing import absltest
from absl.testing import parameterized

from serve import conventions
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

  async def test_no_bos_is_named_that_texts_do_not_begin_with(self):
    folder = fixtures.folder(self.create_tempdir().full_path)
    file = folder / "tokenizer.json"
    file.write_text(
      json.dumps(json.loads(file.read_text()) | {"post_processor": None})
    )
    async with fixtures.serving(fixtures.FakeEngine(), folder) as client:
      _, info = await client.get("/tokenizer_info")
      _, made = await client.post("/tokenize", prompt="a")
      _, plain = await client.post(
        "/tokenize", prompt="a", add_special_tokens=False
      )
    self.assertEqual(made["tokens"], plain["tokens"])
    self.assertIsNone(info["bos_token"])
    self.assertEqual(info["eos_token"], "<|end_of_text|>")

  async def test_texts_of_a_model_trained_here_begin_with_an_end(self):
    engine = fixtures.FakeEngine()
    start = conventions.Start.AFTER_END
    async with fixtures.serving(engine, start=start) as client:
      _, info = await client.get("/tokenizer_info")
      self.assertEqual(info["bos_token"], info["eos_token"])
      _, made = await client.post("/tokenize", prompt="a")
      _, begun = await client.post(
        "/tokenize", prompt=f"{info['bos_token']}a", add_special_tokens=False
      )
    self.assertEqual(begun["tokens"], made["tokens"])

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
