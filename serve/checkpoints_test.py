import json
import os
import pathlib
import shutil
import threading
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from model import checkpoint
from model import config as model_config
from model import sharding
from model.hf import fixtures as hf_fixtures
from model.hf import gguf_fixtures
from model.hf import importer
from serve import checkpoint_fixtures as fixtures
from serve import checkpoints
from serve import conventions


class CheckpointsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.workdir = self.root / "run"
    self.imports = self.root / "imports"
    self.mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])

  def load(self, path, *, mesh=None, **settings):
    return checkpoints.load(
      path,
      mesh=mesh or self.mesh,
      compute_dtype="float32",
      import_folder=self.imports,
      **settings,
    )


class RunTest(CheckpointsTest):
  def test_a_run_of_ours(self):
    tokenizer = fixtures.write_tokenizer(self.root / "tokenizer")
    for step in (3, 10):
      params = fixtures.write(
        self.workdir / "checkpoints", step=step, tokenizer=tokenizer
      )
    # As a trainer leaves one.
    (self.workdir / "config.json").write_text("{}")
    for path in (self.workdir, self.workdir / "checkpoints"):
      model = self.load(path)
      self.assertEqual((model.name, model.step), ("tiny", 10))
    self.assertEqual(model.config, fixtures.config())
    self.assertEqual(
      model.execution,
      model_config.ExecutionConfig(compute_dtype="float32"),
    )
    np.testing.assert_array_equal(model.params["embed_VD"], params["embed_VD"])
    self.assertEqual(model.start, conventions.Start.AFTER_END)
    self.assertLen(model.end_ids, 1)
    self.assertEqual(self.load(self.workdir / "checkpoints/3").step, 3)

  def test_the_tokenizer_outlives_the_step(self):
    tokenizer = fixtures.write_tokenizer(self.root / "tokenizer")
    fixtures.write(self.workdir, tokenizer=tokenizer)
    model = self.load(self.workdir)
    shutil.rmtree(self.workdir)
    assert model.tokenizer is not None
    found = {f.name: f.read_bytes() for f in model.tokenizer.iterdir()}
    wanted = {f.name: f.read_bytes() for f in tokenizer.iterdir()}
    self.assertEqual(found, wanted)
    fixtures.write(self.workdir, step=1, tokenizer=tokenizer)
    self.assertEqual(self.load(self.workdir).tokenizer, model.tokenizer)

  def test_without_a_tokenizer(self):
    fixtures.write(self.workdir)
    with self.assertLogs(level="WARNING") as logs:
      model = self.load(self.workdir)
    self.assertIn("has no tokenizer: only token ids", logs.output[-1])
    self.assertIsNone(model.tokenizer)
    self.assertEmpty(model.end_ids)

  def test_shards(self):
    fixtures.write(self.workdir, model=fixtures.config(num_kv_heads=2))
    mesh = sharding.make_mesh(sharding.MeshConfig(tensor=2), jax.devices()[:2])
    head = self.load(self.workdir, mesh=mesh).params["embed_VD"]
    self.assertEqual(
      {shard.data.size for shard in head.addressable_shards}, {head.size // 2}
    )

  def test_no_model(self):
    for path in (self.root / "none", self.root):
      with self.assertRaisesRegex(ValueError, "holds no model; name a run's"):
        self.load(path)

  def test_damage_is_found(self):
    fixtures.write(self.workdir)
    _damage(self.workdir / "0")
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, "not as they were written"
    ):
      self.load(self.workdir)

  def test_a_step_that_the_run_deletes_while_it_is_read(self):
    fixtures.write(self.workdir, step=1)
    load_step = checkpoints.load_step

    def delete_then_load(folder, **settings):
      if folder.name == "1":
        shutil.rmtree(folder)
        fixtures.write(self.workdir, step=2)
      return load_step(folder, **settings)

    with mock.patch.object(checkpoints, "load_step", delete_then_load):
      self.assertEqual(self.load(self.workdir).step, 2)


def _damage(step: pathlib.Path) -> None:
  """Flips a bit of a parameter."""
  file = next(f for f in step.glob("params/embed_VD/*") if f.name[0] != ".")
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


