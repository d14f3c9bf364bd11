import dataclasses
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import fixtures
from model import linear
from model import sharding
from model import transformer
from serve import weights

_TOKENS = jnp.arange(24).reshape(2, 12) % 64


def prepared(model, *, compute_dtype="float32", quantizes=False) -> Any:
  """The layout, and the parameters in it."""
  layout = weights.layout(
    model, compute_dtype=compute_dtype, quantizes=quantizes
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  params = fixtures.params(model, fixtures.execution())
  return layout, weights.prepare(params, layout, mesh=mesh)


def logits(model, params, compute_dtype="float32") -> jax.Array:
  run = fixtures.execution(compute_dtype=compute_dtype)
  bound = transformer.bind(transformer.abstract(model, run)[0], params)
  return bound.logits(bound(_TOKENS).hidden)


def rounding(weight: linear.Int8) -> jax.Array:
  """The relative error to expect: a step's 1/sqrt(12), in quadratic mean."""
  summed = range(weight.scale.ndim, weight.values.ndim)
  scale = jnp.expand_dims(weight.scale, tuple(summed))
  mean = jnp.mean((weight.values * scale) ** 2)
  return jnp.sqrt(jnp.mean(scale**2) / 12 / mean)


def loss(of_logits: jax.Array) -> jax.Array:
  given = jax.nn.log_softmax(of_logits[:, :-1])
  return -jnp.mean(jnp.take_along_axis(given, _TOKENS[:, 1:, None], axis=-1))


class WeightsTest(parameterized.TestCase):
  @parameterized.product(
    tie_embeddings=(True, False), compute_dtype=("float32", "bfloat16")
  )
  def test_computes_the_same(self, tie_embeddings, compute_dtype):
    model = fixtures.config(tie_embeddings=tie_embeddings)
    layout, params = prepared(model, compute_dtype=compute_dtype)
    want = logits(
      model, fixtures.params(model, fixtures.execution()), compute_dtype
    )
    got = logits(layout.config, params, compute_dtype)
    tolerance = 1e-5 if compute_dtype == "float32" else 2e-2
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    for name, leaf in sharding.named_leaves(params).items():
      name = name.partition(".parts")[0]
      is_matrix = sharding.is_matrix(name.rpartition(".")[2])
      self.assertEqual(leaf.dtype, compute_dtype if is_matrix else "float32")

  @parameterized.parameters(True, False)
  def test_int8_is_nearly_the_same(self, tie_embeddings):
    model = fixtures.config(tie_embeddings=tie_embeddings, init_std=0.3)
    layout, params = prepared(model, quantizes=True)
    self.assertEqual(layout.config.tie_embeddings, tie_embeddings)
    self.assertIsInstance(params["embed_VD"], linear.Int8)
    want = logits(model, fixtures.params(model, fixtures.execution()))
    got = logits(layout.config, params)
    error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    self.assertBetween(float(error), 1e-6, 0.05)
    self.assertAlmostEqual(float(loss(got)), float(loss(want)), delta=0.05)

  def test_int8_of_experts(self):
    experts = model_config.MoeConfig(num_experts=8, experts_per_token=2, dim=32)
    model = fixtures.config(init_std=0.1)
    block = dataclasses.replace(model.layers[0], feed_forward=experts)
    group = model_config.LayerGroup(pattern=(block,), repeats=2)
    model = dataclasses.replace(model, groups=(group,))
    layout, params = prepared(model, quantizes=True)
    stored = params["group_0"]["block_0"]["feed_forward"]
    shapes = {
      "gate_EDF": (1, 8, 32, 16),
      "up_EDF": (1, 8, 32, 16),
      "down_EFD": (1, 8, 16, 32),
    }
    for name, shape in shapes.items():
      self.assertEqual(stored[name].values.shape, shape)
      self.assertEqual(stored[name].values.dtype, jnp.int8)
      self.assertEqual(stored[name].scale.shape, shape[:-1])
    want = logits(model, fixtures.params(model, fixtures.execution()))
    got = logits(layout.config, params)
    error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    # As if all products were in sequence, whose errors are independent; their
    # activations, rounded too on CPUs, count as much as their weights.
    leaves = jax.tree.leaves(
      params, is_leaf=lambda leaf: isinstance(leaf, linear.Int8)
    )
    squares = sum(
      rounding(leaf) ** 2 for leaf in leaves if isinstance(leaf, linear.Int8)
    )
    self.assertBetween(float(error), 1e-4, float(jnp.sqrt(2 * squares)))

  def test_int8_of_every_kind(self):
    """Whatever is left out of 8 bits is left out on purpose."""
    mla = model_config.MlaConfig(
      num_heads=2,
      kv_rank=8,
      q_rank=8,
      nope_head_dim=6,
      rope_head_dim=4,
      value_head_dim=5,
    )
    gated_delta_net = model_config.GatedDeltaNetConfig(
      num_key_heads=2, num_value_heads=4, key_head_dim=4, value_head_dim=6
    )
    experts = model_config.MoeConfig(
      num_experts=4, experts_per_token=2, dim=16, shared_dim=8
    )
    model = dataclasses.replace(
      fixtures.config(),
      groups=(
        model_config.LayerGroup(
          pattern=tuple(
            model_config.BlockConfig(mixer=mixer, feed_forward=experts)
            for mixer in (mla, gated_delta_net)
          ),
          repeats=2,
        ),
      ),
    )
    layout, params = prepared(model, quantizes=True)
    left = {
      name.rpartition(".")[2]
      for name, leaf in sharding.named_leaves(params).items()
      if leaf.dtype != jnp.int8
    }
    left = {name for name in left - {"scale"} if sharding.is_matrix(name)}
    self.assertEqual(
      left,
      {
        "router_DE",
        "beta_DN",
        "decay_DN",
        "rope_key_DH",
        "q_conv_KHW",
        "k_conv_KHW",
        "v_conv_NHW",
      },
    )
    want = logits(model, fixtures.params(model, fixtures.execution()))
    got = logits(layout.config, params)
    error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    self.assertLess(float(error), 0.05)


if __name__ == "__main__":
  absltest.main()
