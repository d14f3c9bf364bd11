import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from serve import detokenizer

_TESTDATA = pathlib.Path("data/testdata")
_TEXTS = (
  "한국어 문장입니다. 값은 ①23,456원!",
  "👩‍👩‍👧‍👦 🇰🇷 ✊🏿 emoji 뷁",
  " leading space,  two  spaces\n\n\ttab ",
  "In the beginning was the word — naïve café",
  "가",
  "   ",
)


def _byte_level():
  file = _TESTDATA / "tiny_bytelevel_bpe" / "tokenizer.json"
  return tokenizers.Tokenizer.from_file(str(file))


def _byte_fallback():
  file = _TESTDATA / "tiny_metaspace_bytefallback" / "tokenizer.json"
  return tokenizers.Tokenizer.from_file(str(file))


def _metaspace(prepend_scheme):
  backend = tokenizers.Tokenizer(models.BPE())
  space = {"prepend_scheme": prepend_scheme}
  backend.pre_tokenizer = pre_tokenizers.Metaspace(**space)
  backend.decoder = decoders.Metaspace(**space)
  trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
  backend.train_from_iterator(_TEXTS, trainer)
  return backend


def _words(*names, decoder=None):
  vocabulary = {name: token for token, name in enumerate(names)}
  backend = tokenizers.Tokenizer(models.WordLevel(vocabulary))
  if decoder is not None:
    backend.decoder = decoder
  return backend


_KINDS = {
  "byte_level": _byte_level,
  "byte_fallback": _byte_fallback,
  "metaspace_always": lambda: _metaspace("always"),
  "metaspace_first": lambda: _metaspace("first"),
  "metaspace_never": lambda: _metaspace("never"),
}


def _decode(backend, ids):
  return backend.decode(ids, skip_special_tokens=False)


def _push_all(stream, ids):
  """The text, token by token; it must be the same as what is kept."""
  text = "".join([stream.push([token]) for token in ids]) + stream.finish()
  assert text == stream.text
  return text


