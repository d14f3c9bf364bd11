import dataclasses
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from model import config as model_config
from model import fixtures
from model import flops
from model import transformer
from model.presets import catalogue
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt2
from model.presets import kanana
from model.presets import llama
from model.presets import qwen

_ATTENTION = model_config.AttentionConfig(
  num_heads=4, num_kv_heads=2, head_dim=64
)
_MLP = model_config.MlpConfig(dim=704)


def dense(**overrides):
  shape: dict[str, Any] = {
    "vocab_size": 32_000,
    "dim": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "mlp_dim": 1408,
  }
  return fixtures.config(**shape | overrides)


def of(*blocks, **settings):
  """A model of width 256 with a layer of each block."""
  defaults: dict[str, Any] = {
    "name": "test",
    "vocab_size": 512,
    "dim": 256,
    "groups": model_config.group_layers(blocks),
    "tie_embeddings": False,
  }
  return model_config.ModelConfig(**defaults | settings)


def block(mixer=_ATTENTION, feed_forward=_MLP, **settings):
  return model_config.BlockConfig(
    mixer=mixer, feed_forward=feed_forward, **settings
  )


class ParametersTest(parameterized.TestCase):
  def test_by_hand(self):
    count = flops.count_parameters(dense())
    attention = 2 * 512 * 8 * 64 + 2 * 512 * 4 * 64
    matmul = 8 * (attention + 3 * 512 * 1408) + 512 * 32_000
    self.assertEqual(count.embedding, 32_000 * 512)
    self.assertEqual(count.matmul, matmul)
    self.assertEqual(count.total, matmul + 32_000 * 512 + (2 * 8 + 1) * 512)
    self.assertEqual(count.active, count.total)

  def test_tied_embedding_is_stored_once_and_multiplied(self):
    tied = flops.count_parameters(dense(tie_embeddings=True))
    untied = flops.count_parameters(dense())
    self.assertEqual(tied.matmul, untied.matmul)
    self.assertEqual(tied.total, untied.total - 32_000 * 512)

  def test_biases_and_positions_are_not_multiplied(self):
    count = flops.count_parameters(gpt2.small())
    # 12 layers of 12 D^2, and the tied head.
    self.assertEqual(count.matmul, 12 * 12 * 768**2 + 50_257 * 768)
    vectors = 12 * (4 + 3 + 1 + 4 + 1) * 768 + 2 * 768
    self.assertEqual(count.total, count.matmul + vectors + 1024 * 768)

  def test_a_token_uses_some_of_the_experts(self):
    moe = model_config.MoeConfig(
      num_experts=8,
      experts_per_token=2,
      dim=32,
      shared_dim=64,
      bias=True,
      router=model_config.RouterConfig(bias=True, selection_bias=True),
    )
    count = flops.count_parameters(of(block(feed_forward=moe)))
    expert, biases = 3 * 256 * 32, 2 * 32 + 256
    idle = 6 * (expert + biases)
    self.assertEqual(count.total - count.active, idle)
    attention = 256 * 64 * (4 + 2 + 2 + 4)
    used = 2 * expert + 3 * 256 * 64 + 256 * 8
    self.assertEqual(count.matmul, attention + used + 256 * 512)

  def test_multi_token_prediction_is_for_training(self):
    sparse = model_config.MoeConfig(num_experts=4, experts_per_token=1, dim=32)
    plain = of(block())
    config = dataclasses.replace(
      plain,
      mtp=model_config.MtpConfig(
        block=block(feed_forward=sparse), num_modules=2
      ),
    )
    without, count = map(flops.count_parameters, (plain, config))
    self.assertEqual(count.mtp, count.total - without.total)
    self.assertEqual(count.active, without.active)
    self.assertEqual(count.matmul, without.matmul)
    forward = flops.forward_per_token(config, seq_len=64)
    self.assertEqual(forward, flops.forward_per_token(plain, seq_len=64))
    # Each: a projection from 2 D, a block with one expert, the head again.
    matmul = 2 * 256**2 + 256 * 64 * 12 + 3 * 256 * 32 + 256 * 4 + 256 * 512
    attention = 4 * 4 * 64 * 32
    self.assertEqual(
      flops.train_per_token(config, seq_len=64),
      3 * (forward + 2 * (2 * matmul + attention)),
    )


