r"""Trains a model: binary //train:main.

  bazel run //train:main -- --config=train/configs/quickstart.py \
      --workdir=/tmp/quickstart

Any setting of the config can be overridden: --config.run.steps=100. Running the
same command again goes on from the newest checkpoint in the workdir.

On several hosts the same command runs once on each. Slurm (srun), Kubernetes
and TPU pods say how many there are; elsewhere three flags do:

  --coordinator=HOST:PORT --num_processes=4 --process_id=0

Exit codes: 0 done; 1 an error that a rerun would meet again (bad input, a
diverged run), or that another process had; 128 + N ended by signal N after
saving: run it again.
"""

import os
import pathlib
import shlex
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from model import checkpoint
from train import cluster
from train import command_line
from train import distributed
from train import loop
from train import metrics
from train import phases

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="Experiment file, such as train/configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "Directory of the run: checkpoints, metrics, reports."
)
_ALLOW_CONFIG_CHANGES = flags.DEFINE_bool(
  "allow_config_changes",
  False,
  "Go on from a checkpoint although settings of the run have changed.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where a run has several."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Processes of the run."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "This process's number; the first is 0."
)
flags.mark_flag_as_required("config")
flags.register_validator(
  "workdir", bool, message="is missing; name a directory for the run."
)


def main(argv: list[str]) -> None:
  """Reads flags, trains, and turns what went wrong into a message."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  workdir = pathlib.Path(command_line.user_path(_WORKDIR.value))
  try:
    config = command_line.read_config(_CONFIG)
    found = cluster.find(
      coordinator=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      environment=os.environ,
    )
    distributed.start(found)
    with distributed.ending_together():
      result = loop.run(
        config,
        workdir,
        allow_config_changes=_ALLOW_CONFIG_CHANGES.value,
        began=phases.process_start(),
      )
  except (
    ValueError,
    checkpoint.CorruptCheckpointError,
    metrics.NonFiniteError,
  ) as error:
    command_line.fail(error)
  if result.stopped_by:
    logging.warning(
      "Stopped after step %d; the same command goes on.", result.step
    )
    sys.exit(128 + result.stopped_by)
  if jax.process_index() == 0:
    longer = f"--config.run.steps={2 * config.run.steps}"
    logging.info(
      "Done. To train on for as many steps again (the learning-rate schedule "
      "stretches, hence the second flag):\n  %s %s --allow_config_changes",
      shlex.join(command_line.how_called("//train:main")),
      longer,
    )


if __name__ == "__main__":
  command_line.run(main)
