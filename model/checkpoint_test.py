import json
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from model import checkpoint
from model import fixtures
from model import schema
from model import sharding
from model import transformer

_EXECUTION = fixtures.execution()
# So many tokens that there is an array which Orbax writes as data.
_CONFIG = fixtures.config(vocab_size=512)


def mesh(**axes):
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices())


def digest(array):
  return checkpoint.digests({"x": jnp.asarray(array)})["x"]


def random_bits(rng, dtype, shape):
  """An array of random bits; NaNs and infinities are welcome."""
  size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
  return np.frombuffer(rng.bytes(size), jnp.dtype(dtype)).reshape(shape)


def save(folder, params, *, tokenizer=None):
  """A checkpoint as the trainer writes it, without an optimizer."""
  meta = checkpoint.pack_meta(
    {
      checkpoint.CONFIG_FILE: {
        "model": schema.to_dict(_CONFIG),
        "execution": schema.to_dict(_EXECUTION),
      }
    },
    arrays={"params": params},
    tokenizer=tokenizer or {},
  )
  handlers = {
    "params": ocp.StandardCheckpointHandler(),
    "meta": checkpoint.FilesHandler(),
  }
  with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
    manager.save(
      7,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        meta=meta,
      ),
    )
  return folder / "7"


def flip(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 4
  path.write_bytes(bytes(content))


class DigestsTest(parameterized.TestCase):
  @parameterized.parameters(
    "float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8"
  )
  def test_any_single_bit(self, dtype):
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (257,), (3, 5, 7), (2, 2, 3, 4)):
      array = random_bits(rng, dtype, shape)
      before = digest(array)
      self.assertEqual(digest(array.copy()), before)
      for _ in range(8):
        content = bytearray(array.tobytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        flipped = np.frombuffer(bytes(content), array.dtype).reshape(shape)
        self.assertNotEqual(digest(flipped), before)

  def test_bool(self):
    self.assertNotEqual(digest([True, False]), digest([True, True]))

  def test_sign_of_zero_and_nans(self):
    self.assertNotEqual(digest([0.0]), digest([-0.0]))
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    self.assertNotEqual(digest(nan[:1]), digest(nan[1:]))

  def test_order(self):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(6, 8)).astype(np.float32)
    before = digest(array)
    for _ in range(30):
      a, b = rng.choice(array.size, size=2, replace=False)
      swapped = array.copy().ravel()
      swapped[[a, b]] = swapped[[b, a]]
      self.assertNotEqual(digest(swapped.reshape(array.shape)), before)
    for moved in (array[::-1], array[:, ::-1], np.roll(array, 1, axis=0)):
      self.assertNotEqual(digest(moved), before)

  def test_is_the_same_for_any_sharding(self):
    self.assertLen(jax.devices(), 8)
    params = transformer.init(_CONFIG, _EXECUTION, seed=0)
    wanted = checkpoint.digests(params)
    # The two norms of a layer are equal.
    self.assertLen(set(wanted.values()), len(wanted) - 1)
    for axes in ({"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 2}):
      shardings = sharding.param_shardings(params, mesh(**axes))
      placed = jax.device_put(params, shardings)
      self.assertEqual(checkpoint.digests(placed), wanted)

  def test_names(self):
    tree = {"params": {"group_0": {"q_DNH": jnp.ones(3)}}, "step": jnp.ones(())}
    self.assertEqual(
      list(checkpoint.digests(tree)), ["params.group_0.q_DNH", "step"]
    )

  def test_check(self):
    tree = {"a": jnp.ones(3), "b": jnp.zeros(2)}
    expected = checkpoint.digests(tree)
    checkpoint.check_digests(tree, expected, where="here")
    for wrong in (expected | {"b": "0" * 16}, {"a": expected["a"]}):
      with self.assertRaisesRegex(
        checkpoint.CorruptCheckpointError,
        r"here: 1 of 2 arrays are not as they were written .*first is b\.",
      ):
        checkpoint.check_digests(tree, wrong, where="here")


class FilesTest(parameterized.TestCase):
  def test_round_trip(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / "item"
    files = {"a.json": b"{}", "tokenizer/deep/b.bin": bytes(range(256))}
    with ocp.Checkpointer(checkpoint.FilesHandler()) as checkpointer:
      checkpointer.save(folder, args=checkpoint.SaveFiles(files))
      restored = checkpointer.restore(folder, args=checkpoint.RestoreFiles())
    self.assertEqual({name: restored[name] for name in files}, files)
    self.assertEqual((folder / "tokenizer/deep/b.bin").read_bytes()[65], 65)

  def test_find(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    for step in ("5", "10", "9", "11.orbax-checkpoint-tmp"):
      (workdir / "checkpoints" / step / "meta").mkdir(parents=True)
    newest = workdir / "checkpoints" / "10"
    self.assertEqual(checkpoint.steps(workdir / "checkpoints"), [5, 9, 10])
    self.assertEqual(checkpoint.find(workdir), newest)
    self.assertEqual(checkpoint.find(workdir / "checkpoints"), newest)
    older = workdir / "checkpoints" / "5"
    self.assertEqual(checkpoint.find(older), older)
    self.assertEqual(checkpoint.steps(workdir / "none"), [])
    for path in (workdir / "none", older / "meta"):
      with self.assertRaisesRegex(
        ValueError, r"--checkpoint=.* holds no checkpoint; name a run's workdir"
      ):
        checkpoint.find(path)


class LoadTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    params = transformer.init(_CONFIG, _EXECUTION, seed=0)
    shardings = sharding.param_shardings(params, mesh(data=2))
    cls.params = jax.device_put(params, shardings)
    cls.master = pathlib.Path(absltest.get_default_test_tmpdir()) / "master"
    shutil.rmtree(cls.master, ignore_errors=True)
    save(
      cls.master / "checkpoints",
      cls.params,
      tokenizer={"tokenizer.json": b"{}"},
    )

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path) / "run"
    shutil.copytree(self.master, self.workdir)
    self.step = self.workdir / "checkpoints" / "7"

  @parameterized.parameters(
    {"data": 2}, {"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}
  )
  def test_onto_any_mesh(self, **axes):
    made = mesh(**axes)
    bundle = checkpoint.load(self.workdir, made)
    self.assertEqual((bundle.config, bundle.step), (_CONFIG, 7))
    self.assertEqual(bundle.tokenizer, self.step / "meta" / "tokenizer")
    jax.tree.map(np.testing.assert_array_equal, bundle.params, self.params)
    self.assertEqual(
      jax.tree.map(lambda x: x.sharding, bundle.params),
      sharding.param_shardings(bundle.params, made),
    )

  def test_onto_one_device(self):
    one = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    bundle = checkpoint.load(self.step, one)
    jax.tree.map(np.testing.assert_array_equal, bundle.params, self.params)

  def test_link_to_a_step(self):
    link = self.workdir / "latest"
    link.symlink_to(self.step)
    self.assertEqual(checkpoint.load(link, mesh()).step, 7)

  def test_without_tokenizer(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    step = save(folder, self.params)
    self.assertIsNone(checkpoint.load(step, mesh()).tokenizer)

  def test_flipped_bits(self):
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      self.params,
    )
    files = [p for p in (self.step / "params").glob("**/d/*") if p.is_file()]
    files = sorted(files, key=lambda p: p.stat().st_size)[-3:]
    rng = np.random.default_rng(0)
    silent = 0
    for path in files * 4:
      content = path.read_bytes()
      flip(path, rng.integers(len(content)))
      try:
        with ocp.StandardCheckpointer() as checkpointer:
          params = checkpointer.restore(self.step / "params", target)
      except Exception:  # Noticed by Orbax: an error in our words, too.
        message = r"params cannot be read"
      else:
        same = jax.tree.map(np.array_equal, params, self.params)
        if all(jax.tree.leaves(same)):
          path.write_bytes(content)
          continue  # The bit was of no account.
        silent += 1
        message = r"1 of 12 arrays .*digests differ.* the first is params\."
      with self.assertRaisesRegex(checkpoint.CorruptCheckpointError, message):
        checkpoint.load(self.step, mesh())
      path.write_bytes(content)
    # That there are any is why checkpoints have digests. Orbax keeps small
    # arrays in index nodes, which have checksums; large ones have none.
    self.assertGreater(silent, 0)

  def test_changed_digest(self):
    path = self.step / "meta" / checkpoint.DIGESTS_FILE
    saved = json.loads(path.read_text())
    name = "params.group_0.block_0.mixer.q_DNH"
    arrays = saved["arrays"]
    arrays[name] = f"{int(arrays[name], 16) ^ 1:016x}"
    path.write_text(json.dumps(saved))
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError,
      rf"1 of 12 arrays .* the first is {name}\. .*use an earlier step",
    ):
      checkpoint.load(self.step, mesh())

  @parameterized.parameters(
    "digests.json", "config.json", "tokenizer/tokenizer.json"
  )
  def test_damaged_meta(self, name):
    path = self.step / "meta" / name
    for content in (b"", b"{", b"[]", b"\xff\xfe"):
      path.write_bytes(content)
      with self.assertRaisesRegex(
        checkpoint.CorruptCheckpointError, "cannot be read|not as it was wri"
      ):
        checkpoint.load(self.step, mesh())
    path.unlink()
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, f"(?s)cannot be read.*{name}"
    ):
      checkpoint.load(self.step, mesh())

  def test_missing_params(self):
    shutil.rmtree(self.step / "params")
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, "params cannot be read"
    ):
      checkpoint.load(self.step, mesh())

  def test_missing_folder(self):
    with self.assertRaisesRegex(ValueError, "none holds no checkpoint"):
      checkpoint.load(self.workdir / "none", mesh())

  def test_renamed_step(self):
    renamed = self.step.rename(self.workdir / "best")
    with self.assertRaisesRegex(
      ValueError, r"called 'best'; its name must be its step, such as 1000"
    ):
      checkpoint.load(renamed, mesh())


if __name__ == "__main__":
  absltest.main()
