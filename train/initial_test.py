"""Runs that begin with the parameters of another checkpoint."""

import dataclasses
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import sharding
from train import config as config_lib
from train import fixtures
from train import initial
from train import loop
from train import metrics


def begins_from(
  run: config_lib.RunConfig, path: pathlib.Path
) -> config_lib.RunConfig:
  return dataclasses.replace(
    run, checkpoint=dataclasses.replace(run.checkpoint, init_from=str(path))
  )


class InitialTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.root = pathlib.Path(cls.folder)
    cls.first = fixtures.text_config(cls.root / "data", steps=3)
    loop.run(cls.first, cls.root / "first")

  def test_begins_with_what_is_there_and_resumes_as_itself(self):
    run = begins_from(self.first, self.root / "first")
    workdir = self.root / "second"
    loop.run(fixtures.with_steps(run, 1), workdir)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    start = checkpoint.load(self.root / "first", mesh).params
    after = checkpoint.load(workdir, mesh).params
    moved = np.abs(after["embed_VD"] - start["embed_VD"])
    # One step of Adam moves a number by about the learning rate, 1e-2.
    self.assertLess(np.max(moved), 2e-2)
    self.assertGreater(np.max(moved), 1e-3)
    # The checkpoint to begin with may be gone when the run resumes.
    gone = begins_from(self.first, self.root / "gone")
    loop.run(gone, workdir, allow_config_changes=True)
    steps = [r["step"] for r in metrics.read(workdir) if r["kind"] == "train"]
    self.assertEqual(steps, [1, 2, 3])

  def test_converts_the_dtype(self):
    run = begins_from(self.first, self.root / "first")
    execution = dataclasses.replace(run.execution, param_dtype="bfloat16")
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    params = initial.load(dataclasses.replace(run, execution=execution), mesh)
    self.assertEqual(params["embed_VD"].dtype, "bfloat16")

  @parameterized.parameters(
    ({"dim": 64}, r"model.dim: 32 there, 64 here"),
    (
      {"num_layers": 3},
      r"model.groups.0.repeats: 2 there, 3 here",
    ),
  )
  def test_refuses_another_model(self, settings, message):
    run = begins_from(self.first, self.root / "first")
    run = dataclasses.replace(run, model=fixtures.model(**settings))
    with self.assertRaisesRegex(ValueError, message):
      initial.check(run, run.data)

  def test_a_longer_context_is_the_same_model(self):
    run = begins_from(self.first, self.root / "first")
    run = dataclasses.replace(run, model=fixtures.model(max_seq_len=128))
    initial.check(run, run.data)

  def test_refuses_another_tokenizer(self):
    texts = [f"{i} other words, {i} times" for i in range(500)]
    other = self.root / "other"
    tokenizer_lib.Tokenizer.train(texts, vocab_size=290).save(other)
    run = begins_from(self.first, self.root / "first")
    data = dataclasses.replace(run.data, tokenizer=str(other))
    with self.assertRaisesRegex(ValueError, "another tokenizer"):
      initial.check(run, data)

  def test_refuses_a_place_without_a_checkpoint(self):
    run = begins_from(self.first, self.root / "nothing")
    with self.assertRaisesRegex(
      ValueError, r"checkpoint.init_from=.*nothing holds no checkpoint"
    ):
      loop.run(run, self.root / "third")


if __name__ == "__main__":
  absltest.main()