class FlopsTest(parameterized.TestCase):
  def test_training_by_hand(self):
    per_token = flops.train_per_token(dense(), seq_len=512)
    # 6 per multiplied parameter; per layer 12 N H for each of T / 2 keys.
    matmul = 6 * (8 * (786_432 + 2_162_688) + 16_384_000)
    attention = 8 * 12 * 8 * 64 * 256
    self.assertEqual(per_token, matmul + attention)
    self.assertAlmostEqual(4096 * per_token / 1.034e12, 1, delta=1e-3)

  def test_published_figure(self):
    """Llama 3: 3.8e25 FLOPs for 405B and 15.6T tokens, attention left out."""
    per_token = flops.train_per_token(llama.v3_1_405b(), seq_len=8192)
    self.assertAlmostEqual(15.6e12 * per_token / 3.8e25, 1, delta=0.05)

  def test_forward_is_a_third(self):
    config = kanana.v1_5_2b()
    self.assertEqual(
      flops.train_per_token(config, seq_len=4096),
      3 * flops.forward_per_token(config, seq_len=4096),
    )

  def test_visible_keys(self):
    self.assertEqual(flops.mean_visible_keys(8), 4)
    self.assertEqual(flops.mean_visible_keys(8, 8), 4)
    self.assertEqual(flops.mean_visible_keys(8, 100), 4)
    # Long texts: all tokens but the first few see the whole window.
    self.assertAlmostEqual(flops.mean_visible_keys(10**6, 128), 128, delta=0.01)
    # Counted one by one, a token sees itself too: half a key more at most.
    for window in (1, 10, 100, 1000):
      counted = sum(min(t + 1, window) for t in range(1000)) / 1000
      extra = counted - flops.mean_visible_keys(1000, window)
      self.assertBetween(extra, 0, 0.5)

  def test_mixing_by_hand(self):
    mla = model_config.MlaConfig(
      num_heads=4,
      kv_rank=32,
      nope_head_dim=16,
      rope_head_dim=8,
      value_head_dim=12,
    )
    delta_net = model_config.GatedDeltaNetConfig(
      num_key_heads=2, num_value_heads=4, key_head_dim=8, value_head_dim=16
    )
    windowed = dataclasses.replace(_ATTENTION, window=25)
    for mixer, wanted in (
      (_ATTENTION, 50 * 4 * (2 * 64 + 2 * 64)),
      (windowed, (25 - 25**2 / 200) * 4 * (2 * 64 + 2 * 64)),
      (mla, 50 * 4 * (2 * 24 + 2 * 12)),
      (delta_net, 4 * 3 * 2 * 8 * 16),
    ):
      self.assertEqual(flops.mixing_per_token(block(mixer), 100), wanted)

  @parameterized.parameters(*catalogue.PUBLISHED)
  def test_every_preset_costs_about_six_per_active_parameter(self, make):
    config = make()
    count = flops.count_parameters(config)
    if config.mtp is None:
      short = flops.train_per_token(config, seq_len=1)
      self.assertAlmostEqual(short / (6 * count.matmul), 1, delta=0.02)
    longer = [
      flops.forward_per_token(config, seq_len=t) for t in (1024, 2048, 4096)
    ]
    self.assertTrue(longer[0] < longer[1] < longer[2])

  @parameterized.named_parameters(
    ("plain", of(block())),
    ("window", of(block(dataclasses.replace(_ATTENTION, window=64)))),
    (
      "biases_without_gate",
      of(
        block(
          dataclasses.replace(
            _ATTENTION, rope=None, qkv_bias=True, out_bias=True
          ),
          model_config.MlpConfig(dim=1024, gated=False, bias=True),
        ),
        norm="layer",
        learned_positions=True,
        max_seq_len=256,
      ),
    ),
    (
      "sandwich",
      of(
        block(
          dataclasses.replace(_ATTENTION, qk_norm="head", output_gate=True),
          norms="sandwich",
        ),
        norm="rms_offset",
        logit_softcap=30.0,
      ),
    ),
    (
      "latent",
      of(
        block(
          model_config.MlaConfig(
            num_heads=4,
            kv_rank=64,
            q_rank=96,
            nope_head_dim=48,
            rope_head_dim=16,
            value_head_dim=48,
          )
        )
      ),
    ),
  )
  def test_agrees_with_the_compiler(self, config):
    # One layer: XLA counts the body of a scan once. All T x T scores are
    # computed by the reference: a mean of T keys, not of `mean_visible_keys`.
    # XLA counts elementwise work too, for which there is the tolerance.
    seq_len = 256
    execution = fixtures.execution(attention="reference")
    graphdef, shapes = transformer.abstract(config, execution)

    def forward(params, tokens):
      model = transformer.bind(graphdef, params)
      return model.logits(model(tokens).hidden)

    tokens = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
    analysis: Any = (
      jax.jit(forward).lower(shapes, tokens).compile().cost_analysis()
    )
    (only,) = config.layers
    keys = flops.mean_visible_keys(seq_len, getattr(only.mixer, "window", None))
    mixing = flops.mixing_per_token(only, seq_len)
    needed = flops.forward_per_token(config, seq_len=seq_len)
    computed = needed + mixing * (seq_len / keys - 1)
    self.assertAlmostEqual(
      analysis["flops"] / (seq_len * computed), 1, delta=0.05
    )

  def test_training_agrees_with_the_compiler(self):
    config, seq_len = of(block()), 256
    execution = fixtures.execution(attention="reference")
    _, shapes = transformer.abstract(config, execution)
    gradient = jax.jit(jax.grad(fixtures.make_loss(config, execution)))
    tokens = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
    analysis: Any = (
      gradient.lower(shapes, {"tokens": tokens}).compile().cost_analysis()
    )
    needed = flops.train_per_token(config, seq_len=seq_len)
    mixing = 3 * flops.mixing_per_token(config.layers[0], seq_len)
    self.assertAlmostEqual(
      analysis["flops"] / (seq_len * (needed + mixing)), 1, delta=0.05
    )


