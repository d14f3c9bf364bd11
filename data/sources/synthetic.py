"""Uniform random tokens: no files, no reading, and a loss that is known.

The best possible loss is ln(vocab_size), so a run on it checks a benchmark.
"""

import numpy as np


class SyntheticSource:
  """A stream of tokens, each a hash of its position and the seed.

  Attributes:
    document_lengths: one document, of all tokens.
  """

  def __init__(self, *, vocab_size: int, num_tokens: int, seed: int):
    self._vocab_size = np.uint64(vocab_size)
    self._offset = np.uint64(seed * 0xD1342543DE82EF95 % (1 << 64))
    self.num_tokens = num_tokens
    self.num_documents = 1
    self.document_lengths = np.array([num_tokens])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), uint32."""
    x = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += self._offset
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return ((x >> np.uint64(33)) % self._vocab_size).astype(np.uint32)
