"""OpenAI's gpt-oss: attention sinks, biases, 4 experts for each token.

Every other layer, from the first on, sees the last 128 tokens.

Sources: arXiv:2508.10925 and the published config.json. Parameter counts equal
those of the published checkpoints (presets_test.py).
"""

from model import config as model_config


def m20b() -> model_config.ModelConfig:
  """gpt-oss-20b: 20.9B parameters, 3.6B active without the embedding."""
  return _make(name="gpt-oss-20b", num_layers=24, num_experts=32)


def m120b() -> model_config.ModelConfig:
  """gpt-oss-120b: 117B parameters, 5.1B active without the embedding."""
  return _make(name="gpt-oss-120b", num_layers=36, num_experts=128)


def _make(
  *, name: str, num_layers: int, num_experts: int
) -> model_config.ModelConfig:
  def block(window: int | None) -> model_config.BlockConfig:
    return model_config.BlockConfig(
      mixer=model_config.AttentionConfig(
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        rope=model_config.RopeConfig(
          theta=150_000.0,
          scaling=model_config.YarnScaling(
            factor=32.0, original_max_seq_len=4096, truncate=False
          ),
        ),
        qkv_bias=True,
        out_bias=True,
        window=window,
        sinks=True,
      ),
      feed_forward=model_config.MoeConfig(
        num_experts=num_experts,
        experts_per_token=4,
        dim=2880,
        router=model_config.RouterConfig(score="softmax_after_topk", bias=True),
        activation="clamped_swiglu",
        bias=True,
      ),
    )

  return model_config.ModelConfig(
    name=name,
    vocab_size=201_088,
    dim=2880,
    groups=model_config.group_layers(
      [block(128), block(None)] * (num_layers // 2), period=2
    ),
    tie_embeddings=False,
    max_seq_len=131_072,
  )