class ImportTest(CheckpointsTest):
  def setUp(self):
    super().setUp()
    self.folder = self.root / "Tiny-Llama"
    tensors = hf_fixtures.tensors(vocab=fixtures.VOCAB_SIZE)
    values = hf_fixtures.config(vocab_size=fixtures.VOCAB_SIZE, eos_token_id=5)
    hf_fixtures.write(self.folder, tensors, values=values)
    self.head = tensors["lm_head.weight"].T

  def test_folder(self):
    fixtures.write_tokenizer(self.folder)
    (self.folder / "generation_config.json").write_text(
      json.dumps({"temperature": 0.5, "eos_token_id": [6, 7]})
    )
    model = self.load(self.folder)
    self.assertEqual((model.name, model.step), ("Tiny-Llama", 0))
    np.testing.assert_array_equal(model.params["head_DV"], self.head)
    self.assertEqual(model.start, conventions.Start.TOKENIZER)
    self.assertContainsSubset({5, 6, 7}, model.end_ids)
    self.assertEqual(model.generation.temperature, 0.5)
    assert model.tokenizer is not None
    self.assertTrue((model.tokenizer / "chat_template.jinja").is_file())

  def test_gguf(self):
    file = self.root / "gguf" / "tiny-Q8.gguf"
    file.parent.mkdir()
    tensors = gguf_fixtures.make_tensors("llama")
    gguf_fixtures.write(file, tensors)
    hf_fixtures.write_tokenizer(file.parent, size=gguf_fixtures.VOCAB)
    (file.parent / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    model = self.load(file)
    self.assertEqual(model.name, "tiny-Q8")
    np.testing.assert_array_equal(
      model.params["embed_VD"], tensors["token_embd.weight"]
    )

  def test_is_imported_once(self):
    with mock.patch.object(importer, "run", wraps=importer.run) as run:
      self.load(self.folder)
      self.load(self.folder)
      (self.folder / "server.log").write_text("no part of it")
      self.load(self.folder)
      self.assertEqual(run.call_count, 1)
      # Other weights, even of the same size.
      file = self.folder / "model.safetensors"
      os.utime(file, ns=(0, 0))
      self.load(self.folder)
      self.assertEqual(run.call_count, 2)

  def test_servers_that_start_together_import_once(self):
    with mock.patch.object(importer, "run", wraps=importer.run) as run:
      threads = [
        threading.Thread(target=self.load, args=[self.folder]) for _ in range(3)
      ]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
      self.assertEqual(run.call_count, 1)

  def test_old_imports_are_deleted(self):
    self.load(self.folder)
    os.utime(self.folder / "model.safetensors", ns=(0, 0))
    self.load(self.folder, keep_imports=1)
    self.assertLen([*self.imports.glob("Tiny-Llama-*/0")], 1)

  def test_a_damaged_import_is_made_again(self):
    self.load(self.folder)
    (step,) = self.imports.glob("Tiny-Llama-*/0")
    _damage(step)
    with self.assertLogs(level="WARNING") as logs:
      model = self.load(self.folder)
    self.assertIn("is made again", logs.output[0])
    np.testing.assert_array_equal(model.params["head_DV"], self.head)

  def test_a_killed_import_leaves_nothing_in_the_way(self):
    with (
      mock.patch.object(os, "rename", side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.load(self.folder)
    np.testing.assert_array_equal(
      self.load(self.folder).params["head_DV"], self.head
    )

  def test_refused(self):
    (self.folder / "config.json").unlink()
    with self.assertRaisesRegex(ValueError, "config.json does not exist"):
      self.load(self.folder)

  def test_nowhere_to_put_it(self):
    self.imports.write_text("a file")
    with self.assertRaisesRegex(
      ValueError, "cannot be imported into .*imports.*another folder"
    ):
      self.load(self.folder)

  def test_default_folder(self):
    with mock.patch.dict(os.environ, XDG_CACHE_HOME="/x"):
      self.assertEqual(
        checkpoints.default_import_folder(), pathlib.Path("/x/cacao/imported")
      )


if __name__ == "__main__":
  absltest.main()
