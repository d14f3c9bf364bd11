"""Compares Cacao's Megatron mode with what Megatron made of the same files.

  bazel run //data:megatron_check -- --goldens=DIR

Prints a line for each case of the folder, and `N passed, N failed`; the exit
code is 1 if one failed. `data/megatron/goldens.py` says what a folder holds.
"""

import os
import pathlib
import sys
import typing

from absl import app
from absl import flags

from data.megatron import goldens

_GOLDENS = flags.DEFINE_string("goldens", None, "Folder of goldens.")
_ROUNDING = flags.DEFINE_enum(
  "rounding",
  "x86",
  ["x86", "fused"],
  "Of the machine that made them: fused for Megatron on ARM.",
)


def main(argv: list[str]) -> int:
  """Compares; 1 if anything differs."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; give --goldens=DIR")
  # Bazel runs programs elsewhere; paths are those of the user's shell.
  here = os.environ.get("BUILD_WORKING_DIRECTORY", ".")
  folder = pathlib.Path(here, _GOLDENS.value or "")
  rounding: typing.Any = _ROUNDING.value  # An enum of the two.
  equal = goldens.report(folder, rounding=rounding, out=sys.stdout)
  return int(not equal)


if __name__ == "__main__":
  flags.mark_flag_as_required("goldens")
  app.run(main)
