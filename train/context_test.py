"""Training with sequences in pieces (mesh axis `context`) is training."""

import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt_oss
from model.presets import qwen
from model.presets import shrink
from train import balance as balance_lib
from train import config as config_lib
from train import fixtures
from train import program as program_lib
from train import step as step_lib

_EXECUTION = model_config.ExecutionConfig(compute_dtype="float32")
_BALANCE = balance_lib.BalanceConfig(
  aux_loss_weight=0.1, aux_loss_scope="sequence", z_loss_weight=0.1
)
# Windows, sinks and biases; soft caps and post-norms; latent attention, shared
# experts and multi-token prediction; linear attention.
_MODELS = {
  "gpt_oss": gpt_oss.m20b,
  "gemma_2": gemma.v2_2b,
  "deepseek_v3": functools.partial(deepseek.v3, mtp=True),
  "qwen3_next": qwen.v3_next_80b_a3b,
}


def make_batch(
  *, rows: int, length: int, vocab_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
  """Rows of two documents, some of which end early."""
  rng = np.random.default_rng(seed)
  index = np.arange(length)
  cut = rng.integers(1, length, (rows, 1))
  end = rng.integers(length // 2, length + length // 2, (rows, 1))
  tokens = rng.integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
  is_second, is_token = index >= cut, index < end
  return {
    "tokens": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "loss_weights": ((index != cut - 1) & is_token).astype(np.float32),
    "positions": (index - cut * is_second).astype(np.int32),
    "segment_ids": ((1 + is_second) * is_token).astype(np.int32),
  }


def make_mesh(**axes: int) -> jax.sharding.Mesh:
  size = int(np.prod(list(axes.values()), initial=1))
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[:size])


@functools.cache
def _shapes(config):
  return transformer.abstract(config, _EXECUTION)


@functools.cache
def _params(config) -> Any:
  """Weights larger than initial ones, so that no gradient is negligible."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name = path[-1].key
    if name.startswith("scale"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    return rng.normal(0, 0.15, leaf.shape).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, _shapes(config)[1])


def gradients(config, mesh, *, accumulation=1, length=32):
  """Gradients of the whole training loss, and the mean of the main one."""
  rows = 4 * accumulation
  batch = make_batch(rows=rows, length=length, vocab_size=config.vocab_size)
  has_experts = any(
    isinstance(block.feed_forward, model_config.MoeConfig)
    for block in config.layers
  )
  run = functools.partial(
    step_lib.gradients,
    graphdef=_shapes(config)[0],
    # Several chunks of the loss.
    config=step_lib.LossConfig(chunk_tokens=16, z_loss_weight=1e-2),
    balance=_BALANCE if has_experts else balance_lib.BalanceConfig(),
    accumulation=accumulation,
  )
  shardings = sharding.param_shardings(_params(config), mesh)
  with jax.set_mesh(mesh):
    grads, sums = jax.jit(run, out_shardings=(shardings, None))(
      jax.device_put(_params(config), shardings),
      sharding.put_batch(batch, mesh),
    )
  return jax.device_get(grads), jax.device_get(sums)


def train(run: config_lib.RunConfig, mesh: jax.sharding.Mesh, steps: int = 5):
  """Losses and final parameters."""
  losses = []
  with jax.set_mesh(mesh):
    program = program_lib.build(run, mesh)
    state = program.init()
    for i in range(steps):
      batch = make_batch(
        rows=8,
        length=fixtures.SEQ_LEN,
        vocab_size=fixtures.VOCAB_SIZE,
        seed=i,
      )
      state, metrics = program.train_step(
        state, sharding.put_batch(batch, mesh)
      )
      losses.append(float(metrics["loss"]))
  return np.array(losses), jax.device_get(state.params)


@functools.cache
def train_alone():
  return train(fixtures.run_config(), make_mesh(fsdp=1))


class ContextTest(parameterized.TestCase):
  @parameterized.parameters(
    {"fsdp": 1, "context": 8},
    {"fsdp": 4, "context": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
  )
  def test_trains_as_one_device(self, **axes):
    losses, params = train_alone()
    got_losses, got_params = train(fixtures.run_config(), make_mesh(**axes))
    np.testing.assert_allclose(got_losses, losses, atol=2e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4),
      got_params,
      params,
    )

  @parameterized.named_parameters(*_MODELS.items())
  def test_gradients_are_those_of_one_device(self, preset):
    config = shrink.shrink(preset())
    wanted, sums = gradients(config, make_mesh(fsdp=1))
    has_experts = any(
      isinstance(block.feed_forward, model_config.MoeConfig)
      for block in config.layers
    )
    axes = {"fsdp": 2, "context": 2}
    axes |= {"expert": 2} if has_experts else {"tensor": 2}
    got, got_sums = gradients(config, make_mesh(**axes))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      got_sums,
      sums,
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-9
      ),
      got,
      wanted,
    )

  def test_pieces_of_a_sequence_and_of_a_batch(self):
    config = shrink.shrink(gemma.v2_2b())
    wanted, _ = gradients(config, make_mesh(fsdp=1), accumulation=2)
    got, _ = gradients(config, make_mesh(context=4, fsdp=1), accumulation=2)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-9
      ),
      got,
      wanted,
    )


if __name__ == "__main__":
  absltest.main()
