"""A log of what every step was trained on: samples.jsonl in the workdir.

One line of JSON for each step, with the source, epoch and number of each row
of this host's part of the batch. A run that is resumed goes on with it: lines
of steps that are made again are dropped first.
"""

import collections.abc
import json
import os
import pathlib

import jax

from data import pipeline

_LOG = "samples.jsonl"


class Log:
  """This host's log; the first host's is `samples.jsonl`."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int):
    """Opens it, up to `start_step`."""
    self._path = path(workdir, jax.process_index())
    _truncate(self._path, start_step)
    self._file = self._path.open("a", encoding="utf-8")

  def write(
    self, step: int, rows: collections.abc.Sequence[pipeline.Row]
  ) -> None:
    """Adds update number `step` (1 is the first), before it can be saved."""
    values = [[row.source, row.epoch, row.number] for row in rows]
    line = json.dumps({"step": step, "rows": values}, ensure_ascii=False)
    self._file.write(line + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def path(workdir: pathlib.Path, host: int) -> pathlib.Path:
  """Where a host's log is."""
  name = f"samples-{host}.jsonl" if host else _LOG
  return workdir / name


def read(workdir: pathlib.Path, host: int = 0) -> list[dict]:
  """All lines of a host, in the order in which they were written."""
  with path(workdir, host).open(encoding="utf-8") as lines:
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
