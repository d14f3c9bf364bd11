"""DeepSeek-V2 and V3: latent attention, many small experts, shared experts.

Sources: arXiv:2405.04434 (V2), arXiv:2412.19437 (V3), and the published
config.json of each. Parameter counts are the published ones (presets_test.py).
"""

from model import config as model_config


def v2_lite() -> model_config.ModelConfig:
  """DeepSeek-V2-Lite: 15.7B parameters, 2.4B active without the embedding."""
  dense, sparse = _blocks(
    num_heads=16,
    q_rank=None,
    mscale=0.707,
    dense_dim=10_944,
    moe=model_config.MoeConfig(
      num_experts=64,
      experts_per_token=6,
      dim=1408,
      shared_dim=2 * 1408,
      router=model_config.RouterConfig(normalize=False),
    ),
  )
  return _model(
    name="deepseek-v2-lite",
    vocab_size=102_400,
    dim=2048,
    blocks=[dense] + [sparse] * 26,
  )


def v2() -> model_config.ModelConfig:
  """DeepSeek-V2: 236B parameters, 21B of them active."""
  dense, sparse = _blocks(
    num_heads=128,
    q_rank=1536,
    mscale=0.707,
    dense_dim=12_288,
    moe=model_config.MoeConfig(
      num_experts=160,
      experts_per_token=6,
      dim=1536,
      shared_dim=2 * 1536,
      router=model_config.RouterConfig(
        normalize=False,
        scale=16.0,
        num_groups=8,
        groups_per_token=3,
        group_score="max",
      ),
    ),
  )
  return _model(
    name="deepseek-v2",
    vocab_size=102_400,
    dim=5120,
    blocks=[dense] + [sparse] * 59,
  )


def v3(*, mtp: bool = False) -> model_config.ModelConfig:
  """DeepSeek-V3: 671B parameters, 37B of them active.

  Args:
    mtp: With the module that predicts a second token, as it was trained. It
      has 11.6B parameters; with the copies of embedding and head that are
      stored beside it, the published files hold 14B more.
  """
  dense, sparse = _blocks(
    num_heads=128,
    q_rank=1536,
    mscale=1.0,
    dense_dim=18_432,
    moe=model_config.MoeConfig(
      num_experts=256,
      experts_per_token=8,
      dim=2048,
      shared_dim=2048,
      router=model_config.RouterConfig(
        score="sigmoid",
        scale=2.5,
        num_groups=8,
        groups_per_token=4,
        group_score="top2_sum",
        selection_bias=True,
      ),
    ),
  )
  return _model(
    name="deepseek-v3-mtp" if mtp else "deepseek-v3",
    vocab_size=129_280,
    dim=7168,
    blocks=[dense] * 3 + [sparse] * 58,
    mtp=model_config.MtpConfig(block=sparse) if mtp else None,
  )


def _blocks(
  *,
  num_heads: int,
  q_rank: int | None,
  mscale: float,
  dense_dim: int,
  moe: model_config.MoeConfig,
) -> tuple[model_config.BlockConfig, model_config.BlockConfig]:
  """The first layers' block, and that of the others."""
  mixer = model_config.MlaConfig(
    num_heads=num_heads,
    kv_rank=512,
    q_rank=q_rank,
    nope_head_dim=128,
    rope_head_dim=64,
    value_head_dim=128,
    rope=model_config.RopeConfig(
      pairing="interleaved",
      scaling=model_config.YarnScaling(
        factor=40.0,
        original_max_seq_len=4096,
        mscale=mscale,
        mscale_all_dim=mscale,
      ),
    ),
  )
  return (
    model_config.BlockConfig(
      mixer=mixer, feed_forward=model_config.MlpConfig(dim=dense_dim)
    ),
    model_config.BlockConfig(mixer=mixer, feed_forward=moe),
  )


def _model(
  *,
  name: str,
  vocab_size: int,
  dim: int,
  blocks: list[model_config.BlockConfig],
  mtp: model_config.MtpConfig | None = None,
) -> model_config.ModelConfig:
  return model_config.ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=dim,
    groups=model_config.group_layers(blocks),
    tie_embeddings=False,
    norm_eps=1e-6,
    max_seq_len=163_840,
    mtp=mtp,
  )
