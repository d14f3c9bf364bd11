"""Benchmark: bench_dense with a mixture of experts, dropless.

8 experts of F 512, 2 per token, load-balance loss 0.01. The variant, with as
many FLOPs and twice the weights, has 64 experts of F 128, 8 per token:
bench_moe.py:64

  bazel run //train:benchmark -- --config=train/configs/bench_moe.py
"""

from data import config as data_config
from model import config as model_config
from train import balance
from train import config
from train import schedule

_VARIANTS = {
  "8": model_config.MoeConfig(num_experts=8, experts_per_token=2, dim=512),
  "64": model_config.MoeConfig(num_experts=64, experts_per_token=8, dim=128),
}


def get_config(num_experts: str = "8"):
  """See the module's docstring."""
  if num_experts not in _VARIANTS:
    raise ValueError(
      f"bench_moe.py:{num_experts}: there are only {', '.join(_VARIANTS)}."
    )
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=8, num_kv_heads=4, head_dim=64
    ),
    feed_forward=_VARIANTS[num_experts],
  )
  return config.to_config_dict(
    config.RunConfig(
      model=model_config.ModelConfig(
        name=f"bench-moe-{num_experts}",
        vocab_size=32_000,
        dim=512,
        groups=(model_config.LayerGroup(pattern=(block,), repeats=8),),
        tie_embeddings=False,
        max_seq_len=512,
      ),
      balance=balance.BalanceConfig(aux_loss_weight=0.01),
      execution=model_config.ExecutionConfig(compute_dtype="float32"),
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=32_000
      ),
      schedule=schedule.ScheduleConfig(kind="constant", peak=3e-4),
      run=config.LoopConfig(steps=1000, batch_size=8, seq_len=512),
    )
  )
