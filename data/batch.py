"""Rows of tokens to the arrays of a training batch.

B rows (of this host), T sequence length.
"""

import numpy as np

from data import buffers
from data import rows as rows_lib

Batch = dict[str, np.ndarray]


def make(
  rows: rows_lib.Rows,
  *,
  mask_documents: bool,
  memory: buffers.Buffers | None = None,
) -> Batch:
  """The arrays of a batch.

  Args:
    rows: of B.
    mask_documents: keep the segments of a row apart and restart positions in
      each; off: a row is one segment, padding left out.
    memory: where they lie; None: of their own.

  Returns:
    tokens, targets (the next tokens), positions, segment_ids (from 1; 0 is
    padding): int32 [B, T]; loss_weights: float32 [B, T], 1 where the target is
    to be predicted.
  """
  memory = memory or buffers.Buffers()
  shape = rows.tokens[:, 1:].shape
  batch = {
    name: memory.empty(shape, dtype)
    for name, dtype in (
      ("tokens", np.int32),
      ("targets", np.int32),
      ("loss_weights", np.float32),
      ("positions", np.int32),
      ("segment_ids", np.int32),
    )
  }
  batch["tokens"][:] = rows.tokens[:, :-1]
  batch["targets"][:] = rows.tokens[:, 1:]
  batch["loss_weights"][:] = rows.is_target[:, 1:]
  places = np.arange(shape[1], dtype=np.int32)
  segment_ids, positions = batch["segment_ids"], batch["positions"]
  if mask_documents:
    segment_ids[:] = rows.segment_ids[:, :-1]
    is_first = memory.full(shape, True, bool)
    np.not_equal(segment_ids[:, 1:], segment_ids[:, :-1], out=is_first[:, 1:])
    # Where each segment begins, over all rows, and how long it is.
    begins = np.flatnonzero(is_first)
    lengths = np.diff(begins, append=segment_ids.size)
    starts = (begins % len(places)).astype(np.int32)
    positions[:] = np.repeat(starts, lengths).reshape(shape)
    np.subtract(places, positions, out=positions)
  else:
    np.greater(rows.segment_ids[:, :-1], 0, out=segment_ids)
    positions[:] = places
  return batch


def pad(batch: Batch, num_targets: np.ndarray) -> Batch:
  """Turns the places past each row's targets into padding.

  Args:
    batch: from `make`.
    num_targets: [B] places of the row to keep.

  Returns:
    The batch with loss_weights and segment_ids 0 at the other places.
  """
  keep = np.arange(batch["tokens"].shape[1]) < num_targets[:, None]
  return {
    **batch,
    "loss_weights": np.where(keep, batch["loss_weights"], np.float32(0)),
    "segment_ids": np.where(keep, batch["segment_ids"], np.int32(0)),
  }
