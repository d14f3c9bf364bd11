import json
import pathlib
import resource
import struct

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
from safetensors import numpy as library

from model.hf import safetensors_folder


def random(shape, dtype):
  rng = np.random.default_rng(sum(shape))
  return rng.normal(size=shape).astype(dtype)


def write_raw(file, header, num_bytes):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(num_bytes))


def entry(dtype, shape, begin, end):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class OpenFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.single = self.folder / "model.safetensors"

  def write_shards(self, shards, weight_map=None):
    """Shards by file name, and their index."""
    for file, arrays in shards.items():
      library.save_file(arrays, self.folder / file)
    if weight_map is None:
      weight_map = {n: file for file, a in shards.items() for n in a}
    index = self.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

  def assert_refused(self, message):
    with self.assertRaisesRegex(ValueError, f"(?s){message}"):
      safetensors_folder.open_folder(self.folder)

  def test_reads_what_the_library_writes(self):
    arrays = {
      "half": random((3, 5), np.float16),
      "brain": random((7,), ml_dtypes.bfloat16),
      "single": random((2, 3, 4), np.float32),
      "double": random((2, 2), np.float64),
      "scalar": np.array(3, np.float32),
      "empty": np.zeros((0, 4), np.float32),
    }
    library.save_file(arrays, self.single, metadata={"format": "pt"})
    found = safetensors_folder.open_folder(self.folder)
    self.assertCountEqual(found, arrays)
    self.assertEqual(found.num_bytes, sum(a.nbytes for a in arrays.values()))
    for name, array in arrays.items():
      self.assertEqual(found[name].shape, array.shape)
      self.assertEqual(found[name].dtype, array.dtype)
      self.assertEqual(found[name].file, self.single)
      read = found.read(name)
      self.assertEqual(read.dtype, array.dtype)
      self.assertTrue(read.flags.writeable)
      np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(
      found.read_slice("single", 1, 2), arrays["single"][1:2]
    )
    self.assertEqual(found.read_slice("half", 3, 3).shape, (0, 5))

  @parameterized.parameters((2, 4), (-1, 1), (2, 1))
  def test_refuses_rows_that_are_not_there(self, start, stop):
    library.save_file({"a": random((3, 5), np.float32)}, self.single)
    found = safetensors_folder.open_folder(self.folder)
    with self.assertRaisesRegex(ValueError, f"a has 3 rows; .*{start}:{stop}"):
      found.read_slice("a", start, stop)
    with self.assertRaisesRegex(ValueError, "no tensor 'b'.*'a'"):
      found.read("b")

  def test_reads_shards_in_the_order_of_the_index(self):
    shards = {
      "model-00001-of-00002.safetensors": {"c": random((2,), np.float32)},
      "model-00002-of-00002.safetensors": {
        "a": random((3,), np.float32),
        "b": random((4,), np.float32),
      },
    }
    self.write_shards(shards)
    # Another copy of the weights, as Mistral's have one.
    library.save_file(
      {"x": np.ones(1)}, self.folder / "consolidated.safetensors"
    )
    found = safetensors_folder.open_folder(self.folder)
    self.assertEqual(list(found), ["c", "a", "b"])
    for arrays in shards.values():
      for name, array in arrays.items():
        np.testing.assert_array_equal(found.read(name), array)

  def test_takes_the_only_file(self):
    library.save_file({"a": np.ones(2)}, self.folder / "weights.safetensors")
    found = safetensors_folder.open_folder(self.folder)
    np.testing.assert_array_equal(found.read("a"), np.ones(2))

  @parameterized.parameters(
    ((), "has no .*safetensors"),
    (("pytorch_model.bin",), "pytorch_model.bin .*convert it to safetensors"),
    (("x.gguf",), "x.gguf .*give the .gguf file"),
    (("a.safetensors", "b.safetensors"), "several weights .a.*b"),
    (("model-00001-of-00002.safetensors",), "no model.safetensors.index.json"),
    (
      ("model.safetensors", "model-00001-of-00002.safetensors"),
      "no model.safetensors.index.json",
    ),
  )
  def test_says_what_a_folder_lacks(self, files, message):
    for name in files:
      library.save_file({"a": np.ones(2)}, self.folder / name)
    self.assert_refused(message)

  def test_refuses_what_is_no_folder(self):
    self.folder = self.folder / "absent"
    self.assert_refused("absent is not a folder")

  @parameterized.parameters(
    (0, "has 0 bytes"),
    (7, "has 7 bytes"),
    (20, "has 20 bytes, but its header alone needs"),
    (-1, "has .* bytes, but its tensors need"),
  )
  def test_refuses_a_file_that_is_cut_short(self, size, message):
    library.save_file({"a": np.ones(100)}, self.single)
    content = self.single.read_bytes()
    self.single.write_bytes(content[:size])
    self.assert_refused(f"model.safetensors {message}.*cut short")

  @parameterized.parameters(
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    (b"<!DOCTYPE html><html>", "web page"),
    (b"PK\x03\x04" + bytes(60) + b"x" * 99, "header alone|not safetensors"),
    (b"GGUF\x03\x00\x00\x7f" + b"x" * 99, "not safetensors"),
  )
  def test_refuses_other_files(self, content, message):
    self.single.write_bytes(content)
    self.assert_refused(f"model.safetensors.*({message})")

  @parameterized.named_parameters(
    ("not_json", b"{oops", 0, "header is not JSON"),
    ("list", [], 0, "header is not a JSON object"),
    ("twice", b'{"a": 1, "a": 2}', 0, "'a' twice"),
    ("no_fields", {"a": 1}, 0, "dtypes.*None"),
    (
      "size",
      {"a": entry("F32", [3], 0, 8)},
      8,
      "a .F32 .3.. needs 12 bytes, but has 8",
    ),
    ("negative", {"a": entry("F32", [-1], 0, 8)}, 8, "a has shape"),
    ("gap", {"a": entry("F32", [1], 4, 8)}, 8, "bytes of a begin at"),
    (
      "overlap",
      {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)},
      6,
      "bytes of b begin at",
    ),
    ("rest", {"a": entry("F32", [1], 0, 4)}, 9, "its tensors end at"),
  )
  def test_refuses_a_damaged_header(self, header, num_bytes, message):
    write_raw(self.single, header, num_bytes)
    self.assert_refused(f"model.safetensors.*{message}")

  def test_names_the_dtypes_that_are_not_supported(self):
    header = {
      "ok": entry("F32", [1], 0, 4),
      "one": entry("F8_E4M3", [1], 4, 5),
      "two": entry("I8", [1], 5, 6),
      "three": entry("I8", [1], 6, 7),
    }
    write_raw(self.single, header, 7)
    self.assert_refused(
      "F8_E4M3 .1 tensors, such as one.; I8 .2 .*such as two.*Dequantize"
    )

  def test_refuses_an_index_that_does_not_fit(self):
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    one, two = {"a": np.ones(1)}, {"b": np.ones(2)}
    self.write_shards({first: one, second: two})
    safetensors_folder.open_folder(self.folder)
    for shards, weight_map, message in (
      ({first: one, second: two}, {"a": first}, f"{second} is not listed"),
      (
        {first: one, second: two | one},
        {"a": first, "b": second},
        f"a is in .*{second}, but .*{first}",
      ),
      (
        {first: one, second: two | {"c": np.ones(1)}},
        {"a": first, "b": second},
        f"{second} has c, which .* does not list",
      ),
      (
        {first: one, second: two},
        {"a": first, "b": second, "c": second},
        f"{second} lacks c",
      ),
      (
        {first: one, second: two},
        {"a": first, "b": second, "c": "model-00003-of-00003.safetensors"},
        "lacks 1 of the 3 files.*model-00003-of-00003.*download",
      ),
      ({first: one, second: two}, {"a": "../x.safetensors"}, "not a file of"),
      ({first: one, second: two}, {}, "no .weight_map."),
    ):
      with self.subTest(message=message):
        self.write_shards(shards, weight_map)
        self.assert_refused(message)

  @parameterized.parameters(
    (b"{oops", "is not JSON"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' twice"),
  )
  def test_refuses_a_damaged_index(self, content, message):
    (self.folder / "model.safetensors.index.json").write_bytes(content)
    self.assert_refused(f"index.json.*{message}")

  def test_notices_a_file_that_shrinks_later(self):
    library.save_file({"a": np.ones(100)}, self.single)
    found = safetensors_folder.open_folder(self.folder)
    self.single.write_bytes(self.single.read_bytes()[:-8])
    with self.assertRaisesRegex(ValueError, "changed meanwhile"):
      found.read("a")

  def test_memory_stays_near_one_tensor(self):
    # 24 tensors of 4 MB; only the file system's cache may have them all.
    shape, count = (1024, 1024), 24
    num_bytes = 4 * shape[0] * shape[1]
    header = {
      f"t{i}": entry("F32", shape, i * num_bytes, (i + 1) * num_bytes)
      for i in range(count)
    }
    write_raw(self.single, header, 0)
    with self.single.open("r+b") as stream:
      stream.truncate(self.single.stat().st_size + count * num_bytes)
    found = safetensors_folder.open_folder(self.folder)
    found.read("t0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in found:
      self.assertEqual(found.read(name)[-1, -1], 0)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB. Two may be alive: the last one and the one that replaces it.
    self.assertLess((after - before) * 1024, 3 * num_bytes)


if __name__ == "__main__":
  absltest.main()