class DetokenizerTest(parameterized.TestCase):
  @parameterized.named_parameters(*_KINDS.items())
  def test_text_is_the_tokenizers_wherever_the_prompt_ends(self, make):
    backend = make()
    vocabulary = detokenizer.Vocabulary(backend)
    for text in _TEXTS:
      ids = backend.encode(text, add_special_tokens=False).ids
      full = _decode(backend, ids)
      self.assertNotIn("\ufffd", full)
      whole = ""
      for cut in range(len(ids) + 1):
        prompt = _decode(backend, ids[:cut])
        # What the prompt tears belongs to the continuation.
        whole = max(whole, prompt.rstrip("\ufffd"), key=len)
        stream = detokenizer.Detokenizer(
          vocabulary, ids[:cut], skip_special_tokens=False
        )
        new = _push_all(stream, ids[cut:])
        self.assertEqual(whole + new, full, f"{text} {cut}")

  @parameterized.named_parameters(*_KINDS.items())
  def test_no_torn_character_is_given_out(self, make):
    backend = make()
    vocabulary = detokenizer.Vocabulary(backend)
    for text in _TEXTS:
      ids = backend.encode(text, add_special_tokens=False).ids
      stream = detokenizer.Detokenizer(vocabulary, ())
      full = backend.decode(ids)
      for token in ids:
        stream.push([token])
        self.assertTrue(full.startswith(stream.text))

  @parameterized.product(skip=(False, True), with_prompt=(False, True))
  def test_any_bytes_are_what_the_tokenizer_makes_of_them(
    self, skip, with_prompt
  ):
    backend = _byte_level()
    vocabulary = detokenizer.Vocabulary(backend)
    rng = np.random.default_rng(0)
    # Mostly single bytes of characters that have several.
    torn = [t for t in range(512) if "\ufffd" in backend.decode([t])]
    self.assertGreater(len(torn), 100)
    for _ in range(300):
      ids = rng.choice(torn, 12).tolist() + rng.integers(0, 512, 4).tolist()
      rng.shuffle(ids)
      prompt = backend.encode("a b").ids if with_prompt else []
      full = backend.decode([*prompt, *ids], skip_special_tokens=skip)
      before = backend.decode(prompt, skip_special_tokens=skip)
      stream = detokenizer.Detokenizer(
        vocabulary, prompt, skip_special_tokens=skip
      )
      self.assertEqual(before + _push_all(stream, ids), full)

  def test_invalid_bytes_are_given_out_as_soon_as_they_are_certain(self):
    backend = _byte_fallback()
    vocabulary = detokenizer.Vocabulary(backend)
    ids = backend.get_vocab()
    first, second, end = (ids[f"<0x{byte:02X}>"] for byte in "한".encode())
    stream = detokenizer.Detokenizer(vocabulary, [])
    self.assertEqual(stream.push([first]), "")
    self.assertEqual(stream.push([second]), "")
    self.assertEqual(stream.push([first]), "\ufffd")
    self.assertEqual(stream.push([second, end]), "한")
    self.assertEqual(stream.push([end]), "\ufffd")
    self.assertEqual(stream.push([first]), "")
    self.assertEqual(stream.finish(), "\ufffd")

  @parameterized.named_parameters(*_KINDS.items())
  def test_nothing_of_a_torn_prompt_is_given_out(self, make):
    backend = make()
    ids = backend.encode("한국어 뷁", add_special_tokens=False).ids
    vocabulary = detokenizer.Vocabulary(backend)
    for cut in range(len(ids)):
      stream = detokenizer.Detokenizer(vocabulary, ids[:cut])
      self.assertEqual(stream.finish(), "")

  def test_special_tokens(self):
    backend = _byte_fallback()
    vocabulary = detokenizer.Vocabulary(backend)
    special = sorted(vocabulary.special_ids)
    self.assertNotEmpty(special)
    ids = backend.encode("Hello world", add_special_tokens=False).ids
    for prompt in ([], special[:1]):
      mixed = [ids[0], special[0], *ids[1:], special[-1]]
      for skip in (False, True):
        stream = detokenizer.Detokenizer(
          vocabulary, prompt, skip_special_tokens=skip
        )
        expected = backend.decode([*prompt, *mixed], skip_special_tokens=skip)
        before = backend.decode(prompt, skip_special_tokens=skip)
        self.assertEqual(before + _push_all(stream, mixed), expected)

  def test_a_vocabulary_without_a_decoder_puts_spaces_between(self):
    backend = _words("one", "two")
    stream = detokenizer.Detokenizer(detokenizer.Vocabulary(backend), [])
    self.assertEqual(_push_all(stream, [0, 1, 0]), "one two one")
    self.assertEqual(backend.decode([0, 1, 0]), "one two one")

  def test_ids_beyond_the_vocabulary_are_nothing(self):
    backend = _words("one", "two")
    vocabulary = detokenizer.Vocabulary(backend)
    self.assertEqual(vocabulary.token_bytes(5), b"")
    stream = detokenizer.Detokenizer(vocabulary, [7])
    self.assertEqual(_push_all(stream, [5, 0, 9, 1]), "one two")

  def test_a_decoder_that_looks_at_neighbours_is_refused(self):
    backend = _words("one", "##two", decoder=decoders.WordPiece())
    with self.assertRaisesRegex(ValueError, "WordPiece"):
      detokenizer.Vocabulary(backend)

  @parameterized.named_parameters(*_KINDS.items())
  def test_pieces_are_the_text(self, make):
    backend = make()
    stream = detokenizer.Detokenizer(detokenizer.Vocabulary(backend), [])
    ids = backend.encode("".join(_TEXTS), add_special_tokens=False).ids
    text = _push_all(stream, ids)
    self.assertEqual([piece.token for piece in stream.pieces], ids)
    self.assertEqual("".join(piece.text for piece in stream.pieces), text)
    for piece in stream.pieces:
      end = piece.offset + len(piece.text)
      self.assertEqual(text[piece.offset : end], piece.text)

  def test_a_token_behind_a_torn_character_begins_behind_it(self):
    backend = _byte_fallback()
    vocabulary = detokenizer.Vocabulary(backend)
    ids = backend.get_vocab()
    han = [ids[f"<0x{byte:02X}>"] for byte in "한".encode()]
    fffd = [ids[f"<0x{byte:02X}>"] for byte in "\ufffd".encode()]
    (letter,) = (ids[name] for name in ("a",))
    special = min(vocabulary.special_ids)
    for tokens, text, offsets in (
      ((*han, letter), "한a", [0, 0, 0, 1]),
      ((*han[:2], letter, letter), "\ufffdaa", [0, 0, 1, 2]),
      ((*han[:2], *han, letter), "\ufffd한a", [0, 0, 1, 1, 1, 2]),
      ((*fffd, letter), "\ufffda", [0, 0, 0, 1]),
      ((han[2], letter), "\ufffda", [0, 1]),
      ((han[0], special, letter), "\ufffda", [0, 0, 1]),
      ((letter, han[0]), "a\ufffd", [0, 1]),
    ):
      stream = detokenizer.Detokenizer(vocabulary, [letter])
      self.assertEqual(_push_all(stream, tokens), text)
      self.assertEqual([p.offset for p in stream.pieces], offsets)
      self.assertEqual("".join(p.text for p in stream.pieces), text)
    # Torn by the prompt: told with the continuation, but of none of its tokens.
    stream = detokenizer.Detokenizer(vocabulary, [letter, han[0]])
    self.assertEqual(_push_all(stream, [letter]), "\ufffda")
    self.assertEqual([p.offset for p in stream.pieces], [1])

  def test_bytes_of_a_token(self):
    backend = _byte_level()
    vocabulary = detokenizer.Vocabulary(backend)
    ids = backend.encode("뷁", add_special_tokens=False).ids
    joined = b"".join(vocabulary.token_bytes(token) for token in ids)
    self.assertEqual(joined, "뷁".encode())
    self.assertGreater(len(ids), 1)
    self.assertIn("\ufffd", vocabulary.text(ids[0]))
    self.assertEqual(vocabulary.name(backend.get_vocab()["Ġ"]), "Ġ")


