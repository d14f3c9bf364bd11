"""A log of what every step was trained on: samples.jsonl in the workdir.

One line of JSON for each step, with the source, epoch and number of each row
of a part of the batch; the hosts that give it share the part's number. A run
that is resumed goes on with it, on as many hosts as it may then have: lines of
steps that are made again are dropped first.
"""

import collections.abc
import json
import os
import pathlib

import jax

from data import pipeline
from model import slices

_LOG = "samples.jsonl"


class Log:
  """This host's log; the first part's is `samples.jsonl`."""

  def __init__(
    self, workdir: pathlib.Path, *, start_step: int, rows: slices.HostRows
  ):
    """Opens it, up to `start_step`; of hosts with one part the first does."""
    self._file = None
    if jax.process_index() == 0:
      # A run before this one may have had more parts.
      for other in workdir.glob("samples-*.jsonl"):
        if int(other.stem.partition("-")[2]) >= rows.count:
          _truncate(other, start_step)
    if rows.is_first:
      file = path(workdir, rows.index)
      _truncate(file, start_step)
      self._file = file.open("a", encoding="utf-8")

  def write(
    self, step: int, rows: collections.abc.Sequence[pipeline.Row]
  ) -> None:
    """Adds update number `step` (1 is the first), before it can be saved."""
    if self._file is None:
      return
    values = [[row.source, row.epoch, row.number] for row in rows]
    line = json.dumps({"step": step, "rows": values}, ensure_ascii=False)
    self._file.write(line + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def path(workdir: pathlib.Path, part: int) -> pathlib.Path:
  """Where the log of a part of the batch is."""
  name = f"samples-{part}.jsonl" if part else _LOG
  return workdir / name


def read(workdir: pathlib.Path, part: int = 0) -> list[dict]:
  """All lines of a part, in the order in which they were written."""
  with path(workdir, part).open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _truncate(file: pathlib.Path, step: int) -> None:
  """Drops what comes after a step, and a line cut short by a crash."""
  if not file.exists():
    return
  scratch = file.with_suffix(".tmp")
  with (
    file.open(encoding="utf-8") as lines,
    scratch.open("w", encoding="utf-8") as kept,
  ):
    for line in lines:
      if line.endswith("\n") and json.loads(line)["step"] <= step:
        kept.write(line)
  os.replace(scratch, file)
