import json

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from data import contamination
from data import words

_LONG = "one two three four five six seven eight nine ten"
_SHORT = "alpha beta gamma delta"


def find_slowly(sets, text, *, ngram, min_words):
  """Set -> places of the text, by comparing every n-gram with every other."""
  spelled = words.split(text)
  found = {}
  for name, texts in sets.items():
    places, examples = set(), set()
    for number, example in enumerate(texts):
      own = words.split(example)
      length = min(len(own), ngram)
      if len(own) < min_words:
        continue
      grams = {tuple(own[i : i + length]) for i in range(len(own) - length + 1)}
      for place in range(len(spelled) - length + 1):
        if tuple(spelled[place : place + length]) in grams:
          places.add((place, length))
          examples.add(number)
    if places:
      found[name] = (len(places), len(examples))
  return found


class ContaminationTest(parameterized.TestCase):
  def index(self):
    sets = {"a": [_LONG, _SHORT, "too short"], "b": ["zero " + _LONG]}
    return contamination.Index(sets, ngram=6, min_words=4)

  def test_parts_of_examples(self):
    text = "It says: Three, FOUR five six seven eight nine! And so on."
    self.assertEqual(
      self.index().find(text),
      [
        contamination.Match(
          evaluation=name,
          num_ngrams=2,
          num_examples=1,
          words="three four five six seven eight",
        )
        for name in "ab"
      ],
    )

  @parameterized.parameters(
    ("three four five six seven", []),
    ("three four five six seven other eight", []),
    ("eight seven six five four three", []),
    (_SHORT, ["a"]),
    ("beta gamma delta alpha", []),
    ("alpha beta gamma", []),
    ("too short", []),
    ("zero one two three four five", ["b"]),
    ("", []),
  )
  def test_what_is_one(self, text, sets):
    found = [match.evaluation for match in self.index().find(text)]
    self.assertEqual(found, sets)

  def test_counts(self):
    index = self.index()
    self.assertEqual(index.num_examples, {"a": 3, "b": 1})
    self.assertEqual(index.num_too_short, {"a": 1, "b": 0})

  @settings(max_examples=100, deadline=None)
  @given(st.data())
  def test_is_what_comparing_all_gives(self, data):
    text = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)
    sets = data.draw(
      st.dictionaries(st.sampled_from("xyz"), st.lists(text, max_size=3))
    )
    document = data.draw(text)
    ngram = data.draw(st.integers(1, 5))
    limits = {"ngram": ngram, "min_words": data.draw(st.integers(1, ngram))}
    found = contamination.Index(sets, **limits).find(document)
    self.assertEqual(
      {m.evaluation: (m.num_ngrams, m.num_examples) for m in found},
      find_slowly(sets, document, **limits),
    )

  def test_load(self):
    file = self.create_tempfile(
      "a.jsonl", json.dumps({"text": _LONG})
    ).full_path
    other = self.create_tempfile("b.jsonl", json.dumps({"q": _LONG})).full_path
    sets = contamination.Evaluations(paths=(file, other + "#q"))
    index = contamination.load(sets)
    self.assertEqual(index.num_examples, {file: 1, other + "#q": 1})
    self.assertLen(index.find(_LONG), 2)
    self.assertEqual(contamination.files(sets), [file, other])

  def test_refuses(self):
    file = self.create_tempfile("a.jsonl", '{"text": "a"}\n').full_path
    with self.assertRaisesRegex(ValueError, "a.jsonl' has 1 examples, none"):
      contamination.load(contamination.Evaluations(paths=(file,)))
    with self.assertRaisesRegex(ValueError, "no field 'q'"):
      contamination.load(contamination.Evaluations(paths=(file,), field="q"))
    with self.assertRaisesRegex(ValueError, "does not exist"):
      contamination.load(contamination.Evaluations(paths=("nowhere",)))
    with self.assertRaisesRegex(ValueError, "min_words is 14"):
      contamination.Evaluations(min_words=14)
    with self.assertRaisesRegex(ValueError, "ngram is 0"):
      contamination.Evaluations(ngram=0, min_words=0)
    with self.assertRaisesRegex(ValueError, "there is no evaluation set"):
      contamination.Evaluations(drop=True)


if __name__ == "__main__":
  absltest.main()
