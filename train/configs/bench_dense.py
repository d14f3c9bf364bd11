"""Benchmark: a dense model on synthetic tokens, float32, no remat.

8 layers, D 512, 8 heads, 4 key/value heads of 64, F 1408, V 32000, sequence
512, batch 8. The shape on which other trainers have been measured on CPUs.

  bazel run //train:benchmark -- --config=train/configs/bench_dense.py

The variant with short steps: --config.run.batch_size=2
"""

from data import config as data_config
from model import config as model_config
from train import config
from train import schedule


def get_config():
  """See the module's docstring."""
  return config.to_config_dict(
    config.RunConfig(
      model=model_config.dense(
        name="bench-dense",
        vocab_size=32_000,
        dim=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        mlp_dim=1408,
        tie_embeddings=False,
        max_seq_len=512,
      ),
      execution=model_config.ExecutionConfig(compute_dtype="float32"),
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=32_000
      ),
      schedule=schedule.ScheduleConfig(kind="constant", peak=3e-4),
      run=config.LoopConfig(steps=1000, batch_size=8, seq_len=512),
    )
  )
