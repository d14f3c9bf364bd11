import dataclasses
import json
import pathlib
import shutil
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors import numpy as library

from data import fixtures as data_fixtures
from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from model import schema
from model import transformer
from model.hf import fixtures
from model.hf import importer
from model.hf import safetensors_folder
from tools.hf import exporter

_BFLOAT16 = ml_dtypes.bfloat16


def read(folder):
  found = safetensors_folder.open_folder(folder)
  return {name: found.read(name) for name in found}


def config(**settings) -> model_config.ModelConfig:
  defaults: dict[str, Any] = {
    "name": "test",
    "vocab_size": 64,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 24,
    "tie_embeddings": True,
  }
  return model_config.dense(**(defaults | settings))


def save(workdir, model, *, tokenizer=None):
  """A checkpoint as the trainer writes it; returns its parameters."""
  execution = model_config.ExecutionConfig()
  _, shapes = transformer.abstract(model, execution)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
  )
  meta = checkpoint.pack_meta(
    {
      checkpoint.CONFIG_FILE: {
        "model": schema.to_dict(model),
        "execution": schema.to_dict(execution),
      }
    },
    arrays={"params": params},
    tokenizer=tokenizer or {},
  )
  handlers = {
    "params": ocp.StandardCheckpointHandler(),
    "meta": checkpoint.FilesHandler(),
  }
  with ocp.CheckpointManager(
    workdir / "checkpoints", item_handlers=handlers
  ) as manager:
    manager.save(
      5,
      args=ocp.args.Composite(params=ocp.args.StandardSave(params), meta=meta),
    )
  return jax.device_get(params)


class ExporterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / "in"
    self.imported = self.root / "imported"
    self.output = self.root / "out"

  def assert_same(self, one, other):
    self.assertEqual(one.keys(), other.keys())
    for name, array in one.items():
      self.assertEqual(array.dtype, other[name].dtype, name)
      self.assertEqual(array.tobytes(), other[name].tobytes(), name)

  def import_tiny(self, dtype=np.float32, **settings):
    tensors = fixtures.tensors(dtype)
    fixtures.write(self.folder, tensors, **settings)
    importer.run(self.folder, self.imported)
    return tensors

  def test_there_and_back(self):
    tensors = fixtures.tensors(_BFLOAT16, vocab=320)
    tensors["model.norm.weight"] = np.ones(fixtures.HIDDEN, np.float32)
    values = fixtures.config(vocab_size=320, bos_token_id=7)
    data_fixtures.write_tokenizer(self.folder)
    (self.folder / "generation_config.json").write_text('{"top_k": 3}')
    fixtures.write(self.folder, tensors, values=values)
    importer.run(self.folder, self.imported)
    result = exporter.run(self.imported, self.output)
    self.assertEqual(result.architecture, "LlamaForCausalLM")
    self.assertEqual(result.num_tensors, len(tensors))
    self.assertEqual(result.left_out, ())
    self.assert_same(read(self.output), tensors)
    exported = json.loads((self.output / "config.json").read_text())
    tokenizer = tokenizer_lib.Tokenizer.load(self.folder)
    changes = {"torch_dtype": "bfloat16", "eos_token_id": tokenizer.eos_id}
    # What the file said stays: the beginning's id.
    self.assertEqual(exported, values | changes)
    for name in ("tokenizer.json", "generation_config.json"):
      self.assertEqual(
        json.loads((self.output / name).read_text()),
        json.loads((self.folder / name).read_text()),
      )
    again = self.root / "again"
    importer.run(self.output, again, name="in")
    first, second = (
      checkpoint.read_meta(folder / "0") for folder in (self.imported, again)
    )
    self.assertEqual(first.array_digests, second.array_digests)
    self.assertEqual(
      first.json(checkpoint.CONFIG_FILE), second.json(checkpoint.CONFIG_FILE)
    )

  def test_the_tokenizer_says_how_a_text_ends(self):
    model = config(vocab_size=320)
    folder = data_fixtures.write_tokenizer(self.root / "tokenizer")
    save(
      self.root / "run",
      model,
      tokenizer={f.name: f.read_bytes() for f in folder.iterdir()},
    )
    exporter.run(self.root / "run", self.output)
    exported = json.loads((self.output / "config.json").read_text())
    tokenizer = tokenizer_lib.Tokenizer.load(folder)
    self.assertEqual(exported["eos_token_id"], tokenizer.eos_id)
    self.assertEqual(exported["bos_token_id"], tokenizer.bos_id)

  def test_shards_and_dtype(self):
    tensors = self.import_tiny()
    exporter.run(
      self.imported, self.output, dtype="bfloat16", max_shard_bytes=1000
    )
    self.assertTrue((self.output / "model.safetensors.index.json").is_file())
    self.assertGreater(len(list(self.output.glob("*.safetensors"))), 2)
    self.assert_same(
      read(self.output),
      {name: array.astype(_BFLOAT16) for name, array in tensors.items()},
    )
    exported = json.loads((self.output / "config.json").read_text())
    self.assertEqual(exported["torch_dtype"], "bfloat16")

  def test_dtype_that_has_not_the_range(self):
    tensors = fixtures.tensors()
    tensors["lm_head.weight"][3, 4] = 70_000.0
    fixtures.write(self.folder, tensors)
    importer.run(self.folder, self.imported)
    with self.assertRaisesRegex(
      ValueError, "lm_head.weight has numbers that float16 has not"
    ):
      exporter.run(self.imported, self.output, dtype="float16")
    self.assertFalse(self.output.exists())
    exporter.run(self.imported, self.output, dtype="bfloat16")

  def test_a_trained_model(self):
    block = config().layers[0]
    model = dataclasses.replace(
      config(), mtp=model_config.MtpConfig(block=block)
    )
    params = save(self.root / "run", model)
    result = exporter.run(self.root / "run", self.output)
    self.assertEqual(result.left_out, ("mtp",))
    # As others read it.
    tensors = library.load_file(self.output / "model.safetensors")
    self.assertLen(tensors, 2 * 9 + 2)
    stacked = params["group_0"]["block_0"]["mixer"]["o_NHD"]
    for layer in range(2):
      np.testing.assert_array_equal(
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"],
        stacked[layer].reshape(16, 16).T,
      )
    importer.run(self.output, self.imported)
    meta = checkpoint.read_meta(self.imported / "0")
    digests = checkpoint.read_meta(
      self.root / "run" / "checkpoints" / "5"
    ).array_digests
    for name, digest in meta.array_digests.items():
      self.assertEqual(digest, digests[name], name)

  def test_damage_is_found_and_nothing_is_left(self):
    self.import_tiny()
    up = "group_0.block_0.feed_forward.up_DF"
    file = self.imported / "0" / "params" / up / "1.0.0"
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(bytes(content))
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, f"{up} is not as it was written"
    ):
      exporter.run(self.imported, self.output)
    shutil.rmtree(file.parent)
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, f"{up} cannot be opened"
    ):
      exporter.run(self.imported, self.output)
    self.assertCountEqual(
      [path.name for path in self.root.iterdir()], ["in", "imported"]
    )

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "holds no checkpoint"):
      exporter.run(self.root / "nowhere", self.output)
    self.import_tiny()
    with self.assertRaisesRegex(ValueError, "in is not empty"):
      exporter.run(self.imported, self.folder)
    save(self.root / "run", dataclasses.replace(config(), logit_softcap=3.0))
    with self.assertRaisesRegex(ValueError, "'test' cannot be exported"):
      exporter.run(self.root / "run", self.output)

  def test_a_changed_model_gets_another_description(self):
    self.import_tiny()
    meta = self.imported / "0" / "meta"
    content = json.loads((meta / "config.json").read_text())
    content["model"]["norm_eps"] = 1e-3
    files = {
      name: json.loads((meta / name).read_text())
      for name in (importer.CONFIG_FILE, importer.DTYPES_FILE)
    }
    digests = json.loads((meta / checkpoint.DIGESTS_FILE).read_text())
    checkpoint.write_files(
      meta,
      checkpoint.pack_files(
        {checkpoint.CONFIG_FILE: content} | files,
        digests["arrays"],
        tokenizer={},
      ),
    )
    exporter.run(self.imported, self.output)
    exported = json.loads((self.output / "config.json").read_text())
    self.assertEqual(exported["rms_norm_eps"], 1e-3)
    self.assertEqual(exported["model_type"], "llama")


if __name__ == "__main__":
  absltest.main()
