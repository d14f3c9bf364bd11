"""An unrolled model is the same function of the same numbers.

Dims: B batch, T length, L layers.
"""

import dataclasses

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import fixtures
from model import sharding
from model import transformer
from model import unrolled

_ATTENTION = model_config.AttentionConfig(
  num_heads=4, num_kv_heads=2, head_dim=8
)


def make_block(**settings) -> model_config.BlockConfig:
  return model_config.BlockConfig(
    mixer=dataclasses.replace(_ATTENTION, **settings),
    feed_forward=model_config.MlpConfig(dim=32),
  )


# A group of one layer, and one of a pattern of two.
_BLOCKS = (make_block(), make_block(window=3), make_block(softcap=2.0))
_CONFIG = model_config.ModelConfig(
  name="test",
  vocab_size=64,
  dim=16,
  tie_embeddings=False,
  groups=(
    model_config.LayerGroup(pattern=_BLOCKS[:1], repeats=1),
    model_config.LayerGroup(pattern=_BLOCKS[1:], repeats=2),
  ),
  mtp=model_config.MtpConfig(block=_BLOCKS[0]),
)


def make_params(model=_CONFIG):
  _, shapes = transformer.abstract(model, fixtures.execution())
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 3, shapes
  )


class UnrolledTest(absltest.TestCase):
  def test_every_layer_is_a_group(self):
    got = unrolled.config(_CONFIG)
    self.assertEqual(got.layers, _CONFIG.layers)
    self.assertLen(got.groups, 5)
    self.assertEqual({group.repeats for group in got.groups}, {1})
    self.assertIsNone(got.mtp)
    self.assertEqual(unrolled.config(got), got)

  def test_computes_the_same(self):
    params = make_params()
    layers = unrolled.params(make_params(), _CONFIG)
    tokens = np.random.default_rng(1).integers(0, 64, (2, 7))
    results = []
    for model, weights in (
      (_CONFIG, params),
      (unrolled.config(_CONFIG), layers),
    ):
      graphdef, shapes = transformer.abstract(model, fixtures.execution())
      jax.tree.map(
        lambda a, b: self.assertEqual(a.shape, b.shape), weights, shapes
      )

      @jax.jit
      def logits(weights, tokens, graphdef=graphdef):
        bound = transformer.bind(graphdef, weights)
        output = bound(tokens, capture=True)
        return bound.logits(output.hidden), output.inputs

      results.append(logits(weights, tokens))
    for a, b in zip(*results, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)

  def test_takes_stacked_leaves_out(self):
    params = jax.tree.map(jnp.asarray, make_params())
    head, stacked = params["head_DV"], params["group_1"]["block_1"]
    wanted = np.asarray(stacked["mixer"]["q_DNH"])
    layers = unrolled.params(params, _CONFIG)
    self.assertEmpty(jax.tree.leaves(params["group_1"]))
    # Group 0 is layer 0; block_1 of group 1 is layers 2 and 4.
    for row, name in enumerate(("group_2", "group_4")):
      q_DNH = layers[name]["block_0"]["mixer"]["q_DNH"]
      np.testing.assert_array_equal(q_DNH, wanted[row : row + 1])
    self.assertIs(layers["head_DV"], head)
    self.assertNotIn("mtp_0", layers)

  def test_keeps_shardings(self):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=2, tensor=2), jax.devices()[:4]
    )
    params = make_params()
    shardings = sharding.param_shardings(params, mesh)
    placed = jax.device_put(params, shardings)
    layers = unrolled.params(placed, _CONFIG)
    jax.tree.map(
      lambda leaf, wanted: self.assertTrue(
        leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
      ),
      layers,
      sharding.param_shardings(layers, mesh),
    )

  def test_shapes(self):
    _, shapes = transformer.abstract(_CONFIG, fixtures.execution())
    _, wanted = transformer.abstract(
      unrolled.config(_CONFIG), fixtures.execution()
    )
    got = unrolled.params(shapes, _CONFIG)
    jax.tree.map(lambda a, b: self.assertEqual(a.shape, b.shape), got, wanted)

  def test_does_not_copy_weights(self):
    # Wide, that no activation is as large as a weight.
    model = unrolled.config(
      fixtures.config(
        dim=256, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4
      )
    )
    graphdef, shapes = transformer.abstract(model, fixtures.execution())

    def step(params, tokens):
      return transformer.bind(graphdef, params)(tokens).hidden

    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    compiled = jax.jit(step).lower(shapes, tokens).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    up_DF = shapes["group_0"]["block_0"]["feed_forward"]["up_DF"]
    self.assertLess(memory.temp_size_in_bytes, up_DF.size * 4)


if __name__ == "__main__":
  absltest.main()
