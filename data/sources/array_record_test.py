import json
import pathlib
import pickle

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import fixtures
from data import manifest
from data import tokenizer as tokenizer_lib
from data.sources import array_record

_TEXTS = [fixtures.text(index) for index in range(40)]


class ArrayRecordSourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.dataset = self.folder / "dataset"
    self.manifest = fixtures.write_dataset(
      self.dataset, _TEXTS, tokenizer=self.tokenizer, num_shards=3
    )
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in _TEXTS]
    self.tokens = np.concatenate(ids)

  def test_every_range_reads_as_the_tokens(self):
    source = array_record.ArrayRecordSource(self.dataset)
    self.assertEqual(source.num_tokens, len(self.tokens))
    self.assertEqual(source.num_documents, len(_TEXTS))
    rng = np.random.default_rng(0)
    edges = np.cumsum(source.document_lengths).tolist()
    pairs = [(0, len(self.tokens)), (0, 0), (edges[3], edges[4]), (16, 32)]
    pairs += [sorted(rng.integers(0, len(self.tokens), 2)) for _ in range(300)]
    for start, stop in pairs:
      read = source.read(int(start), int(stop))
      np.testing.assert_array_equal(read, self.tokens[start:stop])
      self.assertEqual(read.dtype, np.uint16)

  def test_reads_after_it_was_sent_to_a_process(self):
    source = array_record.ArrayRecordSource(self.dataset)
    source.read(0, 100)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(5, 90), self.tokens[5:90])

  def test_empty_shards_are_fine(self):
    few = self.folder / "few"
    fixtures.write_dataset(
      few, _TEXTS[:2], tokenizer=self.tokenizer, num_shards=6
    )
    source = array_record.ArrayRecordSource(few)
    expected = self.tokens[: source.num_tokens]
    np.testing.assert_array_equal(source.read(0, source.num_tokens), expected)

  @parameterized.parameters((-1, 5), (5, 4), (0, 10**9))
  def test_refuses_ranges_outside(self, start, stop):
    source = array_record.ArrayRecordSource(self.dataset)
    with self.assertRaisesRegex(ValueError, "is outside"):
      source.read(start, stop)

  def test_the_digest_is_of_the_tokens(self):
    other = fixtures.write_dataset(
      self.folder / "other",
      [*_TEXTS[:-1], "another text"],
      tokenizer=self.tokenizer,
      num_shards=3,
    )
    smaller_records = fixtures.write_dataset(
      self.folder / "smaller",
      _TEXTS,
      tokenizer=self.tokenizer,
      num_shards=3,
      record_tokens=7,
    )
    self.assertNotEqual(self.manifest.digest, other.digest)
    self.assertEqual(self.manifest.digest, smaller_records.digest)

  def shard_file(self, suffix):
    return self.dataset / f"{self.manifest.shards[1].name}.{suffix}"

  @parameterized.parameters("array_record", "documents.npy")
  def test_a_cut_or_missing_file_is_refused_when_opened(self, suffix):
    file = self.shard_file(suffix)
    file.write_bytes(file.read_bytes()[:-5])
    with self.assertRaisesRegex(
      ValueError, f"{file} has .* bytes, not .*; restore the file"
    ):
      array_record.ArrayRecordSource(self.dataset)
    file.unlink()
    with self.assertRaisesRegex(ValueError, f"{file} is missing"):
      array_record.ArrayRecordSource(self.dataset)

  def test_a_changed_byte_is_found_when_asked(self):
    file = self.shard_file("array_record")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with self.assertRaisesRegex(ValueError, f"{file} does not have the sha256"):
      array_record.ArrayRecordSource(self.dataset, verify=True)

  def test_a_record_that_cannot_be_read_is_named(self):
    file = self.shard_file("array_record")
    # The first blocks hold the records; their checksums no longer agree.
    content = bytearray(file.read_bytes())
    content[100:600] = bytes(500)
    file.write_bytes(content)
    source = array_record.ArrayRecordSource(self.dataset)
    with self.assertRaisesRegex(
      ValueError, rf"{file}: record \d+ cannot be read .*; restore"
    ):
      source.read(0, source.num_tokens)

  def test_a_file_of_zeros_is_named(self):
    file = self.shard_file("array_record")
    file.write_bytes(bytes(file.stat().st_size))
    source = array_record.ArrayRecordSource(self.dataset)
    with self.assertRaisesRegex(ValueError, f"{file}: record 0 cannot be read"):
      source.read(0, source.num_tokens)

  def test_lengths_that_disagree_are_refused(self):
    file = self.shard_file("documents.npy")
    lengths = np.load(file)
    lengths[0] += 1
    np.save(file, lengths)
    with self.assertRaisesRegex(ValueError, "does not agree with the manifest"):
      array_record.ArrayRecordSource(self.dataset)
    file.write_bytes(bytes(file.stat().st_size))
    with self.assertRaisesRegex(ValueError, f"{file} cannot be read"):
      array_record.ArrayRecordSource(self.dataset)

  def test_a_dtype_that_cannot_hold_the_ids_is_refused(self):
    file = self.dataset / manifest.FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "vocab_size": 65537}))
    with self.assertRaisesRegex(ValueError, "uint16, .* hold its 65537 ids"):
      array_record.ArrayRecordSource(self.dataset)

  def test_bad_manifests_are_refused(self):
    with self.assertRaisesRegex(ValueError, "does not exist"):
      array_record.ArrayRecordSource(self.folder / "missing")
    file = self.dataset / manifest.FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "version": 2}))
    with self.assertRaisesRegex(ValueError, "format cacao-tokens 2; this"):
      array_record.ArrayRecordSource(self.dataset)
    for text in ("", "[]", "{}", '{"totals": {}, "shards": []}'):
      file.write_text(text)
      with self.assertRaisesRegex(ValueError, "is not a dataset manifest"):
        array_record.ArrayRecordSource(self.dataset)
    file.unlink()
    with self.assertRaisesRegex(ValueError, "exists but has no manifest.json"):
      array_record.ArrayRecordSource(self.dataset)


if __name__ == "__main__":
  absltest.main()
