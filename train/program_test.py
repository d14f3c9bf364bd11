"""What is compiled, and what is refused before."""

from absl.testing import absltest
import jax

from model import config as model_config
from model import sharding
from train import config
from train import fixtures
from train import program


class ProgramTest(absltest.TestCase):
  def _run(self, batch_size, accumulation=1):
    return fixtures.run_config(
      run=config.LoopConfig(
        steps=2,
        batch_size=batch_size,
        seq_len=fixtures.SEQ_LEN,
        accumulation=accumulation,
      )
    )

  def _mesh(self, **axes):
    return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices())

  def test_batch_must_divide(self):
    mesh = self._mesh(data=2, fsdp=4)
    program.check_batch(self._run(8), mesh)
    with self.assertRaisesRegex(
      ValueError,
      r"multiple of 8: .*data \* mesh.fsdp \* mesh.expert.*; 16 would do",
    ):
      program.check_batch(self._run(12), mesh)
    with self.assertRaisesRegex(ValueError, "multiple of 8"):
      program.check_batch(self._run(12), self._mesh(expert=8))
    with self.assertRaisesRegex(ValueError, "multiple of 16.*; 16 would do"):
      program.check_batch(self._run(8, accumulation=2), mesh)

  def test_sequences_must_divide(self):
    mesh = self._mesh(fsdp=2, context=4)
    program.check_batch(self._run(8), mesh)
    for length, near in ((36, "32 or 40 would do"), (4, "pieces; 8 would do")):
      run = config.LoopConfig(steps=2, batch_size=8, seq_len=length)
      with self.assertRaisesRegex(
        ValueError,
        rf"run.seq_len={length} must be a multiple of 8: .* mesh.context=4 "
        rf".*{near}",
      ):
        program.check_batch(fixtures.run_config(run=run), mesh)

  def test_parameters_must_divide(self):
    mesh = self._mesh(fsdp=8)
    run = fixtures.run_config(model=fixtures.model(dim=36))
    with (
      jax.set_mesh(mesh),
      self.assertRaisesRegex(ValueError, "mesh.fsdp=8 does not divide.* 36 "),
    ):
      program.build(run, mesh)

  def test_arrays_are_where_they_belong(self):
    mesh = self._mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
      built = program.build(self._run(8), mesh)
      state = built.init()
    self.assertEqual(jax.tree.map(lambda x: x.sharding, state), built.shardings)
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype), state),
      jax.tree.map(lambda x: (x.shape, x.dtype), built.shapes),
    )

  def test_state_is_donated(self):
    mesh = self._mesh(fsdp=8)
    with jax.set_mesh(mesh):
      built = program.build(self._run(8), mesh)
      memory = built.train_steps[8, fixtures.SEQ_LEN].memory_analysis()
    assert memory is not None
    state = sum(x.nbytes for x in jax.tree.leaves(built.init())) / 8
    self.assertGreater(memory.alias_size_in_bytes, 0.9 * state)

  def test_bfloat16_parameters(self):
    mesh = self._mesh(fsdp=8)
    run = fixtures.run_config(
      execution=model_config.ExecutionConfig(param_dtype="bfloat16")
    )
    with jax.set_mesh(mesh):
      built = program.build(run, mesh)
    self.assertEqual(built.shapes.params["embed_VD"].dtype, "bfloat16")


if __name__ == "__main__":
  absltest.main()
