import json
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as library

from model.hf import safetensors_folder
from model.hf import tensors
from tools.hf import safetensors_writer


def make_arrays():
  rng = np.random.default_rng(0)
  shapes = {
    "z.weight": ((5, 3), ml_dtypes.bfloat16),
    "a.weight": ((7,), ml_dtypes.bfloat16),
    "norm": ((3,), np.float32),
    "half": ((2, 2), np.float16),
    "이름": ((4, 4), np.float32),
    "scalar": ((), np.float64),
    "none": ((0, 3), np.float32),
  }
  return {
    name: rng.normal(size=shape).astype(dtype)
    for name, (shape, dtype) in shapes.items()
  }


def specs_of(arrays):
  return {
    name: tensors.Spec(shape=array.shape, dtype=array.dtype)
    for name, array in arrays.items()
  }


class WriterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.parent / "model"
    self.arrays = make_arrays()
    self.specs = specs_of(self.arrays)

  def write(self, names=None, **options):
    with safetensors_writer.Writer(
      self.folder, self.specs, **options
    ) as writer:
      for name in names or self.arrays:
        writer.write(name, self.arrays[name])
      (writer.partial / "config.json").write_text("{}")
    return {f.name: f.read_bytes() for f in self.folder.iterdir()}

  def test_writes_the_bytes_that_the_library_does(self):
    files = self.write()
    self.assertCountEqual(files, ["model.safetensors", "config.json"])
    expected = self.parent / "expected"
    library.save_file(self.arrays, expected, metadata={"format": "pt"})
    self.assertEqual(files["model.safetensors"], expected.read_bytes())
    self.assertFalse((self.parent / "model.partial").exists())

  def test_shards_are_read_by_the_library_and_by_us(self):
    files = self.write(max_shard_bytes=50)
    index = json.loads(files["model.safetensors.index.json"])
    total = sum(array.nbytes for array in self.arrays.values())
    self.assertEqual(index["metadata"], {"total_size": total})
    self.assertCountEqual(index["weight_map"], self.arrays)
    shards = sorted(set(index["weight_map"].values()))
    self.assertEqual(
      shards,
      [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)],
    )
    for shard in shards:
      with safetensors.safe_open(self.folder / shard, "np") as stream:
        self.assertEqual(stream.metadata(), {"format": "pt"})
        names = [n for n, file in index["weight_map"].items() if file == shard]
        self.assertCountEqual(stream.keys(), names)
      for name, array in library.load_file(self.folder / shard).items():
        np.testing.assert_array_equal(array, self.arrays[name])
        self.assertEqual(array.dtype, self.arrays[name].dtype)
    found = safetensors_folder.open_folder(self.folder)
    for name, array in self.arrays.items():
      np.testing.assert_array_equal(found.read(name), array)

  def test_the_order_of_delivery_does_not_matter(self):
    files = self.write(max_shard_bytes=50)
    shutil.rmtree(self.folder)
    again = self.write(names=reversed(list(self.arrays)), max_shard_bytes=50)
    self.assertEqual(files, again)

  def test_an_array_need_not_be_contiguous(self):
    array = np.arange(12.0).reshape(3, 4).T
    specs = specs_of({"a": array})
    with safetensors_writer.Writer(self.folder, specs) as writer:
      writer.write("a", array)
    found = safetensors_folder.open_folder(self.folder)
    np.testing.assert_array_equal(found.read("a"), array)

  def test_leaves_nothing_after_an_exception(self):
    with (
      self.assertRaisesRegex(KeyError, "stop"),
      safetensors_writer.Writer(self.folder, self.specs) as writer,
    ):
      writer.write("norm", self.arrays["norm"])
      raise KeyError("stop")
    self.assertEmpty(list(self.parent.iterdir()))

  def test_every_tensor_must_come(self):
    with self.assertRaisesRegex(AssertionError, "6 tensors are not written"):
      self.write(names=["norm"])
    self.assertEmpty(list(self.parent.iterdir()))

  def test_replaces_what_a_killed_writer_left(self):
    left = self.parent / "model.partial" / "old.safetensors"
    left.parent.mkdir()
    left.write_text("half")
    self.assertNotIn("old.safetensors", self.write())

  def test_refuses_a_target_with_something_in_it(self):
    self.folder.mkdir()
    self.write()  # An empty folder is fine.
    with self.assertRaisesRegex(ValueError, "model is not empty; remove it"):
      self.write()
    shutil.rmtree(self.folder)
    self.folder.write_text("a file")
    with self.assertRaisesRegex(ValueError, "model is a file; choose another"):
      self.write()

  def test_refuses_what_appears_meanwhile(self):
    with (
      self.assertRaisesRegex(ValueError, "meanwhile"),
      safetensors_writer.Writer(self.folder, {}),
    ):
      self.folder.mkdir()
      (self.folder / "x").write_text("theirs")
    self.assertEqual((self.folder / "x").read_text(), "theirs")
    self.assertFalse((self.parent / "model.partial").exists())

  def test_refuses_a_full_disk(self):
    usage = mock.Mock(free=10)
    with (
      mock.patch.object(shutil, "disk_usage", return_value=usage),
      self.assertRaisesRegex(ValueError, "needs 1.. bytes, but .* 10 free"),
    ):
      self.write()
    self.assertEmpty(list(self.parent.iterdir()))

  @parameterized.parameters(
    ({"a": np.zeros(2, np.int32)}, {}, "a is int32; .*bfloat16"),
    ({"__metadata__": np.zeros(2)}, {}, "__metadata__"),
    ({}, {"max_shard_bytes": 0}, "max_shard_bytes is 0"),
  )
  def test_refuses_other_specs(self, arrays, options, message):
    with self.assertRaisesRegex(ValueError, message):
      safetensors_writer.Writer(self.folder, specs_of(arrays), **options)
    self.assertEmpty(list(self.parent.iterdir()))


if __name__ == "__main__":
  absltest.main()
