"""What fits most models, on an accelerator.

  bazel run //serve:decode_server -- --checkpoint=DIR

Every setting can be overridden: --config.runner.max_rows=64. All of them, with
what they mean: serve/config.py.
"""

import ml_collections

from serve import config


def get_config() -> ml_collections.ConfigDict:
  """Everything as it is by default."""
  return config.to_config_dict(config.ServeConfig())
