import pathlib

from absl.testing import absltest

from model import sharding
from serve import assembly
from serve import checkpoint_fixtures
from serve import config as config_lib
from serve import fixtures
from serve import replicas
from serve import request as request_lib

_RUNNER = config_lib.RunnerConfig(
  compute_dtype="float32",
  max_rows=2,
  max_len=32,
  prefill_tokens=16,
  compilation_cache="",
  mesh=sharding.MeshConfig(data=2),
)


class AssemblyTest(absltest.TestCase):
  def test_replicas(self):
    """Each on its own device, and all as one."""
    root = pathlib.Path(self.create_tempdir().full_path)
    checkpoint_fixtures.write(root / "run", step=3)
    models = assembly.load(
      root / "run", _RUNNER, import_folder=root / "imported"
    )
    devices = [set(model.mesh.devices.flat) for model in models]
    self.assertLen(devices[0] | devices[1], 2)
    made = assembly.assemble(
      models, config_lib.ServeConfig(runner=_RUNNER), warms_up=False
    )
    self.addCleanup(made.engine.stop)
    self.assertEqual(made.max_len, 32)
    self.assertEqual(made.engine.stats().step, 3)
    made.engine.start()
    listener = fixtures.Listener()
    for i in range(6):
      request = request_lib.Request(
        id=str(i),
        prompt=(7, 8, 9),
        max_tokens=6,
        sampling=request_lib.Sampling(temperature=0.0),
      )
      made.engine.submit(request, listener)
    listener.wait(*map(str, range(6)))
    texts = {tuple(listener.tokens(str(i))) for i in range(6)}
    self.assertLen(texts, 1)
    assert isinstance(made.engine, replicas.Replicas)
    for engine in made.engine.engines:
      self.assertGreater(engine.stats().num_output_tokens, 0)

  def test_compiling_is_told_of_all_replicas(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    checkpoint_fixtures.write(root / "run")
    reports = []
    made = assembly.assemble(
      assembly.load(root / "run", _RUNNER, import_folder=root / "imported"),
      config_lib.ServeConfig(runner=_RUNNER),
      report=lambda done, total: reports.append((done, total)),
    )
    num = sum(runner.num_compiled for runner in made.runners)
    self.assertEqual(reports, [(i + 1, num) for i in range(num)])

  def test_devices_that_cannot_be_shared(self):
    with self.assertRaisesRegex(ValueError, "mesh.data=3 .* 2 devices"):
      assembly.make_meshes(sharding.MeshConfig(data=3))


if __name__ == "__main__":
  absltest.main()
