import dataclasses
import gzip
import multiprocessing
import pathlib
import threading
import time
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import fsspec
import numpy as np

from data import documents
from data import fixtures
from data import manifest
from data import tokenization
from data import tokenizer as tokenizer_lib
from data.sources import array_record

_TEXTS = [fixtures.text(index) for index in range(60)] + ["", "한글 " * 40]
_OPTIONS = tokenization.Options(num_shards=4, record_tokens=16)


def tokenize(file, output, tokenizer):
  """In a process of its own, which a test kills."""
  tokenization.run([file], output, tokenizer=tokenizer, options=_OPTIONS)


class TokenizationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.input = fixtures.write_jsonl(self.folder / "in.jsonl", _TEXTS)
    self.output = self.folder / "out"

  def run_it(self, output=None, *, inputs=None, **options):
    return tokenization.run(
      inputs or [self.input],
      output or self.output,
      tokenizer=self.tokenizer,
      options=dataclasses.replace(_OPTIONS, **options),
    )

  def test_tokens_are_the_documents(self):
    result = self.run_it()
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    texts = [text for text in _TEXTS if text]
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    source = array_record.ArrayRecordSource(self.output, verify=True)
    tokens = source.read(0, source.num_tokens)
    np.testing.assert_array_equal(tokens, np.concatenate(expected))
    self.assertEqual(
      source.document_lengths.tolist(), [len(ids) for ids in expected]
    )
    self.assertEqual(result.num_documents, len(texts))
    self.assertEqual(result.num_bytes, len("".join(texts).encode()))
    self.assertEqual(sum(shard.num_empty for shard in result.shards), 1)
    self.assertEqual(result.dtype, "uint16")
    self.assertEqual(result, manifest.load(self.output))

  def test_files_do_not_depend_on_the_number_of_workers(self):
    self.run_it(self.folder / "one", num_workers=1)
    self.run_it(self.folder / "three", num_workers=3)
    for file in sorted((self.folder / "one").iterdir()):
      if file.name != "job.json":
        other = self.folder / "three" / file.name
        self.assertEqual(file.read_bytes(), other.read_bytes(), file.name)

  def test_formats_give_the_same_tokens(self):
    jsonl = self.run_it()
    texts = [text for text in _TEXTS if text]
    for index, text in enumerate(texts):
      file = self.folder / "texts" / f"{index:03d}.txt"
      file.parent.mkdir(exist_ok=True)
      file.write_text(text)
    self.run_it(self.folder / "files", inputs=[self.folder / "texts"])
    one, two = map(
      array_record.ArrayRecordSource, (self.output, self.folder / "files")
    )
    np.testing.assert_array_equal(
      one.read(0, jsonl.num_tokens), two.read(0, jsonl.num_tokens)
    )

  def test_urls_and_compressed_files_give_the_same_tokens(self):
    expected = self.run_it()
    filesystem = fsspec.filesystem("memory")
    content = gzip.compress(self.input.read_bytes())
    filesystem.pipe_file("/tokenization/in.jsonl.gz", content)
    url = "memory://tokenization/in.jsonl.gz"
    made = self.run_it(self.folder / "url", inputs=[url])
    tokens = [
      source.read(0, expected.num_tokens).tolist()
      for source in map(
        array_record.ArrayRecordSource, (self.output, self.folder / "url")
      )
    ]
    self.assertEqual(tokens[0], tokens[1])
    self.assertEqual(made.num_bytes, expected.num_bytes)
    filesystem.pipe_file("/tokenization/in.jsonl.gz", content + content)
    with self.assertRaisesRegex(ValueError, "another input"):
      self.run_it(self.folder / "url", inputs=[url])

  def test_a_whole_dataset_is_left_as_is(self):
    first = self.run_it()
    times = {f.name: f.stat().st_mtime_ns for f in self.output.iterdir()}
    self.assertEqual(self.run_it(), first)
    del times[".lock"]
    for name, modified in times.items():
      self.assertEqual((self.output / name).stat().st_mtime_ns, modified, name)

  def test_only_what_is_missing_is_made_again(self):
    expected = self.run_it(self.folder / "expected")
    # As after a kill: no manifest, one shard half-written, one damaged.
    _make_shard = tokenization._make_shard
    made = []

    def make_two(task):
      if len(made) == 2:
        task_file = task.output / f"{task.name}.array_record.partial"
        task_file.write_bytes(b"half")
        raise KeyboardInterrupt
      made.append(task.name)
      return _make_shard(task)

    with (
      mock.patch.object(tokenization, "_make_shard", make_two),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.run_it()
    self.assertFalse((self.output / manifest.FILE).exists())
    damaged = self.output / f"{made[1]}.array_record"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = []

    def make_rest(task):
      again.append(task.name)
      return _make_shard(task)

    with mock.patch.object(tokenization, "_make_shard", make_rest):
      result = self.run_it()
    self.assertEqual(result, expected)
    self.assertLen(again, 3)
    self.assertNotIn(made[0], again)
    self.assertEmpty(list(self.output.glob("*.partial")))

  def test_goes_on_after_a_kill(self):
    big = [fixtures.text(index) * 20 for index in range(3000)]
    file = fixtures.write_jsonl(self.folder / "big.jsonl", big)
    process = multiprocessing.get_context("spawn").Process(
      target=tokenize, args=(file, self.output, self.tokenizer)
    )
    process.start()
    while not list(self.output.glob("shard-*.json")):
      self.assertTrue(process.is_alive(), "finished before a shard was noted")
      time.sleep(0.002)
    process.kill()
    process.join()
    self.assertFalse((self.output / manifest.FILE).exists())
    result = self.run_it(inputs=[file])
    expected = self.run_it(self.folder / "expected", inputs=[file])
    self.assertEqual(result, expected)

  def test_a_killed_worker_is_told(self):
    def kill_a_worker():
      while not (children := multiprocessing.active_children()):
        time.sleep(0.002)
      children[0].kill()

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    with self.assertRaisesRegex(RuntimeError, "run the same command again"):
      self.run_it(num_workers=2)
    thread.join()
    self.assertEqual(self.run_it(), self.run_it(self.folder / "expected"))

  @parameterized.parameters(
    ({"record_tokens": 8}, "another record_tokens"),
    ({"num_shards": 2}, "another num_shards"),
    ({"format": documents.Format.JSONL}, "another format"),
  )
  def test_refuses_another_job(self, options, message):
    self.run_it()
    with self.assertRaisesRegex(ValueError, message):
      self.run_it(**options)

  def test_refuses_another_tokenizer_and_input(self):
    self.run_it()
    fixtures.write_jsonl(self.input, _TEXTS[1:])
    with self.assertRaisesRegex(ValueError, "another input"):
      self.run_it()
    tokenizer_lib.Tokenizer.train(_TEXTS, vocab_size=301).save(self.tokenizer)
    with self.assertRaisesRegex(ValueError, "another tokenizer, input"):
      self.run_it()

  def test_a_job_that_made_nothing_may_be_changed(self):
    with self.assertRaisesRegex(ValueError, "no field 'body' in text"):
      self.run_it(field="body")
    self.assertFalse(self.output.exists())  # Found before anything is noted.
    with (
      mock.patch.object(tokenization, "_make_shard", side_effect=ValueError),
      self.assertRaises(ValueError),
    ):
      self.run_it(num_shards=2)
    self.assertEqual(self.run_it(), self.run_it(self.folder / "expected"))

  def test_refuses_bad_input(self):
    with self.assertRaisesRegex(ValueError, "does not exist"):
      self.run_it(inputs=[self.folder / "none.jsonl"])
    fixtures.write_jsonl(self.input, ["", ""])
    with self.assertRaisesRegex(ValueError, "no document with text"):
      self.run_it()

  def test_an_error_of_a_worker_is_the_users(self):
    with self.input.open("a") as stream:
      stream.write("{\n")
    with self.assertRaisesRegex(ValueError, "in.jsonl:63: not valid JSON"):
      self.run_it(num_workers=2)

  def test_refuses_an_output_that_cannot_be_written(self):
    with self.assertRaisesRegex(ValueError, "cannot be written"):
      self.run_it(self.input / "below_a_file")

  def test_refuses_tokens_that_lose_text(self):
    spec = (self.tokenizer / "tokenizer.json").read_text()
    lossy = spec.replace('"normalizer": null', '"normalizer": {"type": "NFD"}')
    self.assertNotEqual(lossy, spec)
    (self.tokenizer / "tokenizer.json").write_text(lossy)
    with self.assertRaisesRegex(ValueError, "decode to another text"):
      self.run_it()
    self.run_it(self.folder / "accepted", verify=False)

  @parameterized.parameters("num_shards", "record_tokens", "num_workers")
  def test_refuses_options(self, field):
    values: dict[str, Any] = {field: 0}
    with self.assertRaisesRegex(ValueError, f"{field} is 0"):
      dataclasses.replace(_OPTIONS, **values)


if __name__ == "__main__":
  absltest.main()
