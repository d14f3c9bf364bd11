import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from serve import checkpoints
from serve import random_model


class RandomModelTest(parameterized.TestCase):
  def test_size(self):
    run = model_config.ExecutionConfig()
    _, shapes = transformer.abstract(random_model.config("100m"), run)
    num = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    self.assertEqual(num, 100_092_672)

  def test_numbers(self):
    model = random_model.config("9m")
    run = model_config.ExecutionConfig()
    params = sharding.named_leaves(random_model.params(model, run))
    for name, leaf in params.items():
      self.assertEqual(leaf.dtype, np.float32)
      if sharding.is_matrix(name):
        self.assertAlmostEqual(float(leaf.std()), model.init_std, delta=1e-4)
      else:
        self.assertTrue((leaf == 1).all(), name)
    other = sharding.named_leaves(random_model.params(model, run, seed=1))
    name = "embed_VD"
    self.assertFalse((params[name] == other[name]).any())

  def test_what_is_written_is_what_is_made(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    random_model.write("9m", folder / "run")
    loaded = checkpoints.load(
      folder / "run",
      mesh=mesh,
      compute_dtype="float32",
      import_folder=folder / "imported",
    )
    made = random_model.make("9m", mesh, "float32")
    self.assertEqual(loaded.config, made.config)
    self.assertEqual(loaded.execution, made.execution)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, made.params)


if __name__ == "__main__":
  absltest.main()
