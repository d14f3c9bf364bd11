import dataclasses
import json
import pathlib
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import contamination
from data import dedup
from data import filters
from data import fixtures
from data import manifest
from data import screening
from data import tokenization
from data import tokenizer as tokenizer_lib
from data import worker_pool
from data.sources import array_record

_WORDS = [f"word{i}" for i in range(60)]
_PLAIN = " ".join(_WORDS)
_OTHER = " ".join(f"other{i}" for i in range(30))
_QUESTION = "which of the two trains comes first to the city of Incheon"
_TEXTS = [
  "",
  _PLAIN,
  "tiny",
  _OTHER,
  _PLAIN,  # A copy.
  " ".join([*_WORDS[:59], "changed"]),  # A near copy.
  f"It was asked {_QUESTION}, and nobody knew.",
  "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다.",
  "!" * 30,
  _OTHER,
  "x" * 2000,
]
_FILTERS = filters.Filters(min_chars=5, max_chars=1000)


class ScreeningTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.input = fixtures.write_jsonl(self.folder / "in.jsonl", _TEXTS)
    self.evaluation = fixtures.write_jsonl(
      self.folder / "eval.jsonl", [_QUESTION, "too short"]
    )
    self.sets = contamination.Evaluations(
      paths=(str(self.evaluation),), ngram=8, min_words=5
    )

  def run_it(self, screen, *, output="out", num_shards=3, **options):
    made = tokenization.run(
      [self.input],
      self.folder / output,
      tokenizer=self.tokenizer,
      options=tokenization.Options(
        num_shards=num_shards, screen=screen, **options
      ),
    )
    source = array_record.ArrayRecordSource(self.folder / output)
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    ends = np.cumsum(source.document_lengths)
    documents = np.split(source.read(0, source.num_tokens), ends[:-1])
    return made, [tokenizer.decode(ids[:-1]) for ids in documents]

  def everything(self, **settings):
    screen = screening.Screen(
      filters=_FILTERS,
      evaluations=dataclasses.replace(self.sets, drop=True),
      drop_copies=True,
      near_copies=0.8,
    )
    return dataclasses.replace(screen, **settings)

  @parameterized.parameters(
    ({"filters": _FILTERS}, {"too_short": 1, "too_long": 1}, [2, 10]),
    ({"filters": filters.Filters(languages=("ko",))}, None, None),
    ({"drop_copies": True}, {"copy": 2}, [4, 9]),
    ({"near_copies": 0.8}, {"near_copy": 3}, [4, 5, 9]),
    ({"near_copies": 1.0}, {"near_copy": 2}, [4, 9]),
    ({"near_copies": 0.8, "drop_copies": True}, None, [4, 5, 9]),
  )
  def test_steps(self, settings, counts, left_out):
    made, texts = self.run_it(screening.Screen(**settings))
    if left_out is None:
      self.assertEqual(texts, [_TEXTS[7]])
      return
    expected = [t for i, t in enumerate(_TEXTS) if t and i not in left_out]
    self.assertEqual(texts, expected)
    if counts:
      self.assertEqual(made.screening["dropped"], counts)
    self.assertEqual(made.screening["num_kept"], len(texts))
    self.assertEqual(sum(s.num_dropped for s in made.shards), len(left_out))
    self.assertEqual(sum(s.num_empty for s in made.shards), 1)

  def test_all_steps_and_their_counts(self):
    made, texts = self.run_it(self.everything())
    self.assertEqual(texts, [_TEXTS[i] for i in (1, 3, 7, 8)])
    found = made.screening
    self.assertEqual(
      found["dropped"],
      {
        "too_short": 1,
        "too_long": 1,
        "contaminated": 1,
        "copy": 2,
        "near_copy": 1,
      },
    )
    self.assertEqual(
      found["evaluations"][str(self.evaluation)],
      {"num_examples": 2, "num_too_short": 1, "num_documents": 1},
    )
    self.assertEqual(manifest.load(self.folder / "out"), made)

  def test_contamination_is_reported_by_document(self):
    _, texts = self.run_it(screening.Screen(evaluations=self.sets))
    self.assertIn(_TEXTS[6], texts)
    report = self.folder / "out" / screening.CONTAMINATION
    (line,) = map(json.loads, report.read_text().splitlines())
    self.assertRegex(line["document"], r"in.jsonl at byte \d+")
    (found,) = line["found"]
    self.assertEqual(found["evaluation"], str(self.evaluation))
    self.assertEqual(found["words"], " ".join(_QUESTION.split()[:8]))
    self.assertEqual((found["num_ngrams"], found["num_examples"]), (5, 1))

  def test_does_not_depend_on_shards_and_workers(self):
    expected = self.run_it(self.everything(), output="one", num_shards=1)
    other = self.run_it(
      self.everything(), output="four", num_shards=4, num_workers=2
    )
    self.assertEqual(other[1], expected[1])
    self.assertEqual(other[0].screening, expected[0].screening)

  def test_leaves_nothing_of_its_own(self):
    self.run_it(self.everything())
    kinds = {f.name.split(".", 1)[-1] for f in (self.folder / "out").iterdir()}
    self.assertEqual(
      kinds, {"array_record", "documents.npy", "json", "jsonl", "lock"}
    )

  def test_goes_on(self):
    expected = self.run_it(self.everything(), output="expected")
    examine, made = screening.examine, []

    def examine_two(part):
      if len(made) == 2:
        raise KeyboardInterrupt
      made.append(part.name)
      return examine(part)

    with (
      mock.patch.object(screening, "examine", examine_two),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.run_it(self.everything())
    with mock.patch.object(screening, "examine", wraps=examine) as again:
      result = self.run_it(self.everything())
    self.assertEqual(again.call_count, 1)
    self.assertEqual(result, expected)

  def test_another_screen_is_another_job(self):
    self.run_it(self.everything())
    for settings in (
      {"near_copies": 0.7},
      {"drop_copies": False},
      {"evaluations": self.sets},
    ):
      changed: dict[str, Any] = settings
      with self.assertRaisesRegex(ValueError, "with another screen"):
        self.run_it(self.everything(**changed))
    fixtures.write_jsonl(self.evaluation, [_QUESTION + " Bukdo", "too short"])
    with self.assertRaisesRegex(ValueError, "with another screen"):
      self.run_it(self.everything())
    fixtures.write_jsonl(self.evaluation, [_QUESTION, "too short"])
    with (
      mock.patch.object(dedup, "version", return_value="newer"),
      self.assertRaisesRegex(ValueError, "with another screen"),
    ):
      self.run_it(self.everything())

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "near_copies is 1.5"):
      screening.Screen(near_copies=1.5)
    long = screening.Screen(filters=filters.Filters(min_chars=10**6))
    with self.assertRaisesRegex(ValueError, "no document left .too short 10."):
      self.run_it(long)
    # Nothing was made, so other options are no other job.
    self.run_it(self.everything())
    missing = dataclasses.replace(self.sets, paths=("nowhere.jsonl",))
    with self.assertRaisesRegex(ValueError, "evaluation .*nowhere.* not exist"):
      self.run_it(screening.Screen(evaluations=missing), output="missing")

  def test_is_on(self):
    self.assertFalse(screening.Screen().is_on)
    self.assertEmpty(screening.Screen().reasons())
    self.assertLen(self.everything().reasons(), 5)
    self.assertTrue(self.everything().is_on)
    self.assertTrue(screening.Screen(evaluations=self.sets).is_on)

  def test_runner_sees_what_is_missing(self):
    runner = mock.Mock(wraps=worker_pool.Pool())
    tokenization.run(
      [self.input],
      self.folder / "out",
      tokenizer=self.tokenizer,
      options=tokenization.Options(screen=self.everything()),
      runner=runner,
    )
    labels = [call.kwargs["label"] for call in runner.call_args_list]
    self.assertEqual(
      [x.split()[0] for x in labels], ["Screening", "Tokenizing"]
    )


if __name__ == "__main__":
  absltest.main()
