import dataclasses
import json
import pathlib
import struct

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import fixtures
from data import indexed
from data import indexed_corpus
from data import screening
from data import tokenization
from data import tokenizer as tokenizer_lib

_TEXTS = ["", *(fixtures.text(index) for index in range(20)), "", "", "end", ""]
_OPTIONS = tokenization.Options(num_shards=4, record_tokens=16)


class IndexedCorpusTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.input = fixtures.write_jsonl(self.folder / "in.jsonl", _TEXTS)
    self.prefix = self.folder / "out" / "corpus_text_document"

  def run_it(self, prefix=None, **options):
    return indexed_corpus.run(
      [self.input],
      prefix or self.prefix,
      tokenizer=self.tokenizer,
      options=dataclasses.replace(_OPTIONS, **options),
    )

  def test_files_are_those_of_megatron(self):
    # What tools/preprocess_data.py --append-eod writes: a document is one
    # sequence with an eod, an empty one has no sequence.
    self.run_it()
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    documents = [
      [*tokenizer.encode(text), tokenizer.eos_id] for text in _TEXTS if text
    ]
    lengths = np.array([len(ids) for ids in documents], np.int32)
    present = np.cumsum([0, *(bool(text) for text in _TEXTS)])
    tokens = np.concatenate(documents).astype(np.uint16)
    self.assertEqual(
      pathlib.Path(f"{self.prefix}.bin").read_bytes(), tokens.tobytes()
    )
    self.assertEqual(
      pathlib.Path(f"{self.prefix}.idx").read_bytes(),
      b"MMIDIDX\x00\x00"
      + struct.pack("<QBQQ", 1, 8, len(lengths), len(_TEXTS) + 1)
      + lengths.tobytes()
      + ((np.cumsum(lengths) - lengths) * 2).astype(np.int64).tobytes()
      + present.astype(np.int64).tobytes(),
    )
    self.assertEqual(indexed.Indexed(self.prefix).num_documents, len(_TEXTS))

  def test_notes_what_it_is(self):
    made = self.run_it()
    note = json.loads(
      self.prefix.with_name(self.prefix.name + ".json").read_text()
    )
    self.assertEqual(note["num_documents"], len(_TEXTS))
    self.assertEqual(note["num_empty"], 4)
    self.assertEqual(note["num_tokens"], made.num_tokens)
    self.assertEqual(note["files"]["bin"]["size"], 2 * made.num_tokens)
    # No shard is left.
    names = {f.name for f in (self.folder / "out").rglob("*") if f.is_file()}
    expected = {f"corpus_text_document.{s}" for s in ("bin", "idx", "json")}
    self.assertEqual(names - expected, {"job.json", "manifest.json", ".lock"})

  def test_does_not_depend_on_the_shards(self):
    self.run_it()
    other = self.folder / "other"
    self.run_it(other, num_shards=1, record_tokens=1000)
    for suffix in ("bin", "idx"):
      self.assertEqual(
        pathlib.Path(f"{self.prefix}.{suffix}").read_bytes(),
        pathlib.Path(f"{other}.{suffix}").read_bytes(),
      )

  def test_goes_on_and_is_left_as_is(self):
    self.run_it()
    file = pathlib.Path(f"{self.prefix}.idx")
    before = file.stat().st_mtime_ns
    self.run_it()
    self.assertEqual(file.stat().st_mtime_ns, before)
    with self.assertRaisesRegex(ValueError, "another num_shards"):
      self.run_it(num_shards=3)
    file.unlink()
    with self.assertRaisesRegex(
      ValueError, "remove .*corpus_text_document.job"
    ):
      self.run_it()

  def test_a_join_that_was_stopped_is_done_again(self):
    self.run_it(self.folder / "expected")
    options = dataclasses.replace(_OPTIONS, note_empty=True)
    job = self.prefix.with_name(self.prefix.name + ".job")
    tokenization.run(
      [self.input], job, tokenizer=self.tokenizer, options=options
    )
    pathlib.Path(f"{self.prefix}.bin").write_bytes(b"half")
    self.run_it()
    self.assertEqual(
      pathlib.Path(f"{self.prefix}.bin").read_bytes(),
      (self.folder / "expected.bin").read_bytes(),
    )

  def test_screening(self):
    screen = screening.Screen(drop_copies=True)
    fixtures.write_jsonl(self.input, ["a text", "", "a text", "other"])
    made = self.run_it(screen=screen)
    self.assertEqual(made.screening["dropped"], {"copy": 1})
    self.assertEqual(
      np.diff(indexed.Indexed(self.prefix).document_indices).tolist(), [1, 0, 1]
    )

  def test_prefix_of(self):
    self.assertEqual(
      indexed_corpus.prefix_of("a/b", "text"), pathlib.Path("a/b_text_document")
    )


if __name__ == "__main__":
  absltest.main()
