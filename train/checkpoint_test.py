"""Saving, restoring, and what happens to damaged checkpoints."""

import dataclasses
import json
import pathlib
from typing import Any
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from data import fixtures as data_fixtures
from model import checkpoint as model_checkpoint
from model import sharding
from train import checkpoint
from train import distributed
from train import fixtures
from train import program as program_lib


class CheckpointTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = fixtures.run_config()
    cls.mesh = sharding.make_mesh(
      sharding.MeshConfig(data=2, fsdp=2), jax.devices()[:4]
    )
    with jax.set_mesh(cls.mesh):
      cls.program = program_lib.build(cls.config, cls.mesh)
      state = cls.program.init()
    cls.states = [
      dataclasses.replace(
        state,
        step=state.step + step,
        params=jax.tree.map(lambda x, s=step: x + s, state.params),
      )
      for step in (2, 4, 6)
    ]

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def _open(self, **settings):
    defaults: dict[str, Any] = {"config": self.config, "tokenizer": None}
    opened = checkpoint.Checkpoints(self.workdir, **(defaults | settings))
    self.addCleanup(opened.close)
    return opened

  def _save_all(self):
    saved = self._open()
    for state in self.states:
      saved.save(state, {"step": int(state.step)})
    saved.wait()

  def _restore(self, program=None, **settings):
    program = program or self.program
    return self._open(**settings).restore_latest(
      program.shapes, program.shardings
    )

  def _assert_is(self, restored, index):
    self.assertIsNotNone(restored)
    self.assertEqual(restored.data, {"step": int(self.states[index].step)})
    for a, b in zip(
      jax.tree.leaves(restored.state),
      jax.tree.leaves(self.states[index]),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)

  def _data_file(self, step):
    """The largest file of a step's parameters."""
    files = (self.workdir / "checkpoints" / str(step) / "params").rglob("*")
    return max(
      (file for file in files if file.is_file()),
      key=lambda file: file.stat().st_size,
    )

  def test_nothing_to_restore(self):
    self.assertIsNone(self._restore())

  def test_restores_the_newest(self):
    self._save_all()
    self._assert_is(self._restore(), 2)

  def test_restores_onto_another_mesh(self):
    self._save_all()
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8), jax.devices())
    with jax.set_mesh(mesh):
      program = program_lib.build(self.config, mesh)
      restored = self._restore(program)
    assert restored is not None
    self._assert_is(restored, 2)
    embed = restored.state.params["embed_VD"]
    self.assertEqual(embed.sharding, program.shardings.params["embed_VD"])

  def test_keeps_as_many_as_asked(self):
    settings = dataclasses.replace(self.config.checkpoint, keep=2)
    saved = self._open(
      config=dataclasses.replace(self.config, checkpoint=settings)
    )
    for state in self.states:
      saved.save(state, {})
    saved.wait()
    self.assertEqual(model_checkpoint.steps(saved.folder), [4, 6])

  def test_a_saved_step_is_not_saved_again(self):
    self._save_all()
    file = self._data_file(6)
    before = file.stat().st_mtime_ns
    again = self._open()
    again.save(self.states[2], {"step": 6})
    again.wait()
    self.assertEqual(file.stat().st_mtime_ns, before)

  def test_flipped_bit_falls_back_to_the_step_before(self):
    self._save_all()
    file = self._data_file(6)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    self._assert_is(self._restore(), 1)
    aside = self.workdir / "checkpoints.corrupt" / "6-0"
    self.assertTrue(aside.is_dir())
    # Training goes on and saves step 6 again.
    saved = self._open()
    saved.save(self.states[2], {"step": 6})
    saved.wait()
    self._assert_is(self._restore(), 2)

  def test_digests_are_what_notices(self):
    # Orbax reads this checkpoint without complaint.
    self._save_all()
    path = self.workdir / "checkpoints" / "6" / "meta" / "digests.json"
    digests = json.loads(path.read_text())
    name = "params.embed_VD"
    digests["arrays"][name] = digests["arrays"][name][::-1]
    path.write_text(json.dumps(digests))
    with self.assertLogs(level="ERROR") as logs:
      self._assert_is(self._restore(), 1)
    self.assertIn(name, logs.output[0])

  def test_truncated_file(self):
    self._save_all()
    file = self._data_file(6)
    file.write_bytes(file.read_bytes()[:100])
    self._assert_is(self._restore(), 1)

  def test_missing_meta_and_empty_directory(self):
    self._save_all()
    (self.workdir / "checkpoints" / "6" / "meta" / "data.json").unlink()
    (self.workdir / "checkpoints" / "99").mkdir()
    self._assert_is(self._restore(), 1)

  def test_another_process_cannot_read_the_newest(self):
    self._save_all()
    answers = iter([True, False, True, True])  # Of meta and arrays.
    with mock.patch.object(
      distributed, "all_agree", lambda holds: holds and next(answers)
    ):
      self._assert_is(self._restore(), 1)
    self.assertTrue((self.workdir / "checkpoints.corrupt" / "6-0").is_dir())

  def test_none_is_good(self):
    self._save_all()
    for step in (2, 4, 6):
      self._data_file(step).write_bytes(b"")
    # However often it is tried: a run never starts again by itself.
    for _ in range(2):
      with self.assertRaisesRegex(
        model_checkpoint.CorruptCheckpointError, r"None of .*\[2, 4, 6\]"
      ):
        self._restore()
    self.assertEqual(
      model_checkpoint.steps(self.workdir / "checkpoints"), [2, 4, 6]
    )

  def test_refuses_another_run(self):
    self._save_all()
    other = dataclasses.replace(
      self.config,
      optimizer=dataclasses.replace(self.config.optimizer, b1=0.5),
    )
    for refused in (
      lambda: self._restore(config=other),
      lambda: self._open(config=other).check(),
    ):
      with self.assertRaisesRegex(ValueError, "optimizer.b1: 0.9 -> 0.5"):
        refused()
    self._open().check()
    self._assert_is(self._restore(config=other, allow_changes=True), 2)
    # Refusing is no reason to set a checkpoint aside.
    self.assertFalse((self.workdir / "checkpoints.corrupt").exists())

  def test_refuses_another_model_whatever_is_allowed(self):
    self._save_all()
    config = self.config
    refused: dict[str, dict[str, Any]] = {
      "model.dim: 32 -> 64": {"model": fixtures.model(dim=64)},
      "optimizer.decay: 'matrices' -> 'all'": {
        "optimizer": dataclasses.replace(config.optimizer, decay="all")
      },
      "execution.param_dtype": {
        "execution": dataclasses.replace(
          config.execution, param_dtype="bfloat16"
        )
      },
      "optimizer.kind: 'adamw' -> 'lion'": {
        "optimizer": dataclasses.replace(config.optimizer, kind="lion")
      },
    }
    for message, other in refused.items():
      with self.assertRaisesRegex(ValueError, message + ".*undo the change"):
        self._restore(
          config=dataclasses.replace(config, **other), allow_changes=True
        )
    self.assertFalse((self.workdir / "checkpoints.corrupt").exists())

  def test_carries_the_tokenizer(self):
    tokenizer = data_fixtures.write_tokenizer(self.workdir / "tokenizer")
    saved = self._open(tokenizer=tokenizer)
    saved.save(self.states[0], {"step": 2})
    saved.wait()
    bundle = model_checkpoint.load(self.workdir, self.mesh)
    assert bundle.tokenizer is not None
    self.assertEqual(
      (bundle.tokenizer / "tokenizer.json").read_bytes(),
      (tokenizer / "tokenizer.json").read_bytes(),
    )
    self._assert_is(self._restore(tokenizer=tokenizer), 0)
    file = tokenizer / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with self.assertRaisesRegex(ValueError, "not the tokenizer of the check"):
      self._restore(tokenizer=tokenizer)


if __name__ == "__main__":
  absltest.main()
