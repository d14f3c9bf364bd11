"""The parts of a run: which steps and rows belong to each.

A stage ends with the batch in which its tokens are reached, so that no batch
has rows of two. Steps and rows are numbered over the whole run.
"""

import collections.abc
import dataclasses

from data import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A part of the run, with all its settings known.

  Attributes:
    first_step: number of its first batch.
    num_steps: how many batches it has; None: as many as the run asks for.
    first_row: number of its first row.
    batch_size: rows of a batch, over all hosts.
    seq_len: tokens of a row.
    weights: of the sources; 0: the source rests. Empty: their own.
  """

  first_step: int
  num_steps: int | None
  first_row: int
  batch_size: int
  seq_len: int
  weights: tuple[float, ...]

  def row(self, step: int) -> int:
    """The first row of a batch of this stage, or of the one that follows."""
    return self.first_row + (step - self.first_step) * self.batch_size


def resolve(
  stages: collections.abc.Sequence[config_lib.StageConfig],
  *,
  seq_len: int,
  batch_size: int,
) -> list[Stage]:
  """The stages of a run, at least one.

  Args:
    stages: as configured; empty: one, of the whole run.
    seq_len: of the run, for stages without their own.
    batch_size: of the run, for stages without their own.
  """
  resolved = []
  step = row = 0
  for stage in stages or (config_lib.StageConfig(),):
    rows_of_batch = stage.batch_size or batch_size
    tokens_of_row = stage.seq_len or seq_len
    num_steps = None
    if stage.tokens:
      num_steps = -(-stage.tokens // (rows_of_batch * tokens_of_row))
    resolved.append(
      Stage(
        first_step=step,
        num_steps=num_steps,
        first_row=row,
        batch_size=rows_of_batch,
        seq_len=tokens_of_row,
        weights=stage.weights,
      )
    )
    if num_steps is not None:
      step += num_steps
      row += num_steps * rows_of_batch
  return resolved


def at(stages: collections.abc.Sequence[Stage], step: int) -> Stage:
  """The stage of batch `step`; the last one after its end."""
  begun = [stage for stage in stages if stage.first_step <= step]
  return begun[-1]


def num_steps(stages: collections.abc.Sequence[Stage]) -> int | None:
  """How many batches there are in all; None: without end."""
  last = stages[-1]
  return None if last.num_steps is None else last.first_step + last.num_steps


def num_rows(stages: collections.abc.Sequence[Stage], num_steps: int) -> int:
  """Rows of the first batches."""
  return at(stages, num_steps).row(num_steps)
