"""Arrays of pieces of different lengths, one after another.

I pieces.
"""

from jaxtyping import Int
import numpy as np


def running_sum(lengths) -> np.ndarray:
  """Where each piece begins, and the end of the last: int64 [I + 1]."""
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ramp(lengths: Int[np.ndarray, "I"]) -> np.ndarray:
  """0, 1, ... to each length, one piece after another."""
  starts = np.cumsum(lengths) - lengths
  return np.arange(lengths.sum()) - np.repeat(starts, lengths)
