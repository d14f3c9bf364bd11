"""Memory for batches that is used again.

A batch takes some megabytes, which malloc gives back to the system each time
they are freed: to get them again, page by page, takes longer than to fill them.
"""

import sys
import threading

import numpy as np

# Buffers kept of each shape: more than the batches that are on their way.
_KEPT = 16

# An array in a list, seen by a loop over it, and by getrefcount itself.
_REFERENCES_OF_A_FREE_ONE = 3


class Buffers:
  """Arrays whose memory comes back when nobody refers to it any more.

  An array holds its buffer as its `base`, and so does every view of it; a
  buffer that only this pool refers to is free. So nothing has to be returned,
  and an array that is kept stays as it is.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._buffers: dict[tuple, list[np.ndarray]] = {}

  def empty(self, shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array of any content, as `np.empty` gives it."""
    key = (shape, np.dtype(dtype))
    with self._lock:
      kept = self._buffers.setdefault(key, [])
      for buffer in kept:
        if sys.getrefcount(buffer) == _REFERENCES_OF_A_FREE_ONE:
          return buffer.view()
      buffer = np.empty(shape, dtype)
      if len(kept) < _KEPT:
        kept.append(buffer)
      return buffer.view()

  def full(self, shape: tuple[int, ...], value, dtype) -> np.ndarray:
    """An array of one value, as `np.full` gives it."""
    array = self.empty(shape, dtype)
    array.fill(value)
    return array

  def __reduce__(self):
    return Buffers, ()  # Every process has memory of its own.
