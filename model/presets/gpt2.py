"""OpenAI's GPT-2: learned positions, LayerNorm, biases, no gate in the MLP.

Sources: "Language Models are Unsupervised Multitask Learners" (2019) and the
published config.json of each. Parameter counts equal those of the published
checkpoints (presets_test.py).
"""

from model import config as model_config


def small() -> model_config.ModelConfig:
  """GPT-2: 124M parameters."""
  return _make(name="gpt2", dim=768, num_layers=12)


def medium() -> model_config.ModelConfig:
  """GPT-2 medium: 355M."""
  return _make(name="gpt2-medium", dim=1024, num_layers=24)


def large() -> model_config.ModelConfig:
  """GPT-2 large: 774M."""
  return _make(name="gpt2-large", dim=1280, num_layers=36)


def xl() -> model_config.ModelConfig:
  """GPT-2 XL: 1.56B."""
  return _make(name="gpt2-xl", dim=1600, num_layers=48)


def _make(*, name: str, dim: int, num_layers: int) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=dim // 64,
      num_kv_heads=dim // 64,
      head_dim=64,
      rope=None,
      qkv_bias=True,
      out_bias=True,
    ),
    feed_forward=model_config.MlpConfig(
      dim=4 * dim, activation="gelu_tanh", gated=False, bias=True
    ),
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=50_257,
    dim=dim,
    groups=model_config.group_layers([block] * num_layers),
    tie_embeddings=True,
    norm="layer",
    max_seq_len=1024,
    learned_positions=True,
  )
