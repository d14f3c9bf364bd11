"""Each structure among the presets trains, shards and decodes, shrunk."""

import dataclasses
import functools
import re
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from model.presets import catalogue
from model.presets import shrink
from train import optimizer as optimizer_lib
from train import schedule as schedule_lib
from train import step as step_lib

_EXECUTION = model_config.ExecutionConfig(compute_dtype="float32")
_ROWS, _LENGTH, _STEPS = 8, 16, 6


def structures() -> dict[str, model_config.ModelConfig]:
  """The shrunken presets, one of those with the same kinds of blocks.

  Left out of the comparison: how layers are grouped, tied embeddings, how many
  heads share a key, the scaling of RoPE and epsilons, none of which needs a
  test for every structure, and multi-token prediction, which one has.
  """

  def kind(block):
    mixer = block.mixer
    if isinstance(mixer, model_config.AttentionConfig):
      rope = mixer.rope and dataclasses.replace(mixer.rope, scaling=None)
      mixer = dataclasses.replace(mixer, num_kv_heads=1, rope=rope)
    return dataclasses.replace(block, mixer=mixer)

  chosen = {}
  published = [make() for make in catalogue.PUBLISHED]
  for config in sorted(published, key=lambda config: config.mtp is None):
    tiny = shrink.shrink(config)
    key = (frozenset(map(kind, tiny.layers)), tiny.norm, tiny.logit_softcap)
    chosen.setdefault(key, tiny)
  return {re.sub(r"\W", "_", tiny.name): tiny for tiny in chosen.values()}


_STRUCTURES = structures()


def make_batch() -> dict[str, np.ndarray]:
  """Rows that count up: the next token is learned in a few steps."""
  rng = np.random.default_rng(0)
  first = rng.integers(0, 64, size=(_ROWS, 1))
  tokens = (first + np.arange(_LENGTH + 1)) % 64
  index = np.tile(np.arange(_LENGTH), (_ROWS, 1))
  return {
    "tokens": tokens[:, :-1].astype(np.int32),
    "targets": tokens[:, 1:].astype(np.int32),
    "loss_weights": np.ones((_ROWS, _LENGTH), np.float32),
    "positions": index.astype(np.int32),
    "segment_ids": np.ones((_ROWS, _LENGTH), np.int32),
  }


def train(config, mesh) -> tuple[list[float], Any]:
  """Losses of a few real steps on one batch; Adam's moments after the first.

  The moments are those of the gradient: unlike the parameters after the
  update, they do not blow up what rounding did to a gradient near 0.
  """
  schedule = schedule_lib.make(
    schedule_lib.ScheduleConfig(kind="constant", peak=1e-2), run_steps=_STEPS
  )
  optimizer = optimizer_lib.make(optimizer_lib.OptimizerConfig(), schedule)
  graphdef, _ = transformer.abstract(config, _EXECUTION)
  train_step = step_lib.make_train_step(
    graphdef=graphdef,
    optimizer=optimizer,
    schedule=schedule,
    loss=step_lib.LossConfig(),
  )
  state = step_lib.init_state(functools.partial(initial, config), optimizer)
  shardings = sharding.param_shardings(state, mesh)
  losses, moments = [], None
  with jax.set_mesh(mesh):
    state = jax.device_put(state, shardings)
    batch = sharding.put_batch(make_batch(), mesh)
    update = jax.jit(train_step, out_shardings=(shardings, None))
    for _ in range(_STEPS):
      state, metrics = update(state, batch)
      losses.append(float(metrics["loss"]))
      if moments is None:
        moments = jax.device_get(state.optimizer)
  return losses, moments


@functools.cache
def initial(config):
  init = functools.partial(transformer.init, config, _EXECUTION, seed=0)
  return jax.device_get(jax.jit(init)())


def make_mesh(**axes):
  size = int(np.prod(list(axes.values()), initial=1))
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[:size])


class PresetsTest(parameterized.TestCase):
  def test_structures_are_distinct_and_cover_what_there_is(self):
    options = {
      (type(block.mixer).__name__, type(block.feed_forward).__name__)
      for config in _STRUCTURES.values()
      for block in config.layers
    }
    self.assertContainsSubset(
      {
        ("AttentionConfig", "MlpConfig"),
        ("AttentionConfig", "MoeConfig"),
        ("MlaConfig", "MlpConfig"),
        ("MlaConfig", "MoeConfig"),
        ("GatedDeltaNetConfig", "MoeConfig"),
      },
      options,
    )
    self.assertLess(len(_STRUCTURES), len(catalogue.PUBLISHED) / 2)

  @parameterized.named_parameters(*_STRUCTURES.items())
  def test_trains_alike_on_one_device_and_on_eight(self, config):
    losses, moments = train(config, make_mesh(fsdp=1))
    self.assertLess(losses[-1], 0.8 * losses[0])
    has_experts = any(
      isinstance(block.feed_forward, model_config.MoeConfig)
      for block in config.layers
    )
    third = {"expert": 2} if has_experts else {"data": 2}
    if any(getattr(b.mixer, "num_kv_heads", 2) == 1 for b in config.layers):
      axes = {"fsdp": 4} | third  # One key/value head is not split.
    else:
      axes = {"fsdp": 2, "tensor": 2} | third
    sharded_losses, sharded_moments = train(config, make_mesh(**axes))
    np.testing.assert_allclose(sharded_losses[:2], losses[:2], rtol=2e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, atol=2e-4 * np.abs(b).max() + 1e-9
      ),
      sharded_moments,
      moments,
    )
    # From then on rounding grows: Adam divides small gradients by themselves.
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-2)

  @parameterized.named_parameters(*_STRUCTURES.items())
  def test_greedy_decoding_equals_the_uncached(self, config):
    graphdef, _ = transformer.abstract(config, _EXECUTION)
    params = initial(config)
    prompt = make_batch()["tokens"][:2, :1]

    @jax.jit
    def step(params, cache, token):
      model = transformer.bind(graphdef, params)
      output = model(token, cache=cache)
      return model.logits(output.hidden)[:, 0], output.cache

    @jax.jit
    def whole(params, tokens):
      model = transformer.bind(graphdef, params)
      return model.logits(model(tokens).hidden)

    model = transformer.bind(graphdef, params)
    cache = model.make_cache(rows=2, slots=_LENGTH)
    tokens, steps = [jnp.asarray(prompt)], []
    for _ in range(_LENGTH):
      logits, cache = step(params, cache, tokens[-1])
      steps.append(logits)
      tokens.append(jnp.argmax(logits, axis=-1)[:, None])
    np.testing.assert_allclose(
      jnp.stack(steps, axis=1),
      whole(params, jnp.concatenate(tokens[:-1], axis=1)),
      rtol=1e-4,
      atol=2e-4,
    )


if __name__ == "__main__":
  absltest.main()
