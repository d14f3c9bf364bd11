"""Small steps compiled for each generation of TPU; needs libtpu."""

import dataclasses
import json
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from model import config as model_config
from model import sharding
from train import compile_report
from train import fixtures
from train import topology


def _run(*, experts: int = 0, layers: int = 2, dim: int = 256):
  """Two layers, FSDP over 2 of 4 devices or more, expert-parallel if any."""
  model = fixtures.model(
    vocab_size=1024,
    dim=dim,
    num_layers=layers,
    head_dim=64,
    mlp_dim=512,
    max_seq_len=512,
  )
  mesh = sharding.MeshConfig(data=2)
  if experts:
    (block,) = model.groups[0].pattern
    sparse = dataclasses.replace(
      block,
      feed_forward=model_config.MoeConfig(
        num_experts=experts, experts_per_token=2, dim=128
      ),
    )
    groups = model_config.group_layers([sparse] * layers)
    model = dataclasses.replace(model, groups=groups)
    mesh = sharding.MeshConfig(data=2, expert=2)
  run = fixtures.run_config(
    model=model,
    mesh=mesh,
    execution=model_config.ExecutionConfig(remat="full"),
  )
  return dataclasses.replace(
    run, run=dataclasses.replace(run.run, seq_len=512, batch_size=16)
  )


def _compile(run, name):
  (report,) = compile_report.compile_steps(run, topology.parse(name))
  return report


class CompileTest(parameterized.TestCase):
  @parameterized.parameters("v5e-4", "v6e-4", "v5p-8", "7x-8")
  def test_each_generation(self, name):
    report = _compile(_run(), name)
    assert report.work is not None
    self.assertTrue(report.memory.fits)
    self.assertGreater(report.memory.aliased, 0)
    # Splash attention: forward, again, and backward.
    self.assertEqual(report.work.num_kernels, 3)
    self.assertEqual(report.work.unknown_loops, 0)
    ratio = report.counted_flops / report.model_flops
    self.assertBetween(ratio, 1.2, 1.8)
    kinds = {one.kind for one in report.work.collectives}
    self.assertContainsSubset({"all-gather"}, kinds)

  def test_collectives_of_v6e_are_asynchronous(self):
    report = _compile(_run(dim=1024), "v6e-4")
    assert report.work is not None
    (gathers,) = (
      one for one in report.work.collectives if one.kind == "all-gather"
    )
    self.assertGreater(gathers.asynchronous_bytes, 0.9 * gathers.num_bytes)

  def test_experts_are_sent_as_on_tpu(self):
    report = _compile(_run(experts=4), "v6e-4")
    assert report.work is not None
    kinds = {one.kind for one in report.work.collectives}
    self.assertIn("ragged-all-to-all", kinds)
    # The grouped matmuls are kernels too.
    self.assertGreater(report.work.num_kernels, 3)

  def test_what_does_not_fit(self):
    run = _run()
    many = dataclasses.replace(run.run, batch_size=2**18)
    report = _compile(dataclasses.replace(run, run=many), "v5e-4")
    self.assertFalse(report.memory.fits)
    self.assertGreater(report.memory.in_use, report.memory.capacity)
    self.assertIn("HBM", report.memory.refusal)


class MainTest(absltest.TestCase):
  def _main(self, *arguments):
    root = pathlib.Path(self.create_tempdir().full_path)
    experiment = fixtures.write_experiment(root / "run.py", _run())
    command = [sys.executable, "-m", "train.compile"]
    return subprocess.run(
      [*command, f"--config={experiment}", *arguments],
      env=fixtures.main_environment(),
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  def test_json(self):
    result = self._main("--topology=v5e-4", "--json")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertTrue(json.loads(result.stdout)["memory"]["fits"])

  def test_mesh_that_the_slice_has_not(self):
    result = self._main("--topology=v5e-4", "--config.mesh.tensor=3")
    self.assertEqual(result.returncode, 1)
    self.assertIn("mesh.tensor=3", result.stderr)
    self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
  absltest.main()
