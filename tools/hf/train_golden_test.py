"""Twenty steps of an imported model beside PyTorch's.

`testdata/train_llama_adamw` is a tiny Llama that Transformers and
torch.optim.AdamW trained, in float32 on a CPU: once with weight decay on every
parameter, once on matrices only. Here the importer, the train step and the
optimizer follow it. The tolerances are a few times float32's noise; AdamW turns
rounding of a gradient near 0 into a step of visible size.
"""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import checkpoint
from model import config as model_config
from model import sharding
from model import transformer
from model.hf import architecture
from model.hf import importer
from train import optimizer as optimizer_lib
from train import schedule as schedule_lib
from train import step as step_lib

_FOLDER = pathlib.Path(__file__).parent / "testdata" / "train_llama_adamw"


def _make_batch(ids: np.ndarray) -> dict[str, np.ndarray]:
  """Each token is the target of the one before it [B, T] -> [B, T - 1]."""
  shape = ids[:, 1:].shape
  return {
    "tokens": ids[:, :-1],
    "targets": ids[:, 1:],
    "loss_weights": np.ones(shape, np.float32),
    "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
    "segment_ids": np.ones(shape, np.int32),
  }


class TrainGoldenTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    output = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    importer.run(_FOLDER, output)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    cls.bundle = checkpoint.load(output, mesh)
    cls.graphdef, _ = transformer.abstract(
      cls.bundle.config, model_config.ExecutionConfig(compute_dtype="float32")
    )
    cls.loss = step_lib.LossConfig()
    cls.eval_step = staticmethod(
      jax.jit(step_lib.make_eval_step(graphdef=cls.graphdef, loss=cls.loss))
    )

  @parameterized.parameters(("decay_all", "all"), ("decay_2d_only", "matrices"))
  def test_follows_pytorch(self, run, decay):
    golden = json.loads((_FOLDER / "train_golden.json").read_text())
    wanted = golden["runs"][run]
    batches = np.load(_FOLDER / "batches.npz")["input_ids"]
    self.assertLen(batches, golden["steps"])
    schedule = schedule_lib.make(
      schedule_lib.ScheduleConfig(kind="constant", peak=golden["lr"]),
      run_steps=golden["steps"],
    )
    optimizer = optimizer_lib.make(
      optimizer_lib.OptimizerConfig(
        b1=golden["betas"][0],
        b2=golden["betas"][1],
        eps=golden["eps"],
        weight_decay=golden["weight_decay"],
        decay=decay,
        clip_norm=golden["grad_clip_global_norm"],
      ),
      schedule,
    )
    train_step = jax.jit(
      step_lib.make_train_step(
        graphdef=self.graphdef,
        optimizer=optimizer,
        schedule=schedule,
        loss=self.loss,
      )
    )
    state = step_lib.init_state(lambda: self.bundle.params, optimizer)
    losses, grad_norms = [], []
    for ids in batches:
      state, metrics = train_step(state, _make_batch(ids))
      losses.append(metrics["loss"])
      grad_norms.append(metrics["grad_norm"])
    np.testing.assert_allclose(losses, wanted["losses"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(
      grad_norms, wanted["grad_norms_before_clip"], rtol=1e-4
    )
    sums = self.eval_step(state.params, _make_batch(batches[0]))
    np.testing.assert_allclose(
      sums.nll / sums.weight,
      wanted["loss_on_batch0_after_training"],
      rtol=0,
      atol=5e-5,
    )
    self.assert_params(state.params, run, wanted)

  def assert_params(self, params, run, wanted):
    """Norms of all tensors, and some tensors, under their names."""
    values = json.loads((_FOLDER / "config.json").read_text())
    found, _ = architecture.read(values)
    leaves = sharding.named_leaves(jax.device_get(params))
    tensors = {}
    for binding in architecture.bind(found, self.bundle.config, params):
      ours = [leaves[name][binding.index] for name in binding.ours]
      tensors[binding.theirs] = binding.rule.to_theirs(ours)
    norms = {
      name: float(np.linalg.norm(x.astype(np.float64)))
      for name, x in tensors.items()
    }
    self.assertEqual(norms.keys(), wanted["final_param_norms"].keys())
    for name, norm in wanted["final_param_norms"].items():
      self.assertAlmostEqual(norms[name] / norm, 1.0, delta=1e-5, msg=name)
    final = np.load(_FOLDER / "final_params.npz")
    names = [name for name in final if name.startswith(f"{run}/")]
    self.assertLen(names, 3)
    for name in names:
      np.testing.assert_allclose(
        tensors[name.removeprefix(f"{run}/")],
        final[name],
        rtol=0,
        atol=3e-4,
        err_msg=name,
      )


if __name__ == "__main__":
  absltest.main()
