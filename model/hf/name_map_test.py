from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np

from model import config as model_config
from model.hf import name_map

D, N, K, H, E, F, C, W = 6, 4, 2, 3, 2, 5, 7, 4


def numbers(*shape, dtype=np.float32):
  return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def bound_to(*ours, **settings):
  return name_map.Rule(theirs="x", ours=ours, **settings)


class RuleTest(parameterized.TestCase):
  def check(self, rule, theirs, *expected):
    """Both directions, against arrays that were laid out by hand."""
    shapes = [array.shape for array in expected]
    self.assertEqual(rule.their_shape(shapes), theirs.shape)
    for ours, wanted in zip(
      rule.to_ours(theirs, shapes), expected, strict=True
    ):
      np.testing.assert_array_equal(ours, wanted)
      self.assertEqual(ours.dtype, theirs.dtype)
      self.assertTrue(ours.flags.c_contiguous)
    back = rule.to_theirs(list(expected))
    np.testing.assert_array_equal(back, theirs)
    self.assertEqual(back.dtype, theirs.dtype)

  @parameterized.parameters(np.float32, ml_dtypes.bfloat16)
  def test_linear(self, dtype):
    theirs = numbers(N * H, D, dtype=dtype)
    expected = theirs.reshape(N, H, D).transpose(2, 0, 1)
    self.check(bound_to("mixer.q_DNH"), theirs, expected)

  def test_linear_of_several_inputs(self):
    theirs = numbers(D, N * H)
    expected = theirs.reshape(D, N, H).transpose(1, 2, 0)
    self.check(bound_to("mixer.o_NHD", inputs=2), theirs, expected)

  def test_vector_as_linear(self):
    theirs = numbers(1, D)
    self.check(bound_to("feed_forward.shared_gate_D"), theirs, theirs[0])

  def test_fused(self):
    theirs = numbers((N + 2 * K) * H, D)
    q, k, v = np.split(theirs, [N * H, (N + K) * H])
    self.check(
      bound_to("mixer.q_DNH", "mixer.k_DKH", "mixer.v_DKH"),
      theirs,
      q.reshape(N, H, D).transpose(2, 0, 1),
      k.reshape(K, H, D).transpose(2, 0, 1),
      v.reshape(K, H, D).transpose(2, 0, 1),
    )

  def test_fused_in_each_head(self):
    theirs = numbers(N * (H + W), C)
    heads = theirs.reshape(N, H + W, C)
    self.check(
      bound_to("mixer.k_up_CNH", "mixer.v_up_CNH", groups=N),
      theirs,
      heads[:, :H].transpose(2, 0, 1),
      heads[:, H:].transpose(2, 0, 1),
    )

  def test_fused_with_more_value_heads_than_groups(self):
    # Of each of K groups: a key's features, then those of N / K values.
    per_group = H + N // K * W
    theirs = numbers(K * per_group, D)
    groups = theirs.reshape(K, per_group, D)
    values = groups[:, H:].reshape(K, N // K, W, D).reshape(N, W, D)
    self.check(
      bound_to("mixer.k_DKH", "mixer.v_DNH", groups=K),
      theirs,
      groups[:, :H].transpose(2, 0, 1),
      values.transpose(2, 0, 1),
    )

  def test_in_out(self):
    theirs = numbers(D, (N + K) * H)
    q, k = np.split(theirs, [N * H], axis=1)
    self.check(
      bound_to("mixer.q_DNH", "mixer.k_DKH", layout="in_out"),
      theirs,
      q.reshape(D, N, H),
      k.reshape(D, K, H),
    )
    theirs = numbers(N * H, D)
    self.check(
      bound_to("mixer.o_NHD", layout="in_out", inputs=2),
      theirs,
      theirs.reshape(N, H, D),
    )

  def test_all_experts_alternating(self):
    gate_up = bound_to(
      "feed_forward.gate_EDF",
      "feed_forward.up_EDF",
      layout="in_out",
      groups=F,
    )
    theirs = numbers(E, D, 2 * F)
    self.check(gate_up, theirs, theirs[..., ::2], theirs[..., 1::2])
    bias = bound_to(
      "feed_forward.gate_bias_EF",
      "feed_forward.up_bias_EF",
      layout="flat",
      groups=F,
    )
    theirs = numbers(E, 2 * F)
    self.check(bias, theirs, theirs[:, ::2], theirs[:, 1::2])

  def test_flat_same_depthwise(self):
    theirs = numbers(N * H)
    self.check(
      bound_to("mixer.q_bias_NH", layout="flat"), theirs, theirs.reshape(N, H)
    )
    for name in ("embed_VD", "feed_forward.down_bias_ED"):
      theirs = numbers(E, D)
      self.check(bound_to(name, layout="same"), theirs, theirs)
    theirs = numbers(K * H + N * H, 1, W)
    self.check(
      bound_to("mixer.k_conv_KHW", "mixer.v_conv_NHW", layout="depthwise"),
      theirs,
      theirs[: K * H, 0].reshape(K, H, W),
      theirs[K * H :, 0].reshape(N, H, W),
    )

  @parameterized.parameters(np.float32, ml_dtypes.bfloat16)
  def test_matrices_beyond_a_strip(self, dtype):
    theirs = np.random.default_rng(0).normal(size=(37, 2050)).astype(dtype)
    self.check(bound_to("feed_forward.up_DF"), theirs, theirs.T)
    self.check(bound_to("feed_forward.up_DF"), theirs.T.copy(), theirs)


def config(**settings) -> model_config.ModelConfig:
  defaults: dict[str, Any] = {
    "name": "test",
    "vocab_size": 8,
    "dim": D,
    "num_layers": 2,
    "num_heads": N,
    "num_kv_heads": K,
    "head_dim": H + 1,
    "mlp_dim": F,
    "tie_embeddings": True,
  }
  return model_config.dense(**(defaults | settings))


class BindTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.params = {
      "embed_VD": np.empty((8, D)),
      "group_0": {
        "block_0": {
          "up_DF": np.empty((2, D, F)),
          "up_EDF": np.empty((2, E, D, F)),
        }
      },
      "mtp_0": {"up_DF": np.empty((D, F))},
    }
    self.top = [name_map.Rule(theirs="wte", ours=("embed_VD",), layout="same")]
    self.layers = [
      [
        name_map.Rule(theirs=f"{i}.up", ours=("up_DF",)),
        name_map.Rule(theirs=f"{i}.{{expert}}.up", ours=("up_EDF",)),
      ]
      for i in range(2)
    ]

  def bind(self):
    return name_map.bind(
      config(), self.params, top=self.top, layers=self.layers
    )

  def test_places(self):
    bindings = {binding.theirs: binding for binding in self.bind()}
    self.assertCountEqual(
      bindings,
      ["wte", "0.up", "1.up", "0.0.up", "0.1.up", "1.0.up", "1.1.up"],
    )
    self.assertEqual(bindings["wte"].index, ())
    self.assertEqual(bindings["wte"].ours, ("embed_VD",))
    last = bindings["1.1.up"]
    self.assertEqual(last.ours, ("group_0.block_0.up_EDF",))
    self.assertEqual(last.index, (1, 1))
    self.assertEqual(last.shapes, ((D, F),))
    self.assertEqual(last.their_shape, (F, D))
    theirs = numbers(F, D)
    np.testing.assert_array_equal(last.to_ours(theirs)[0], theirs.T)

  def test_refuses_what_is_not_bound(self):
    del self.layers[1][0]
    with self.assertRaisesRegex(ValueError, "cover 'test'.*block_0.up_DF'"):
      self.bind()

  def test_refuses_what_is_bound_twice(self):
    self.layers[1].append(self.layers[1][0])
    with self.assertRaisesRegex(ValueError, "exactly once"):
      self.bind()

  def test_refuses_what_is_not_there(self):
    self.top.append(name_map.Rule(theirs="lm_head", ours=("head_DV",)))
    with self.assertRaisesRegex(ValueError, r"'lm_head' to \['head_DV'\]"):
      self.bind()

  def test_layers_are_counted_through_patterns(self):
    blocks = config().layers[:1]
    other = config(mlp_dim=F + 1).layers[:1]
    model = config()
    model = model_config.ModelConfig(
      name="test",
      vocab_size=8,
      dim=D,
      tie_embeddings=True,
      groups=(
        model_config.LayerGroup(pattern=blocks + other, repeats=2),
        model_config.LayerGroup(pattern=blocks, repeats=1),
      ),
    )
    self.assertEqual(
      list(name_map.places(model)),
      [
        ("group_0.block_0", 0),
        ("group_0.block_1", 0),
        ("group_0.block_0", 1),
        ("group_0.block_1", 1),
        ("group_1.block_0", 0),
      ],
    )


if __name__ == "__main__":
  absltest.main()
