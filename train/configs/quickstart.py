r"""Quickstart: 10M parameters on four blended sources of real text.

English API documentation, English prose, Python code and Korean, prepared on
first use; bf16 compute. Trains about 4 minutes on 2 CPU cores.

  bazel run //train:main -- --config=train/configs/quickstart.py \
      --workdir=/tmp/quickstart

Shorter: --config.run.steps=150
"""

from data import config as data_config
from model import config as model_config
from model.presets import small
from train import config
from train import schedule

_STEPS = 400


def get_config():
  """See the module's docstring."""
  return config.to_config_dict(
    config.RunConfig(
      model=small.m10(vocab_size=8192),
      execution=model_config.ExecutionConfig(compute_dtype="bfloat16"),
      data=data_config.DataConfig(
        kind=data_config.Kind.RECIPE, recipe="quickstart"
      ),
      schedule=schedule.ScheduleConfig(
        kind="wsd", peak=3e-3, warmup_steps=30, decay_steps=120, final_ratio=0.1
      ),
      run=config.LoopConfig(steps=_STEPS, batch_size=8, seq_len=256),
      checkpoint=config.CheckpointConfig(every=200, keep=2),
      eval=config.EvalConfig(
        every=200,
        max_batches=8,
        prompts=(
          "Returns the list of",
          "And God said unto",
          "def test_",
          "이 함수는",
        ),
        sample_tokens=48,
      ),
    )
  )
