import json
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import tokenizers

from model.hf import gguf_tokenizer

_FILE = pathlib.Path("model.gguf")
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = (
  gguf.TokenType.NORMAL,
  gguf.TokenType.UNKNOWN,
  gguf.TokenType.CONTROL,
  gguf.TokenType.USER_DEFINED,
  gguf.TokenType.UNUSED,
  gguf.TokenType.BYTE,
)


def metadata_of(listed, **fields) -> dict[str, Any]:
  """Metadata of a list of (token, kind)."""
  fields = {
    "tokens": [token for token, _ in listed],
    "token_type": [int(kind) for _, kind in listed],
  } | fields
  return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def byte_level(**fields) -> dict[str, Any]:
  """Special tokens, the 256 bytes, and a few merges."""
  merges = ["a b", "ab c", "Ġ a", "Ġ Ġ", "Ġ 1", "1 2"]
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  tokens = [("<bos>", _CONTROL), ("<eos>", _CONTROL), ("<tool>", _USER)]
  tokens += [(letter, _NORMAL) for letter in alphabet]
  tokens += [(merge.replace(" ", ""), _NORMAL) for merge in merges]
  tokens += [("xyz", _NORMAL), ("[PAD0]", _UNUSED)]
  fields = {
    "model": "gpt2",
    "pre": "gpt-2",
    "merges": merges,
    "bos_token_id": 0,
    "eos_token_id": 1,
  } | fields
  return metadata_of(tokens, **fields)


def sentence_piece(**fields) -> dict[str, Any]:
  """Bytes, letters, and pieces whose scores fall with their ids."""
  tokens = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
  tokens += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
  pieces = ["▁a", "bc", "ab", "▁ab", "abc", "<0x41", "▁", *"abc<0x41>"]
  tokens += [(piece, _NORMAL) for piece in dict.fromkeys(pieces)]
  fields = {
    "model": "llama",
    "scores": [-float(index) for index in range(len(tokens))],
    "unknown_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
  } | fields
  return metadata_of(tokens, **fields)


def load(metadata):
  files = gguf_tokenizer.files(metadata, file=_FILE)
  return (
    tokenizers.Tokenizer.from_str(files["tokenizer.json"]),
    json.loads(files["tokenizer_config.json"]),
  )


