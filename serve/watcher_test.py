import pathlib
import shutil
import threading
from typing import Any
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from model import sharding
from serve import checkpoint_fixtures as fixtures
from serve import checkpoints
from serve import watcher as watcher_lib


class WatcherTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / "run/checkpoints"
    self.tokenizer = fixtures.write_tokenizer(self.root / "tokenizer")
    self.write(1)
    self.found = []
    self.now = 0.0

  def write(self, step, **changes):
    settings: dict[str, Any] = {"tokenizer": self.tokenizer} | changes
    return fixtures.write(self.folder, step=step, **settings)

  def watch(self, path=None, *, on_new=None, seconds=5.0):
    path = path or self.root / "run"
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    model = checkpoints.load(
      path, mesh=mesh, compute_dtype="float32", import_folder=self.root / "kept"
    )
    return watcher_lib.Watcher(
      path,
      model,
      on_new=on_new or self.found.append,
      seconds=seconds,
      import_folder=self.root / "kept",
      clock=lambda: self.now,
    )

  def damage(self, step):
    """Takes a file away; returns what brings it back."""
    file = self.folder / str(step) / "meta/config.json"
    content = file.read_bytes()
    file.unlink()
    return lambda: file.write_bytes(content)

  def test_the_newest_step_is_handed_on(self):
    watcher = self.watch()
    self.assertIsNone(watcher.look())
    self.write(2)
    params = self.write(3)
    self.assertEqual(watcher.look(), 3)
    self.assertIsNone(watcher.look())
    (model,) = self.found
    self.assertEqual((model.step, watcher.step), (3, 3))
    np.testing.assert_array_equal(model.params["embed_VD"], params["embed_VD"])
    self.assertEqual(model.execution.compute_dtype, "float32")

  def test_a_damaged_step_is_tried_again_ever_more_rarely(self):
    watcher = self.watch()
    self.write(2)
    self.write(3)
    mend = self.damage(3)
    with self.assertLogs(level="WARNING") as logs:
      # The one before it is good.
      self.assertEqual(watcher.look(), 2)
    self.assertRegex(
      logs.output[0], "Step 3 cannot be served; step 1 still is.* in 5 s: .*"
    )
    self.now = 6.0
    with self.assertLogs(level="WARNING") as logs:
      self.assertIsNone(watcher.look())
    self.assertIn("in 10 s", logs.output[0])
    mend()
    self.now = 15.0
    self.assertIsNone(watcher.look())
    self.now = 17.0
    self.assertEqual(watcher.look(), 3)

  def test_flipped_bits_are_not_served(self):
    watcher = self.watch()
    self.write(2)
    folder = self.folder / "2/params/final_norm.scale_D"
    file = next(f for f in folder.iterdir() if f.name[0] != ".")
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with self.assertLogs(level="WARNING") as logs:
      self.assertIsNone(watcher.look())
    self.assertIn("digests differ", logs.output[0])

  def test_a_step_that_is_still_copied(self):
    watcher = self.watch()
    # Not yet renamed into place, as a trainer does it; then one by hand.
    (self.folder / "2.orbax-checkpoint-tmp").mkdir()
    self.assertIsNone(watcher.look())
    (self.folder / "2" / "params").mkdir(parents=True)
    with self.assertLogs(level="WARNING"):
      self.assertIsNone(watcher.look())

  def test_a_step_that_is_deleted_while_it_is_read(self):
    watcher = self.watch()
    self.write(2)
    load_step = checkpoints.load_step

    def delete_then_load(folder, **settings):
      if folder.name == "3":
        shutil.rmtree(folder)
      return load_step(folder, **settings)

    self.write(3)
    with (
      mock.patch.object(checkpoints, "load_step", delete_then_load),
      self.assertNoLogs(level="WARNING"),
    ):
      self.assertEqual(watcher.look(), 2)
    self.write(3)
    self.assertEqual(watcher.look(), 3)

  def test_what_is_served_may_be_deleted(self):
    watcher = self.watch()
    shutil.rmtree(self.folder / "1")
    self.assertIsNone(watcher.look())
    self.write(2)
    self.assertEqual(watcher.look(), 2)

  def test_another_model_is_refused_once(self):
    other = self.root / "other"
    fixtures.write_tokenizer(other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    for settings, why in (
      ({"model": fixtures.config(mlp_dim=64)}, "which differs in groups"),
      ({"tokenizer": other}, "it has another tokenizer"),
      ({"tokenizer": None}, "it has another tokenizer"),
    ):
      watcher = self.watch()
      self.write(2, **settings)
      with self.assertLogs(level="ERROR") as logs:
        self.assertIsNone(watcher.look())
      self.assertRegex(logs.output[0], f"Step 2 .* is refused: .*{why}.*step 1")
      with self.assertNoLogs(level="WARNING"):
        self.assertIsNone(watcher.look())
      shutil.rmtree(self.folder / "2")
      # What comes in its place has another chance.
      self.assertIsNone(watcher.look())
      self.write(2)
      self.assertEqual(watcher.look(), 2)
      shutil.rmtree(self.folder / "2")

  def test_what_the_engine_cannot_take_is_tried_again(self):
    on_new = mock.Mock(side_effect=[RuntimeError("no memory"), None])
    watcher = self.watch(on_new=on_new)
    self.write(2)
    with self.assertLogs(level="WARNING") as logs:
      self.assertIsNone(watcher.look())
    self.assertIn("no memory", logs.output[0])
    self.assertEqual(watcher.step, 1)
    self.now = 6.0
    self.assertEqual(watcher.look(), 2)

  def test_thread(self):
    arrived = threading.Event()
    with self.watch(on_new=lambda _: arrived.set(), seconds=0.01) as watcher:
      self.write(2)
      self.assertTrue(arrived.wait(60))
    self.assertEqual(watcher.step, 2)
    # Stopping is no matter of whether it began.
    self.watch().stop()

  def test_nothing_to_watch(self):
    for path, why in (
      (self.folder / "1", "is one step; name the folder it is in"),
      (self.root, "holds no checkpoint"),
    ):
      with self.assertRaisesRegex(ValueError, f"{why}: there is nothing to wa"):
        watcher_lib.check(path)
    (self.root / "model.gguf").write_text("")
    with self.assertRaisesRegex(
      ValueError, "an imported model, which does not"
    ):
      watcher_lib.check(self.root / "model.gguf")


if __name__ == "__main__":
  absltest.main()
