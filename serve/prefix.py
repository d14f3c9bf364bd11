"""What is in a page, by name: the block's tokens and all those before them.

The digest of a block hashes that of the block before it, so that it stands for
the text up to its end. The first one hashes a salt: what else the states depend
on, such as the parameters' step.
"""

import array
from collections.abc import Sequence
import hashlib
from typing import NamedTuple


class Block(NamedTuple):
  """Full blocks are equal if all that their states depend on is.

  Attributes:
    digest: Of the salt and the text up to the block's end.
    parent: The digest of the block before; for the first, that of the salt.
    tokens: The block's own.
  """

  digest: bytes
  parent: bytes
  tokens: tuple[int, ...]


class Chain:
  """The blocks of a text that only grows; each is hashed once."""

  def __init__(self, salt: str, page_size: int):
    self.salt = salt
    self._page_size = page_size
    self._blocks: list[Block] = []
    self._last = _digest(salt.encode())

  def blocks(self, tokens: Sequence[int], num: int) -> list[Block]:
    """The first `num` blocks of the text, and any that were asked for before.

    Args:
      tokens: The text, at least `num` whole blocks.
      num: How many.
    """
    size = self._page_size
    assert num * size <= len(tokens)
    for i in range(len(self._blocks), num):
      block = tuple(tokens[i * size : (i + 1) * size])
      content = array.array("q", block).tobytes()
      digest = _digest(self._last + content)
      self._blocks.append(Block(digest, self._last, block))
      self._last = digest
    return self._blocks


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=32).digest()
