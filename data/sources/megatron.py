"""Tokens of Megatron's PREFIX.bin and PREFIX.idx, document after document."""

import concurrent.futures
import hashlib
import json
import os
import pathlib

import numpy as np
import tqdm

from data import indexed
from data.sources import storage

_BLOCK = 1 << 24
_THREADS = 4


class MegatronSource:
  """The token stream of a pair of files; it is mapped, not read.

  Sequences have no borders here, only documents; those without tokens are left
  out.

  Attributes:
    document_lengths: int64 tokens of every document.
    digest: changes when the files do; see `indexed.Indexed.fingerprint`.
  """

  def __init__(self, prefix: str | os.PathLike, *, vocab_size: int):
    """Opens the files.

    Args:
      prefix: their path without the suffix.
      vocab_size: number of token ids, which the dtype has to hold; every token
        is checked to be one, the first time that the file is opened.

    Raises:
      ValueError: a file is missing or damaged, is of a dtype that is too small,
        has no tokens, or has one that is no token id.
    """
    self._indexed = indexed.Indexed(prefix)
    lengths = self._indexed.document_lengths
    self.document_lengths = lengths[lengths > 0]
    self.digest = self._indexed.fingerprint
    if not self.num_tokens:
      raise ValueError(f"{prefix}.bin has no tokens; give files with some")
    self._check_tokens(vocab_size)

  @property
  def num_tokens(self) -> int:
    return self._indexed.num_tokens

  @property
  def flat(self) -> np.ndarray:
    """The whole stream as one array, mapped."""
    return self._indexed.tokens

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the stream, in the dtype of the file.

    Raises:
      ValueError: the range is outside the stream.
    """
    if not 0 <= start <= stop <= self.num_tokens:
      raise ValueError(
        f"[{start}, {stop}) is outside [0, {self.num_tokens}), the tokens of"
        f" {self._indexed.prefix}.bin"
      )
    return self.flat[start:stop]

  def _check_tokens(self, vocab_size: int) -> None:
    file = pathlib.Path(f"{self._indexed.prefix}.bin")
    dtype = self._indexed.dtype
    if np.iinfo(dtype).max < vocab_size - 1:
      raise ValueError(
        f"{file} is of {dtype}, which cannot hold the {vocab_size} ids of the"
        " tokenizer; set data.tokenizer to the one that made the file, or write"
        f" it again in {indexed.best_dtype(vocab_size)}"
      )
    stat = file.stat()
    # The fingerprint is of samples; with the time, a rewritten file is told.
    key = json.dumps([self.digest, stat.st_size, stat.st_mtime_ns])
    key = hashlib.sha256(key.encode()).hexdigest()
    note = storage.cache_dir() / "token_ranges" / f"{key}.json"
    known = storage.read_note(note)
    if not known:
      known = _range(self.flat, file)
      storage.write_note(note, known)
    if known["min"] < 0 or known["max"] >= vocab_size:
      wrong, place = _first_outside(self.flat, vocab_size)
      ends = np.cumsum(self.document_lengths)
      raise ValueError(
        f"{file}: token {place}, in document"
        f" {int(np.searchsorted(ends, place, 'right'))} of those with tokens,"
        f" is {wrong}, but the tokenizer has {vocab_size} ids; set"
        " data.tokenizer to the one that made the file, or write the file again"
      )


def _range(tokens: np.ndarray, file: pathlib.Path) -> dict[str, int]:
  """Smallest and largest token."""
  starts = range(0, len(tokens), _BLOCK)
  blocks = (tokens[start : start + _BLOCK] for start in starts)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    ranges = tqdm.tqdm(
      pool.map(lambda block: (int(block.min()), int(block.max())), blocks),
      total=len(starts),
      desc=f"Checking the token ids of {file.name}",
      disable=len(starts) < 100,
    )
    low, high = zip(*ranges, strict=True)
  return {"min": min(low), "max": max(high)}


def _first_outside(tokens: np.ndarray, vocab_size: int) -> tuple[int, int]:
  """The first token that is no id, and its place."""
  for start in range(0, len(tokens), _BLOCK):
    block = tokens[start : start + _BLOCK]
    wrong = (block < 0) | (block >= vocab_size)
    if wrong.any():
      place = int(np.argmax(wrong))
      return int(block[place]), start + place
  raise AssertionError("all tokens are inside")
