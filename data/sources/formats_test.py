import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import fsspec

from data import fixtures
from data.sources import formats


class FormatsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))

  def write(self, *names: str) -> pathlib.Path:
    for name in names:
      file = self.folder / name
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(name)
    return self.folder

  def names(self, path, format: str) -> list[str]:
    return [file.relative for file in formats.files(str(path), format)]

  @parameterized.parameters(
    (["a.jsonl", "b/c.jsonl"], "", "jsonl"),
    (["a.jsonl.gz", "b.jsonl.zst", "c.jsonl"], "", "jsonl"),
    (["a.parquet"], "", "parquet"),
    (["a.parquet", "README.md"], "*.parquet", "parquet"),
    (["a.arrow", "b.arrow"], "", "arrow"),
    (["a.txt", "b.md", "c/d.py"], "", "text"),
    (["a.txt"], "a.txt", "text"),
    (["manifest.json", "s.array_record"], "", "dataset"),
    (["shard.array_record"], "", "dataset"),
    (["state.json", "dataset_info.json", "data-0.arrow"], "", "arrow"),
    (["dataset_dict.json", "train/a.arrow"], "", "arrow"),
    (["a.bin", "a.idx"], "a", "megatron"),
    (["a.bin", "a.idx"], "a.bin", "megatron"),
    (["a.bin", "a.idx"], "a.idx", "megatron"),
    # Half of a pair is one; that the other is missing is said by the reader.
    (["a.idx"], "a", "megatron"),
  )
  def test_tells_the_format(self, names, path, expected):
    self.assertEqual(formats.detect(f"{self.write(*names)}/{path}"), expected)

  @parameterized.parameters(
    (["a.jsonl", "README.md"], "'.jsonl', '.md' files, which do not tell"),
    (["a.csv"], "'.csv' files, .* set its format to dataset, meg"),
    ([], "has no files"),
  )
  def test_does_not_guess(self, names, message):
    with self.assertRaisesRegex(ValueError, message):
      formats.detect(str(self.write(*names)))

  def test_a_format_that_is_said_chooses_the_files_of_a_folder(self):
    self.write("b.jsonl", "a/c.jsonl", "README.md", "d.json")
    self.assertEqual(self.names(self.folder, "jsonl"), ["a/c.jsonl", "b.jsonl"])
    self.assertLen(self.names(self.folder, "text"), 4)
    self.assertEqual(self.names(self.folder / "d.json", "jsonl"), ["d.json"])
    self.assertLen(self.names(self.folder / "*.json*", "jsonl"), 2)
    with self.assertRaisesRegex(ValueError, "has no .parquet file"):
      self.names(self.folder, "parquet")
    with self.assertRaisesRegex(ValueError, "has no .arrow file"):
      self.names(self.folder, "arrow")

  def test_a_folder_may_be_named_like_a_glob(self):
    self.write("a[1]/b.jsonl", "a[1]/c.txt")
    self.assertEqual(self.names(self.folder / "a[1]", "jsonl"), ["b.jsonl"])

  def test_a_single_file_in_a_folder_is_not_taken_for_another_format(self):
    self.write("a.jsonl")
    with self.assertRaisesRegex(ValueError, "has no .parquet file"):
      self.names(self.folder, "parquet")

  def test_a_saved_dataset_names_its_files(self):
    folder = fixtures.write_arrow(
      self.folder / "saved", [{"a": 1}] * 9, num_files=3
    )
    # What the library leaves beside them when it computes something.
    (folder / "cache-0123.arrow").write_text("")
    expected = [f"data-0000{i}-of-00003.arrow" for i in range(3)]
    self.assertEqual(self.names(folder, "arrow"), expected)
    (folder / expected[1]).unlink()
    with self.assertRaisesRegex(ValueError, f"lacks {expected[1]}, by its"):
      self.names(folder, "arrow")

  def test_of_a_dict_of_datasets_the_training_split_is_meant(self):
    root = self.folder / "saved"
    for split in ("train", "test"):
      fixtures.write_arrow(root / split, [{"a": 1}] * 4)
    file = root / "dataset_dict.json"
    file.write_text(json.dumps({"splits": ["train", "test"]}))
    expected = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    self.assertEqual(
      self.names(root, "arrow"), [f"train/{name}" for name in expected]
    )
    self.assertEqual(self.names(root / "test", "arrow"), expected)
    file.write_text(json.dumps({"splits": ["test"]}))
    with self.assertRaisesRegex(ValueError, "has the splits test, not train"):
      self.names(root, "arrow")

  def test_files_that_may_not_belong_together_are_refused(self):
    self.write("dataset_info.json", "x-train.arrow", "x-test.arrow")
    with self.assertRaisesRegex(ValueError, "no state.json, .* give a glob"):
      self.names(self.folder, "arrow")
    self.assertLen(self.names(self.folder / "*-train*.arrow", "arrow"), 1)
    state = {"_data_files": [], "_indices_data_files": [{"filename": "i"}]}
    (self.folder / "state.json").write_text(json.dumps(state))
    with self.assertRaisesRegex(ValueError, "flatten_indices"):
      self.names(self.folder, "arrow")
    (self.folder / "state.json").write_text("{")
    with self.assertRaisesRegex(ValueError, "state.json is not valid JSON"):
      self.names(self.folder, "arrow")

  def test_remote_files_are_side_by_side_here(self):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in ("manifest.json", "s/a.array_record", "x.idx", "x.bin"):
      memory.pipe(f"/bucket/{name}", name.encode())
    folder = formats.folder("memory://bucket")
    self.assertEqual(
      (folder / "s/a.array_record").read_text(), "s/a.array_record"
    )
    self.assertEqual((folder / "manifest.json").read_text(), "manifest.json")
    for path in ("memory://bucket/x", "memory://bucket/x.bin"):
      self.assertEqual(formats.detect(path), "megatron")
      prefix = formats.megatron_prefix(path)
      self.assertEqual(pathlib.Path(f"{prefix}.bin").read_text(), "x.bin")
      self.assertEqual(pathlib.Path(f"{prefix}.idx").read_text(), "x.idx")
    memory.rm("/bucket/x.bin")
    with self.assertRaisesRegex(ValueError, "bucket/x.bin' does not exist"):
      formats.megatron_prefix("memory://bucket/x")

  def test_local_places_stay(self):
    self.assertEqual(formats.folder(str(self.folder)), self.folder)
    self.assertEqual(formats.folder(f"file://{self.folder}"), self.folder)
    prefix = formats.megatron_prefix(f"{self.folder}/v1.5.bin")
    self.assertEqual(prefix, self.folder / "v1.5")


if __name__ == "__main__":
  absltest.main()
