"""For a machine without an accelerator.

  bazel run //serve:decode_server -- --checkpoint=DIR \
      --config=serve/configs/cpu.py

CPUs compute float32 faster than bfloat16. Fewer rows compile sooner.
"""

import ml_collections

from serve import config


def get_config() -> ml_collections.ConfigDict:
  """float32, and as many rows as a few cores keep up with."""
  return config.to_config_dict(
    config.ServeConfig(
      runner=config.RunnerConfig(compute_dtype="float32", max_rows=16)
    )
  )
