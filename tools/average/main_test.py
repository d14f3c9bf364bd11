"""The mean against numpy's; what is refused."""

import contextlib
import io
import pathlib

from absl.testing import absltest
from absl.testing import flagsaver
import jax
import numpy as np

from model import checkpoint
from model import schema
from model import sharding
from model import streaming
from model import transformer
from tools import trained_model_fixtures as fixtures
from tools.average import main


class AverageTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.workdir = self.root / "run"
    start = transformer.init(fixtures.config(), fixtures.EXECUTION, seed=0)
    self.params = [
      jax.tree.map(lambda x, n=n: np.asarray(x) + n * np.sin(x), start)
      for n in (0, 1, 5)
    ]
    for step, params in zip((10, 20, 30), self.params, strict=True):
      self.write(step, params)

  def write(self, step, params, config=None):
    folder = self.workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = jax.eval_shape(lambda: params)
    with streaming.Writer(folder, shapes, step=step) as writer:
      for name, leaf in sharding.named_leaves(params).items():
        writer.write(name, (), np.asarray(leaf))
      described = {
        "model": schema.to_dict(config or fixtures.config()),
        "execution": schema.to_dict(fixtures.EXECUTION),
      }
      writer.finish(
        {checkpoint.CONFIG_FILE: described},
        tokenizer={"tokenizer.json": b"{}"},
      )

  def run_main(self, **settings):
    names = {"checkpoint": str(self.workdir), "output": str(self.root / "out")}
    output = io.StringIO()
    with (
      flagsaver.flagsaver(**(names | settings)),
      contextlib.redirect_stdout(output),
    ):
      main.main()
    return output.getvalue()

  def check(self, step, parts):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    bundle = checkpoint.load(self.root / "out", mesh)
    self.assertEqual(bundle.step, step)
    assert bundle.tokenizer is not None
    want = jax.tree.map(lambda *x: np.mean(x, axis=0), *parts)
    for a, b in zip(*map(jax.tree.leaves, (bundle.params, want)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    return bundle.meta

  def test_the_newest(self):
    self.assertIn("the mean of [20, 30]", self.run_main(last=2))
    meta = self.check(30, self.params[1:])
    self.assertEqual(meta.json(main.AVERAGE_FILE), {"steps": [20, 30]})

  def test_the_named(self):
    self.run_main(steps=["20", "10"])
    self.check(20, self.params[:2])

  def test_refuses(self):
    for settings, message in (
      ({"last": 4}, r"--last=4, but .* has 3 checkpoints, \[10, 20, 30\]"),
      ({"steps": ["15"]}, r"--steps: \[15\] are not in"),
      ({"steps": ["x"]}, "--steps=x must be numbers"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.run_main(**settings)

  def test_damage_is_noticed(self):
    files = (self.workdir / "checkpoints" / "20" / "params").rglob("*")
    file = max(
      (path for path in files if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with self.assertRaisesRegex(
      checkpoint.CorruptCheckpointError, "20: .*digests differ"
    ):
      self.run_main(last=2)
    self.assertFalse((self.root / "out" / "30").exists())


if __name__ == "__main__":
  absltest.main()
