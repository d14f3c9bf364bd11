"""A keyed shuffle of 0..length-1 that needs no table.

A Feistel network permutes 0..4**k-1; walking each cycle until it is back below
`length` makes that a permutation of any length (Black and Rogaway, "Ciphers
with arbitrary finite domains", 2002). Position i costs O(1) time and nothing is
stored, so a restart at sample 10**12 is as cheap as a start at 0. Only integer
operations: the order is the same on every machine and numpy version.
"""

import hashlib

import numpy as np

_ROUNDS = 8


class Permutation:
  """A bijection of range(length) onto itself.

  Args:
    length: number of elements, at least 1 and at most 2**62.
    key: what the order depends on. The parts are hashed with their types and
      lengths, so that no two different keys share an order by construction.
  """

  def __init__(self, length: int, *, key: tuple[int | str, ...]):
    if not 1 <= length <= 1 << 62:
      raise ValueError(f"length is {length}; it must be in [1, 2**62]")
    self._length = length
    self._half_bits = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    self._mask = np.uint64((1 << int(self._half_bits)) - 1)
    digest = hashlib.shake_256(repr(key).encode()).digest(8 * _ROUNDS)
    self._round_keys = np.frombuffer(digest, "<u8")

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Elements (int64) at the positions, which must be in [0, length)."""
    positions = np.asarray(positions, np.int64)
    if positions.size and (
      positions.min() < 0 or positions.max() >= self._length
    ):
      raise ValueError(
        f"positions span [{positions.min()}, {positions.max()}]; they must be"
        f" in [0, {self._length})"
      )
    elements = self._encrypt(positions.astype(np.uint64))
    outside = np.flatnonzero(elements >= self._length)
    while outside.size:
      elements[outside] = self._encrypt(elements[outside])
      outside = outside[elements[outside] >= self._length]
    return elements.astype(np.int64)

  def _encrypt(self, values: np.ndarray) -> np.ndarray:
    left, right = values >> self._half_bits, values & self._mask
    for key in self._round_keys:
      left, right = right, left ^ (_mix(right ^ key) & self._mask)
    return (left << self._half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
  """SplitMix64's finalizer: every input bit reaches every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