class CacheTest(parameterized.TestCase):
  @parameterized.parameters("bfloat16", "float32")
  def test_keys_and_values(self, dtype):
    size = 2 if dtype == "bfloat16" else 4
    config = llama.v3_1_8b()
    # 8 heads of 128 in 32 layers: 128 KiB for a token in bfloat16.
    self.assertEqual(
      flops.cache_bytes(config, context=100, dtype=dtype),
      100 * 32 * 2 * 8 * 128 * size,
    )

  def test_a_window_bounds_it(self):
    config = gemma.v3_1b()
    per_token = 2 * 1 * 256 * 2
    for context, windowed in ((100, 100), (512, 512), (30_000, 512)):
      self.assertEqual(
        flops.cache_bytes(config, context=context),
        per_token * (4 * context + 22 * windowed),
      )

  def test_latent_and_rotated_key(self):
    # DeepSeek-V3: 512 + 64 numbers in each of 61 layers, 70 KB for a token.
    self.assertEqual(
      flops.cache_bytes(deepseek.v3(), context=1000), 1000 * 61 * 576 * 2
    )

  def test_linear_attention_is_of_constant_size(self):
    config = qwen.v3_next_80b_a3b()
    short, long = (flops.cache_bytes(config, context=t) for t in (1000, 3000))
    self.assertEqual(long - short, 2000 * 12 * 2 * 2 * 256 * 2)
    constant = short - 1000 * 12 * 2 * 2 * 256 * 2
    # A float32 matrix of 128 x 128 for 32 heads, and three tokens before the
    # convolution of 16 + 16 + 32 heads.
    self.assertEqual(
      constant, 36 * (32 * 128 * 128 * 4 + 3 * (16 + 16 + 32) * 128 * 2)
    )


if __name__ == "__main__":
  absltest.main()
