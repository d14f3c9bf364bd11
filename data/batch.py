"""Rows of tokens to the arrays of a training batch.

B rows (of this host), T sequence length.
"""

import numpy as np

Batch = dict[str, np.ndarray]


def make(rows: np.ndarray, *, eos_id: int, mask_documents: bool) -> Batch:
  """The arrays of a batch.

  Args:
    rows: [B, T + 1] tokens.
    eos_id: the token that ends a document.
    mask_documents: number the documents of a row and restart positions in each;
      off: a row is one segment.

  Returns:
    tokens, targets (the next tokens), positions, segment_ids (from 1): int32
    [B, T]; loss_weights: float32 [B, T] of ones.
  """
  rows = rows.astype(np.int32)
  tokens, targets = rows[:, :-1], rows[:, 1:]
  places = np.arange(tokens.shape[1], dtype=np.int32)
  if mask_documents:
    begins = np.zeros(tokens.shape, bool)
    begins[:, 1:] = tokens[:, :-1] == eos_id
    segment_ids = 1 + np.cumsum(begins, axis=1, dtype=np.int32)
    starts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    positions = places - starts
  else:
    segment_ids = np.ones_like(tokens)
    positions = np.broadcast_to(places, tokens.shape)
  return {
    "tokens": np.ascontiguousarray(tokens),
    "targets": np.ascontiguousarray(targets),
    "loss_weights": np.ones(tokens.shape, np.float32),
    "positions": np.ascontiguousarray(positions, np.int32),
    "segment_ids": segment_ids,
  }


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