class GgufTokenizerTest(parameterized.TestCase):
  def tokens(self, metadata, text):
    return load(metadata)[0].encode(text, add_special_tokens=False).tokens

  def assert_refused(self, message, metadata):
    with self.assertRaisesRegex(ValueError, f"^model.gguf: .*{message}"):
      gguf_tokenizer.files(metadata, file=_FILE)

  def test_byte_level(self):
    metadata = byte_level()
    backend, config = load(metadata)
    for index, token in enumerate(metadata["tokenizer.ggml.tokens"][:-1]):
      self.assertEqual(backend.token_to_id(token), index)
    self.assertIsNone(backend.token_to_id("[PAD0]"))
    self.assertEqual(backend.encode("abc ab").tokens, ["abc", "Ġ", "ab"])
    text = "a\n  É 글 <tool>12"
    ids = backend.encode(text).ids
    self.assertEqual(backend.decode(ids, skip_special_tokens=False), text)
    self.assertEqual(
      backend.encode("<bos>a<tool>").tokens, ["<bos>", "a", "<tool>"]
    )
    self.assertEqual(config["bos_token"], "<bos>")
    self.assertEqual(config["eos_token"], "<eos>")
    self.assertNotIn("pad_token", config)
    self.assertNotIn("chat_template", config)

  @parameterized.parameters(
    ("gpt-2", "  12", ["Ġ", "Ġ1", "2"]),
    ("smollm", "  12", ["ĠĠ", "1", "2"]),
    ("llama-bpe", "  12", ["Ġ", "Ġ", "12"]),
    ("qwen2", "  12", ["Ġ", "Ġ", "1", "2"]),
    ("gpt-2", "xyz", ["x", "y", "z"]),
    ("llama-bpe", "xyz", ["xyz"]),
    ("qwen2", "xyz", ["x", "y", "z"]),
  )
  def test_text_is_split_as_its_name_says(self, pre, text, expected):
    self.assertEqual(self.tokens(byte_level(pre=pre), text), expected)

  def test_sentence_piece(self):
    metadata = sentence_piece()
    backend, config = load(metadata)
    for index, token in enumerate(metadata["tokenizer.ggml.tokens"]):
      self.assertEqual(backend.token_to_id(token), index)
    encode = lambda text: backend.encode(text, add_special_tokens=False).tokens
    # The best score first: "bc" before "ab", "▁a" before both.
    self.assertEqual(encode("abc"), ["▁a", "bc"])
    self.assertEqual(encode("ab"), ["▁ab"])
    self.assertEqual(encode("abc  ab")[2:], ["▁", "▁ab"])
    # Bytes for what has no piece, but not made from its letters.
    self.assertEqual(encode("é"), ["▁", "<0xC3>", "<0xA9>"])
    self.assertEqual(encode("<0x41>")[-1], ">")
    text = " a é b"
    ids = backend.encode(text, add_special_tokens=False).ids
    self.assertEqual(backend.decode(ids), text)
    self.assertEqual(config["unk_token"], "<unk>")
    without = sentence_piece(add_space_prefix=False)
    self.assertEqual(self.tokens(without, "abc"), ["abc"])

  @parameterized.parameters(
    (byte_level, {}, ["b"]),
    (byte_level, {"pre": "llama-bpe"}, ["<bos>", "b"]),
    (byte_level, {"pre": "llama-bpe", "add_bos_token": False}, ["b"]),
    (
      byte_level,
      {"add_bos_token": True, "add_eos_token": True},
      ["<bos>", "b", "<eos>"],
    ),
    (byte_level, {"add_eos_token": True}, ["b", "<eos>"]),
    (sentence_piece, {"add_space_prefix": False}, ["<s>", "b"]),
  )
  def test_adds_special_tokens(self, make, fields, expected):
    backend, _ = load(make(**fields))
    self.assertEqual(backend.encode("b").tokens, expected)

  def test_chat_templates(self):
    key = "tokenizer.chat_template"
    _, config = load(byte_level() | {key: "{{ x }}"})
    self.assertEqual(config["chat_template"], "{{ x }}")
    _, config = load(byte_level() | {key: "{{ x }}", f"{key}.tool_use": "y"})
    self.assertEqual(
      config["chat_template"],
      [
        {"name": "default", "template": "{{ x }}"},
        {"name": "tool_use", "template": "y"},
      ],
    )

  @parameterized.named_parameters(
    ("model", byte_level(model="bert"), "model is 'bert'; known are gpt2"),
    ("pre", byte_level(pre="tekken"), "pre is 'tekken'; known are gpt-2"),
    ("no_pre", byte_level(pre=None), "pre is None"),
    ("merge", byte_level(merges=["abc"]), "list with 'abc'"),
    ("merge_of_none", byte_level(merges=["q q"]), "does not fit the tokens"),
    ("no_tokens", byte_level(tokens=[]), "tokens is None"),
    ("twice", byte_level(tokens=["a", "a"]), "'a' 2 times"),
    ("kinds", byte_level(token_type=[1]), "token_type is '1 for"),
    ("scores", sentence_piece(scores=[0.0]), "scores is '1 for"),
    ("id", byte_level(eos_token_id=999), "eos_token_id is 999; there are"),
    ("no_bos", byte_level(bos_token_id=None, add_bos_token=True), "bos.*None"),
    (
      "charsmap",
      sentence_piece(precompiled_charsmap=[1]),
      "precompiled_charsmap is 'set'",
    ),
  )
  def test_refuses(self, metadata, message):
    self.assert_refused(message, metadata)


if __name__ == "__main__":
  absltest.main()
