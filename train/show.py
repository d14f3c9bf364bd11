"""Prints a batch of a run: binary //data:show.

  bazel run //data:show -- --config=train/configs/quickstart.py --step=100

For each row its source, epoch and documents, and its text. The batch is made
anew from the config, whatever its number; --config overrides work as for
//train:main, and must be those of the run.
"""

from absl import app
from absl import flags
from ml_collections import config_flags

from data import listing
from data import recipes
from train import command_line

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="Experiment file, such as train/configs/quickstart.py."
)
_STEP = flags.DEFINE_integer("step", 0, "Number of the batch, from 0.")
_WIDTH = flags.DEFINE_integer(
  "width", 160, "Characters of each row's text; 0: all.", lower_bound=0
)


def main(argv: list[str]) -> None:
  """Prints the rows."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    config = command_line.read_config(_CONFIG)
    for line in listing.lines(
      recipes.resolve(config.data),
      seq_len=config.run.seq_len,
      batch_size=config.run.batch_size,
      num_steps=config.run.steps,
      step=_STEP.value,
      width=_WIDTH.value,
    ):
      print(line)
  except ValueError as error:
    command_line.fail(error)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command_line.run(main)
