"""Needs Apache Beam: run on purpose, with --config=beam."""

import dataclasses
import pathlib

from absl.testing import absltest

from data import contamination
from data import filters
from data import fixtures
from data import indexed_corpus
from data import screening
from data import tokenization
from data import worker_pool
from tools.tokenize import beam_runner

_LONG = " ".join(f"word{i}" for i in range(40))
_TEXTS = [fixtures.text(index) for index in range(60)]
_TEXTS += ["", _TEXTS[3], _LONG, _LONG + " more", "tiny", "한글 " * 40]
# DirectRunner takes Prism, a program of its own, where it can download it.
_DIRECT, _WITHOUT_PRISM = "DirectRunner", "BundleBasedDirectRunner"


class BeamRunnerTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.input = fixtures.write_jsonl(self.folder / "in.jsonl", _TEXTS)
    evaluation = fixtures.write_jsonl(self.folder / "eval.jsonl", [_LONG[-90:]])
    self.options = tokenization.Options(
      num_shards=5,
      record_tokens=16,
      screen=screening.Screen(
        filters=filters.Filters(min_chars=5),
        evaluations=contamination.Evaluations(paths=(str(evaluation),)),
        drop_copies=True,
        near_copies=0.8,
      ),
    )

  def compare(self, make, name):
    beam, pool = self.folder / "beam" / "out", self.folder / "pool" / "out"
    runner = beam_runner.Beam(arguments=(f"--runner={name}",))
    for output, chosen in ((beam, runner), (pool, worker_pool.Pool())):
      make(
        [self.input],
        output,
        tokenizer=self.tokenizer,
        options=self.options,
        runner=chosen,
      )
    for file in sorted(pool.parent.rglob("*")):
      if file.is_file():
        other = beam.parent / file.relative_to(pool.parent)
        self.assertEqual(file.read_bytes(), other.read_bytes(), file.name)

  def test_files_are_those_of_processes(self):
    self.compare(tokenization.run, _DIRECT)
    made = {file.suffix for file in (self.folder / "beam" / "out").iterdir()}
    self.assertContainsSubset({".array_record", ".npy", ".json"}, made)

  def test_megatrons_files_are_those_of_processes(self):
    self.compare(indexed_corpus.run, _WITHOUT_PRISM)

  def test_an_error_is_the_users(self):
    with self.input.open("a") as stream:
      stream.write("{\n")
    options = dataclasses.replace(self.options, screen=screening.Screen())
    with self.assertRaisesRegex(ValueError, r"in.jsonl:67: not valid.* line$"):
      tokenization.run(
        [self.input],
        self.folder / "out",
        tokenizer=self.tokenizer,
        options=options,
        runner=beam_runner.Beam(arguments=(f"--runner={_WITHOUT_PRISM}",)),
      )


if __name__ == "__main__":
  absltest.main()
