import dataclasses
import pathlib

from absl.testing import absltest
import jax
import numpy as np

from model import checkpoint
from model import transformer
from tools import trained_model
from tools import trained_model_fixtures as fixtures


class TrainedModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_computes_what_was_saved(self):
    tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    params = fixtures.write(
      self.folder / "run", tokenizer=tokenizer, values={"more.json": [1]}
    )
    model = trained_model.load(self.folder / "run", compute_dtype="bfloat16")
    self.assertEqual(model.config, fixtures.config())
    self.assertEqual(model.meta.json("more.json"), [1])
    self.assertEqual(
      {file.name for file in model.tokenizer.iterdir()},
      {file.name for file in tokenizer.iterdir()},
    )
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    wanted, _ = transformer.abstract(
      fixtures.config(),
      dataclasses.replace(fixtures.EXECUTION, compute_dtype="bfloat16"),
    )
    self.assertEqual(model.graphdef, wanted)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "holds no checkpoint"):
      trained_model.load(self.folder, compute_dtype="float32")
    fixtures.write(self.folder, tokenizer=None)
    with self.assertRaisesRegex(ValueError, "has no tokenizer"):
      trained_model.load(self.folder, compute_dtype="float32")
    with self.assertRaisesRegex(ValueError, "mesh.tensor=3"):
      trained_model.load(self.folder, compute_dtype="float32", tensor=3)
    (self.folder / "0" / "meta" / checkpoint.CONFIG_FILE).write_text("{}")
    with self.assertRaises(trained_model.ERRORS):
      trained_model.load(self.folder, compute_dtype="float32")


if __name__ == "__main__":
  absltest.main()
