"""Measures the train step: binary //train:benchmark; prints one JSON line.

  bazel run //train:benchmark -- --config=train/configs/bench_dense.py

Runs the same compiled step on the same input pipeline as //train:main, without
checkpoints and evaluation. With --profile=DIR one more step is traced for
TensorBoard's profiler or Perfetto.
"""

import json

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from train import command_line
from train import measure

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment.")
_STEPS = flags.DEFINE_integer(
  "steps", 8, "Steps to time, after two that are not.", lower_bound=1
)
_PROFILE = flags.DEFINE_string(
  "profile", None, "Directory for a trace of one further step."
)


def main(argv: list[str]) -> None:
  """Prints the measurement."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    config = command_line.read_config(_CONFIG)
    profile = _PROFILE.value and command_line.user_path(_PROFILE.value)
    result = measure.measure(config, num_steps=_STEPS.value, profile=profile)
  except ValueError as error:
    command_line.fail(error)
  if jax.process_index() == 0:
    print(json.dumps(result))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command_line.run(main)
