import json
import pathlib
import threading
import unicodedata

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

from data import fixtures
from data import tokenizer as tokenizer_lib

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_TEXTS = [fixtures.text(index) for index in range(200)]
_KOREAN = "한국어 문장입니다. 값은 ①23,456원!"


def random_text(rng):
  """Any Unicode text: code points of every plane but the surrogates."""
  ranges = ((0, 128), (0, 0xD800), (0xE000, 0x110000), (0xAC00, 0xD7A4))
  points = [rng.integers(*ranges[rng.integers(4)]) for _ in range(60)]
  return "".join(map(chr, points))


class TokenizerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.Tokenizer.train(_TEXTS, vocab_size=320)

  @parameterized.parameters(
    "",
    " ",
    "  two  spaces \t\r\n\n end ",
    _KOREAN,
    unicodedata.normalize("NFD", _KOREAN),
    "e\u0301 \u00e9 \ufeff \u200b \u202e",
    "👩‍👩‍👧‍👦 🇰🇷 ✊🏿",
    "\x00\x01\x1f\x7f\x80\x9f\u2028",
    "a<|end_of_text|>b<|pad|><|reserved_0|>",
    "don't 1234567 ::=>{}[]",
  )
  def test_round_trip(self, text):
    self.assertEqual(self.tokenizer.decode(self.tokenizer.encode(text)), text)

  def test_round_trip_of_random_text(self):
    rng = np.random.default_rng(0)
    texts = [random_text(rng) for _ in range(500)]
    batch = self.tokenizer.encode_batch(texts)
    self.assertEqual(self.tokenizer.decode_batch(batch), texts)
    self.assertEqual(batch, [self.tokenizer.encode(text) for text in texts])
    self.assertLess(max(map(max, batch)), self.tokenizer.vocab_size)

  def test_text_cannot_make_special_tokens(self):
    for name in tokenizer_lib.SPECIAL_TOKENS:
      for text in (name, f"x{name}y", f" {name} "):
        ids = (
          self.tokenizer.encode(text) + self.tokenizer.encode_batch([text])[0]
        )
        self.assertGreaterEqual(
          min(ids), len(tokenizer_lib.SPECIAL_TOKENS), text
        )

  @parameterized.parameters("tiny_bytelevel_bpe", "tiny_metaspace_bytefallback")
  def test_prompts_are_encoded_as_hugging_face_does(self, name):
    golden = json.loads((_TESTDATA / name / "golden.json").read_text())
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / name)
    self.assertNotEmpty(golden["encode"])
    for case in golden["encode"]:
      text = case["text"]
      self.assertEqual(
        tokenizer.encode_with_special_tokens(text, add=True), case["ids"]
      )
      self.assertEqual(
        tokenizer.encode_with_special_tokens(text), case["ids_no_special"]
      )

  def test_special_tokens_in_prompts_do_not_leak_into_documents(self):
    prompt = "<|begin_of_text|>one<|end_of_text|>"
    document = self.tokenizer.encode(prompt)
    read = self.tokenizer.encode_with_special_tokens(prompt)
    self.assertEqual(read, [0, *self.tokenizer.encode("one"), 1])
    results = []
    thread = threading.Thread(
      target=lambda: results.extend(
        self.tokenizer.encode_with_special_tokens(prompt) for _ in range(500)
      )
    )
    thread.start()
    documents = [self.tokenizer.encode(prompt) for _ in range(500)]
    thread.join()
    self.assertEqual(results, [read] * 500)
    self.assertEqual(documents, [document] * 500)

  def test_special_ids(self):
    self.assertEqual(self.tokenizer.bos_id, 0)
    self.assertEqual(self.tokenizer.eos_id, 1)
    self.assertEqual(self.tokenizer.pad_id, 2)
    self.assertEqual(self.tokenizer.vocab_size, 320)
    self.assertEqual(self.tokenizer.decode([1]), "<|end_of_text|>")

  def test_training_is_deterministic(self):
    folders = []
    for name in ("one", "two"):
      folder = pathlib.Path(self.create_tempdir(name).full_path)
      tokenizer_lib.Tokenizer.train(iter(_TEXTS), vocab_size=320).save(folder)
      folders.append(folder)
    one, two = ((f / "tokenizer.json").read_bytes() for f in folders)
    self.assertEqual(one, two)

  @parameterized.parameters(("한국어", 19), ("été", 5))
  def test_split_keeps_decomposed_words_whole(self, word, num_merges):
    # A split inside a word would bar merges over it, however common it is.
    text = " " + unicodedata.normalize("NFD", word)
    tokenizer = tokenizer_lib.Tokenizer.train(
      [text] * 9, vocab_size=272 + num_merges
    )
    self.assertLen(tokenizer.encode(text), 1)

  def test_save_and_load(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer.save(folder)
    for path in (folder, folder / "tokenizer.json", str(folder)):
      loaded = tokenizer_lib.Tokenizer.load(path)
      self.assertEqual(loaded.fingerprint, self.tokenizer.fingerprint)
      self.assertEqual(loaded.encode(_KOREAN), self.tokenizer.encode(_KOREAN))
      self.assertEqual(
        (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.vocab_size),
        (0, 1, 2, 320),
      )

  def test_fingerprint_changes_with_the_vocabulary_only(self):
    other = tokenizer_lib.Tokenizer.train(_TEXTS, vocab_size=319)
    self.assertNotEqual(other.fingerprint, self.tokenizer.fingerprint)
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer.save(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["truncation"] = {
      "max_length": 4,
      "stride": 0,
      "strategy": "LongestFirst",
      "direction": "Right",
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec, indent=7))
    loaded = tokenizer_lib.Tokenizer.load(folder)
    self.assertEqual(loaded.fingerprint, self.tokenizer.fingerprint)
    self.assertEqual(loaded.encode(_KOREAN), self.tokenizer.encode(_KOREAN))

  def test_loads_a_foreign_tokenizer(self):
    file = pathlib.Path(self.create_tempdir().full_path) / "tokenizer.json"
    vocabulary = {"hello": 0, "world": 5, "</s>": 2, "?": 3}
    foreign = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign.save(str(file))
    loaded = tokenizer_lib.Tokenizer.load(file)
    self.assertEqual(loaded.encode("hello world"), [0, 5])
    self.assertEqual((loaded.eos_id, loaded.vocab_size), (2, 6))
    self.assertIsNone(loaded.bos_id)
    config = {"eos_token": {"content": "?"}, "bos_token": None}
    file.with_name("tokenizer_config.json").write_text(json.dumps(config))
    self.assertEqual(tokenizer_lib.Tokenizer.load(file).eos_id, 3)

  def test_refuses_what_is_not_a_tokenizer(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(ValueError, "does not exist; give"):
      tokenizer_lib.Tokenizer.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with self.assertRaisesRegex(ValueError, "cannot be read"):
      tokenizer_lib.Tokenizer.load(folder)
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(
      str(folder / "tokenizer.json")
    )
    with self.assertRaisesRegex(ValueError, "no token that ends a document"):
      tokenizer_lib.Tokenizer.load(folder)
    config = {"eos_token": "<missing>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with self.assertRaisesRegex(ValueError, "eos_token is '<missing>'"):
      tokenizer_lib.Tokenizer.load(folder)

  @parameterized.parameters(
    (271, "must be 272 or more"), (9999, "only support")
  )
  def test_refuses_vocab_size(self, vocab_size, message):
    with self.assertRaisesRegex(ValueError, message):
      tokenizer_lib.Tokenizer.train(["some text"], vocab_size=vocab_size)


if __name__ == "__main__":
  absltest.main()
