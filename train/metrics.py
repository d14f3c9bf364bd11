"""What a run reports: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import tensorboardX

from train import weights_and_biases

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(Exception):
  """Training has diverged: loss, gradient or parameters are not finite."""


class Writer:
  """Appends numbers to `metrics.jsonl`, TensorBoard events and wandb.

  Only the first process writes. A resumed run first drops what an earlier one
  wrote beyond the step it resumes from: those steps are made again.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    start_step: int,
    wandb: weights_and_biases.Run | None = None,
  ):
    """`wandb` gets all of it too."""
    self._wandb = wandb
    self._active = jax.process_index() == 0
    if not self._active:
      return
    path = workdir / METRICS_FILE
    _truncate(path, start_step)
    self._file = path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start_step + 1
    )

  def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
    """One record; TensorBoard has it as `kind/name`.

    Numbers as scalars, texts as text, lists of numbers as histograms.
    """
    if not self._active:
      return
    record = {"step": step, "kind": kind} | values
    self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, str):
        self._board.add_text(f"{kind}/{name}", value, step)
      elif isinstance(value, list):
        self._board.add_histogram(f"{kind}/{name}", np.array(value), step)
      else:
        self._board.add_scalar(f"{kind}/{name}", value, step)
    if self._wandb is not None:
      self._wandb.log(step, kind, values)

  def close(self) -> None:
    """Flushes both."""
    if self._active:
      self._file.close()
      self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """All records of a run, in the order in which they were written."""
  path = workdir / METRICS_FILE
  if not path.exists():
    return []
  with path.open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _truncate(path: pathlib.Path, step: int) -> None:
  """Drops records after `step`, and a line cut short by a crash."""
  if not path.exists():
    return
  kept = []
  with path.open(encoding="utf-8") as lines:
    for line in lines:
      if line.endswith("\n") and json.loads(line)["step"] <= step:
        kept.append(line)
  scratch = path.with_suffix(".tmp")
  scratch.write_text("".join(kept), encoding="utf-8")
  os.replace(scratch, path)
