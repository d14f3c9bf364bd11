r"""Prints what a run will be given, before it is paid for: //data:report.

  bazel run //data:report -- --config=train/configs/quickstart.py \
    --png=/tmp/mixture.png

Sources, stages, weights asked and delivered, epochs of each source, padding and
what was left out, counted from the plan of the run; --config overrides work as
for //train:main.
"""

import json
import pathlib

from absl import app
from absl import flags
from ml_collections import config_flags

from data import forecast as forecast_lib
from data import forecast_plot
from data import forecast_table
from data import recipes
from train import command_line

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="Experiment file, such as train/configs/quickstart.py."
)
_JSON = flags.DEFINE_string(
  "json", "", "File to write all figures to; empty: none."
)
_PNG = flags.DEFINE_string(
  "png", "", "File to draw the shares over the run to; empty: none."
)


def main(argv: list[str]) -> None:
  """Prints the tables, and writes the files."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    config = command_line.read_config(_CONFIG)
    forecast = forecast_lib.make(
      recipes.resolve(config.data),
      seq_len=config.run.seq_len,
      batch_size=config.run.batch_size,
      num_steps=config.run.steps,
    )
    for line in forecast_table.lines(forecast):
      print(line)
    if _JSON.value:
      content = json.dumps(forecast_lib.to_dict(forecast), indent=2)
      pathlib.Path(command_line.user_path(_JSON.value)).write_text(content)
    if _PNG.value:
      forecast_plot.draw(forecast, command_line.user_path(_PNG.value))
  except (ValueError, OSError) as error:
    command_line.fail(error)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command_line.run(main)
