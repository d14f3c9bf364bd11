import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data import config as config_lib
from data import fill_middle
from data import pack
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_EOS = 1
_PREFIX, _SUFFIX, _MIDDLE = 2, 3, 4
_SENTINELS = fill_middle.Sentinels(
  prefix=_PREFIX, suffix=_SUFFIX, middle=_MIDDLE
)


class Memory:
  """Documents whose tokens are their own positions, from 10, and an eos."""

  def __init__(self, lengths, *, has_eos=True):
    self.document_lengths = np.array(lengths)
    self.num_tokens = sum(lengths)
    self.tokens = np.arange(10, 10 + self.num_tokens).astype(np.uint16)
    ends = np.cumsum(lengths)[np.array(lengths) > 0] - 1
    if has_eos:
      self.tokens[ends] = _EOS

  def read(self, start, stop):
    assert 0 <= start <= stop <= self.num_tokens
    return self.tokens[start:stop]


def make(source, *, rate=0.5, spm_rate=0.5, seed=0, name="a"):
  return fill_middle.FillMiddle(
    source,
    name=name,
    seed=seed,
    config=config_lib.SequenceConfig(fim_rate=rate, fim_spm_rate=spm_rate),
    sentinels=_SENTINELS,
    eos_id=_EOS,
  )


def documents(tokens):
  return np.split(
    tokens.read(0, tokens.num_tokens), np.cumsum(tokens.document_lengths)[:-1]
  )


def undo(document):
  """The document as it was: first, then what follows `middle`, then last."""
  document = document.tolist()
  if document[:1] != [_PREFIX]:
    return document
  suffix, middle = document.index(_SUFFIX), document.index(_MIDDLE)
  end = len(document) - (document[-1] == _EOS)
  first, last = document[1:suffix], document[suffix + 1 : middle]
  return [*first, *document[middle + 1 : end], *last, *document[end:]]


class FillMiddleTest(parameterized.TestCase):
  @hypothesis.given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 3),
  )
  @hypothesis.settings(
    database=None, deadline=None, derandomize=True, max_examples=100
  )
  def test_the_parts_are_the_document(
    self, lengths, rate, spm_rate, has_eos, epoch
  ):
    source = Memory(lengths, has_eos=has_eos)
    made = make(source, rate=rate, spm_rate=spm_rate).of_epoch(epoch)
    starts = np.cumsum([0, *lengths])
    whole = documents(made)
    for index, document in enumerate(whole):
      original = source.read(starts[index], starts[index + 1]).tolist()
      self.assertEqual(undo(document), original)
      self.assertLen(document, made.document_lengths[index])
      if original and has_eos:
        self.assertEqual(document[-1], _EOS)
    stream = np.concatenate(whole)
    for start in range(0, len(stream), 7):
      for stop in (start, start + 1, start + 9, len(stream)):
        np.testing.assert_array_equal(
          made.read(start, min(stop, len(stream))), stream[start:stop]
        )

  def test_rates(self):
    source = Memory([20] * 400)
    for rate, spm_rate in ((0, 0.5), (0.5, 0.5), (0.25, 0), (1, 1)):
      made = make(source, rate=rate, spm_rate=spm_rate)
      self.assertEqual(made.is_changed.sum(), 400 * rate)
      forms = [
        "plain" if d[0] != _PREFIX else "spm" if d[1] == _SUFFIX else "psm"
        for d in documents(made)
      ]
      self.assertEqual(forms.count("plain"), 400 * (1 - rate))
      # An empty prefix makes some of the one look like the other.
      self.assertBetween(
        forms.count("spm") / max(1, 400 * rate),
        spm_rate - 0.1 if rate else 0,
        spm_rate + 0.2,
      )

  def test_cuts_are_even(self):
    source = Memory([11] * 3000)
    made = make(source, rate=1, spm_rate=0)
    counts = np.zeros((11, 11))
    for document in documents(made):
      document = document.tolist()
      suffix, middle = document.index(_SUFFIX), document.index(_MIDDLE)
      counts[suffix - 1, len(document) - 2 - middle] += 1
    # Two of 11 places: 66 cuts, those at one place half as often.
    self.assertEqual((counts > 0).sum(), 66)
    prefixes = counts.sum(axis=1)
    expected = 3000 * (21 - 2 * np.arange(11)) / 121
    self.assertLess(np.abs(prefixes - expected).max(), 5 * 3000**0.5 / 2)

  def test_what_is_drawn_depends_on(self):
    source = Memory([30] * 40)
    plain = make(source, rate=1)
    texts = [
      np.concatenate(
        documents(make(source, rate=1, seed=s, name=n).of_epoch(e))
      )
      for s in range(2)
      for n in "ab"
      for e in range(2)
    ]
    self.assertLen({text.tobytes() for text in texts}, 8)
    np.testing.assert_array_equal(texts[0], plain.read(0, plain.num_tokens))
    changed = [
      make(source, seed=s, name=n).is_changed.tobytes()
      for s in range(2)
      for n in "ab"
    ]
    self.assertLen(set(changed), 4)

  def test_packs_of_all_epochs_have_equal_lengths(self):
    source = make(Memory([7, 12, 3, 9, 20, 4, 15, 8]))
    packs = pack.Packs(
      source,
      name="a",
      seq_len=23,
      seed=0,
      shuffle=True,
      config=config_lib.SequenceConfig(kind="pack"),
    )
    found = []
    for epoch in range(2):
      rows = rows_lib.empty(packs.num_packs, 23)
      places = np.arange(packs.num_packs)
      packs.fill(epoch * packs.num_packs + places, rows, places)
      segments = [
        tuple(tokens[ids == number])
        for tokens, ids in zip(rows.tokens, rows.segment_ids, strict=True)
        for number in range(1, ids.max() + 1)
      ]
      self.assertCountEqual(
        segments, map(tuple, documents(source.of_epoch(epoch)))
      )
      found.append(sorted(segments))
    self.assertNotEqual(*found)

  @parameterized.parameters(*fill_middle._NAMES)
  def test_sentinels_of_tokenizers(self, *names):
    folder = pathlib.Path(self.create_tempdir().full_path)
    spec = json.loads(
      (_TESTDATA / "tiny_bytelevel_bpe/tokenizer.json").read_text()
    )
    ids = (3, 4, 5)
    for token in spec["added_tokens"]:
      if token["id"] in ids:
        token["content"] = names[ids.index(token["id"])]
    vocab = spec["model"]["vocab"]
    spec["model"]["vocab"] = {
      names[ids.index(i)] if i in ids else t: i for t, i in vocab.items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = tokenizer_lib.Tokenizer.load(folder)
    self.assertEqual(
      fill_middle.sentinels(tokenizer),
      fill_middle.Sentinels(prefix=3, suffix=4, middle=5),
    )

  def test_refuses_a_tokenizer_without_them(self):
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / "tiny_bytelevel_bpe")
    with self.assertRaisesRegex(
      ValueError, r"fim_rate is set, but .* <\|fim_prefix\|>.*; set it to 0"
    ):
      fill_middle.sentinels(tokenizer)


if __name__ == "__main__":
  absltest.main()
