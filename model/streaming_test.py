import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from model import checkpoint
from model import fixtures
from model import schema
from model import sharding
from model import streaming
from model import transformer

_CONFIG = fixtures.config()
_EXECUTION = fixtures.execution()
_VALUES = {
  checkpoint.CONFIG_FILE: {
    "model": schema.to_dict(_CONFIG),
    "execution": schema.to_dict(_EXECUTION),
  }
}


def shapes():
  return transformer.abstract(_CONFIG, _EXECUTION)[1]


def make_arrays():
  """Random numbers by dotted name; one layer of one of them is all zeros."""
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in sharding.named_leaves(shapes()).items()
  }
  arrays["group_0.block_0.mixer.q_DNH"][1] = 0.0
  arrays["group_0.block_0.mixer.k_DKH"][1] = -0.0
  return arrays


def slices(arrays):
  """Every slice of every array, layers apart, in no order."""
  for name, array in reversed(arrays.items()):
    if name.startswith("group_"):
      for layer in reversed(range(len(array))):
        yield name, (layer,), array[layer]
    else:
      yield name, (), array


class WriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "out"
    self.arrays = make_arrays()

  def write(self):
    with streaming.Writer(self.folder, shapes(), step=3) as writer:
      for name, index, value in slices(self.arrays):
        writer.write(name, index, value)
      return writer.finish(_VALUES, tokenizer={"tokenizer.json": b"{}"})

  def test_is_loaded_like_any_other(self):
    self.assertEqual(self.write(), self.folder / "3")
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    # Which also compares the digests.
    bundle = checkpoint.load(self.folder, mesh)
    self.assertEqual((bundle.config, bundle.step), (_CONFIG, 3))
    loaded = sharding.named_leaves(bundle.params)
    self.assertEqual(loaded.keys(), self.arrays.keys())
    for name, array in self.arrays.items():
      self.assertEqual(np.asarray(loaded[name]).tobytes(), array.tobytes())
    assert bundle.tokenizer is not None
    content = (bundle.tokenizer / "tokenizer.json").read_bytes()
    self.assertEqual(content, b"{}")

  def test_is_read_in_slices(self):
    reader = streaming.Reader(self.write())
    self.assertCountEqual(reader.names, self.arrays)
    for name, index, value in slices(self.arrays):
      with reader.open(name) as array:
        self.assertEqual(array.shape, self.arrays[name].shape)
        self.assertEqual(array.read(index).tobytes(), value.tobytes())

  def test_sizes(self):
    with streaming.Writer(self.folder, shapes()) as writer:
      self.assertEqual(writer.dtype("embed_VD"), np.float32)
      total = sum(array.size for array in self.arrays.values())
      self.assertEqual(writer.num_elements, total)

  def test_nothing_is_left_of_a_failure(self):
    with (
      self.assertRaisesRegex(KeyError, "stop"),
      streaming.Writer(self.folder, shapes()) as writer,
    ):
      writer.write("embed_VD", (), self.arrays["embed_VD"])
      raise KeyError("stop")
    self.assertEmpty(list(self.folder.iterdir()))
    # What a killed process leaves does no harm.
    (self.folder / "3.writing" / "params" / "old").mkdir(parents=True)
    self.write()
    self.assertEqual([f.name for f in self.folder.iterdir()], ["3"])

  def test_must_be_complete(self):
    with (
      self.assertRaisesRegex(AssertionError, "embed_VD"),
      streaming.Writer(self.folder, shapes()) as writer,
    ):
      for name, index, value in slices(self.arrays):
        if name != "embed_VD":
          writer.write(name, index, value)
      writer.finish(_VALUES, tokenizer={})

  def test_refusals(self):
    self.write()
    with self.assertRaisesRegex(ValueError, "out/3 exists; name another"):
      self.write()
    file = self.folder / "file"
    file.write_text("")
    with self.assertRaisesRegex(ValueError, "file/0.writing cannot be made"):
      streaming.Writer(file, shapes())
    with (
      mock.patch.object(
        streaming.shutil, "disk_usage", return_value=mock.Mock(free=10)
      ),
      self.assertRaisesRegex(ValueError, r"bytes, but its disk has 10 free"),
    ):
      streaming.Writer(self.folder, shapes())
    self.assertFalse((self.folder / "0.writing").exists())


class ReaderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_what_orbax_wrote(self):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 64, 8)).astype(ml_dtypes.bfloat16)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(
        self.folder / "0" / "params", {"a": {"b": jnp.asarray(array)}}
      )
    reader = streaming.Reader(self.folder / "0")
    self.assertEqual(reader.names, ("a.b",))
    with reader.open("a.b") as slices_:
      for layer in range(3):
        read = slices_.read((layer,))
        self.assertEqual(read.tobytes(), array[layer].tobytes())
      self.assertEqual(slices_.read(()).tobytes(), array.tobytes())
    with (
      self.assertRaisesRegex(
        checkpoint.CorruptCheckpointError, "c.d cannot be opened"
      ),
      reader.open("c.d"),
    ):
      pass

  def test_damaged_metadata(self):
    (self.folder / "params").mkdir()
    for content in (None, "{", "{}"):
      if content is not None:
        (self.folder / "params" / "_METADATA").write_text(content)
      with self.assertRaisesRegex(
        checkpoint.CorruptCheckpointError, "params cannot be read"
      ):
        streaming.Reader(self.folder)

  def test_damaged_data(self):
    arrays = make_arrays()
    with streaming.Writer(self.folder, shapes()) as writer:
      for name, index, value in slices(arrays):
        writer.write(name, index, value)
      step = writer.finish(_VALUES, tokenizer={})
    (step / "params" / "embed_VD" / "0.0").write_bytes(b"short")
    with (
      streaming.Reader(step).open("embed_VD") as array,
      self.assertRaisesRegex(
        checkpoint.CorruptCheckpointError, "embed_VD cannot be read"
      ),
    ):
      array.read(())


class DigestTest(parameterized.TestCase):
  @parameterized.parameters(np.float32, ml_dtypes.bfloat16)
  def test_slices_add_up_to_the_whole(self, dtype):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, 3, 5, 7)).astype(dtype)
    whole = checkpoint.digests({"x": jnp.asarray(array)})["x"]
    for depth in range(3):
      total = np.zeros(2, np.uint32)
      for index in np.ndindex(array.shape[:depth]):
        total += streaming.digest(array[index], index, array.shape)
      self.assertEqual(checkpoint.to_hex(total), whole, depth)

  @parameterized.parameters(np.float32, ml_dtypes.bfloat16)
  def test_chunks(self, dtype):
    # Smaller, equal to and larger than what is digested in one go.
    small, chunk = streaming.DIGEST_SMALL, streaming.DIGEST_CHUNK
    bits = np.random.default_rng(0).bytes(4 * (2 * chunk + small + 9))
    array = np.frombuffer(bits, dtype)
    for size in (1, small - 1, small, chunk, 2 * chunk + 5, chunk + small + 9):
      part = array[:size]
      self.assertEqual(
        checkpoint.to_hex(streaming.digest(part, (), part.shape)),
        checkpoint.digests({"x": jnp.asarray(part)})["x"],
      )

  def test_layout_in_memory_does_not_matter(self):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(
      streaming.digest(array.T, (), (4, 3)),
      streaming.digest(array.T.copy(), (), (4, 3)),
    )


class ForEachTest(absltest.TestCase):
  def test_all_items(self):
    done = []
    streaming.for_each(done.append, iter(range(100)))
    self.assertCountEqual(done, range(100))
    streaming.for_each(done.append, ())

  def test_the_first_error_ends_it(self):
    done = []

    def fail_at_3(item):
      done.append(item)
      if item == 3:
        raise ValueError("item 3")

    with self.assertRaisesRegex(ValueError, "item 3"):
      streaming.for_each(fail_at_3, range(1000))
    self.assertLess(len(done), 20)


class DtypesTest(absltest.TestCase):
  def test_dtypes(self):
    found = streaming.dtypes({"a": {"b": jnp.zeros(3, jnp.bfloat16)}})
    self.assertEqual(found, {"a.b": np.dtype(ml_dtypes.bfloat16)})


if __name__ == "__main__":
  absltest.main()