def _reference(text, stops, include_stop):
  """What of a text may be given out, and the stop, the slow way."""
  for end in range(1, len(text) + 1):
    found = [stop for stop in stops if text[:end].endswith(stop)]
    if found:
      stop = max(found, key=len)
      return text[: end if include_stop else end - len(stop)], stop
  held = 0
  if not include_stop:
    starts = {stop[:size] for stop in stops for size in range(1, len(stop))}
    held = max((len(s) for s in starts if text.endswith(s)), default=0)
  return text[: len(text) - held], None


class StopTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_random_texts(self, include_stop):
    names = ("a", "b", "ab", "ba", "aab", "bbab", "c")
    vocabulary = detokenizer.Vocabulary(_words(*names, decoder=decoders.Fuse()))
    rng = np.random.default_rng(0)
    num_found = 0
    for _ in range(500):
      stops = [
        "".join(rng.choice(["a", "b"], rng.integers(1, 7)))
        for _ in range(rng.integers(1, 4))
      ]
      ids = rng.integers(0, len(names), 12).tolist()
      stream = detokenizer.Detokenizer(
        vocabulary, [], stops=stops, include_stop=include_stop
      )
      text = ""
      for token in ids:
        text += names[token]
        stream.push([token])
        released, stop = _reference(text, stops, include_stop)
        self.assertEqual(stream.text, released)
        self.assertEqual(stream.stop, stop)
      num_found += stream.stop is not None
      before = stream.text
      self.assertEqual(before + stream.finish(), stream.text)
      if stream.stop is None:
        self.assertEqual(stream.text, text)
      else:
        self.assertEqual(stream.text, before)
    self.assertBetween(num_found, 100, 490)

  def test_a_stop_across_tokens_of_torn_characters(self):
    backend = _byte_level()
    vocabulary = detokenizer.Vocabulary(backend)
    ids = backend.encode("하나 둘 뷁! 셋", add_special_tokens=False).ids
    for include_stop, text in ((False, "하나 둘"), (True, "하나 둘 뷁!")):
      stream = detokenizer.Detokenizer(
        vocabulary, [], stops=[" 뷁!"], include_stop=include_stop
      )
      self.assertEqual(_push_all(stream, ids), text)
      self.assertEqual(stream.stop, " 뷁!")
      self.assertLess(len(stream.pieces), len(ids))

  def test_a_stop_does_not_begin_in_the_prompt(self):
    vocabulary = detokenizer.Vocabulary(
      _words("a", "b", decoder=decoders.Fuse())
    )
    stream = detokenizer.Detokenizer(vocabulary, [0], stops=["ab"])
    self.assertEqual(_push_all(stream, [1, 1, 0]), "bba")
    self.assertIsNone(stream.stop)

  def test_min_tokens(self):
    vocabulary = detokenizer.Vocabulary(
      _words("a", "b", decoder=decoders.Fuse())
    )
    stream = detokenizer.Detokenizer(vocabulary, [], stops=["b"], min_tokens=2)
    self.assertEqual(_push_all(stream, [1, 1, 0, 1, 0]), "bba")

  def test_an_empty_stop_is_refused(self):
    vocabulary = detokenizer.Vocabulary(_words("a"))
    with self.assertRaisesRegex(ValueError, "empty"):
      detokenizer.Detokenizer(vocabulary, [], stops=[""])


if __name__ == "__main__":
  absltest.main()
