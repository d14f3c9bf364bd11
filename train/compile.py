r"""Compiles a run's train step for a TPU slice that is not here.

Binary //train:compile; needs libtpu, which --config=tpu brings, and no TPU:

  bazel run --config=tpu //train:compile -- \
      --config=train/configs/kanana_1_5_8b.py --topology=v6e-256

Says whether the step fits, what it computes and what it communicates, per
device (`compile_report.py`). It is the step that //train:main would run there.
Data is not opened. With --json one object per shape of batches is printed, on a
line of its own. Ends with code 2 where the step does not fit.
"""

import json
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from train import command_line
from train import compile_report
from train import topology

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="Experiment file, such as train/configs/kanana_1_5_8b.py.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "Slice: v5e-N, v6e-N, v5p-N, 7x-N, or v5p:4x4x8.",
  required=True,
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of text.")


def main(argv: list[str]) -> None:
  """Prints a report for each shape of the run's batches."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  fits = True
  try:
    config = command_line.read_config(_CONFIG)
    wanted = topology.parse(_TOPOLOGY.value)
    for report in compile_report.compile_steps(config, wanted):
      fits = fits and report.memory.fits
      if _JSON.value:
        print(json.dumps(compile_report.to_json(report)), flush=True)
      else:
        print(compile_report.to_text(report), flush=True)
  except ValueError as error:
    command_line.fail(error)
  if not fits:
    sys.exit(2)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command_line.run(main)
