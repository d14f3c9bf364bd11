"""Which documents are copies, or near copies, of an earlier one.

Two documents are near copies if their sets of shingles (`_SHINGLE_WORDS` words
in a row) have a Jaccard similarity of the threshold, as estimated by MinHash
(Broder 1997). A document is dropped if it is a near copy of one that was kept
before it, so nothing is dropped without a document like it that stays, and a
chain of small changes does not end in one document.

Documents that could be near copies are found by banding (Leskovec et al.,
Mining of Massive Datasets, 3.4), with enough bands to miss few; whether they
are is then decided by all of their signatures.

D documents, in the order of files and rows; H hashes of a signature.
"""

import collections
import hashlib
import importlib.metadata

from jaxtyping import Bool, UInt32, UInt64
import numpy as np
import rensa

from data import words

# The module is compiled, without stubs.
_MinHash = rensa.RMinHash  # pyrefly: ignore[missing-attribute]

NUM_HASHES = 128
_SHINGLE_WORDS = 5
_SEED = 1
# The share of pairs at the threshold that banding has to find.
_RECALL = 0.95
_MIX = np.uint64(0x9E3779B97F4A7C15)


def version() -> str:
  """Changes when signatures do."""
  return (
    f"rensa {importlib.metadata.version('rensa')}, R-MinHash"
    f" {_MinHash.ALGORITHM_VERSION}, {_SHINGLE_WORDS} words"
  )


def digest(text: str) -> UInt64[np.ndarray, "2"]:
  """The first 128 bits of the sha256 of a text."""
  return np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u8", 2)


def signature(text: str) -> UInt32[np.ndarray, "H"]:
  """MinHash of the shingles of a text; zeros if it has no word."""
  spelled = words.split(text)
  if not spelled:
    return np.zeros(NUM_HASHES, np.uint32)
  count = max(len(spelled) - _SHINGLE_WORDS + 1, 1)
  shingles = [" ".join(spelled[i : i + _SHINGLE_WORDS]) for i in range(count)]
  sketch = _MinHash(num_perm=NUM_HASHES, seed=_SEED)
  sketch.update(shingles)
  return np.array(sketch.digest(), np.uint32)


def copies(
  digests: UInt64[np.ndarray, "D 2"], compared: Bool[np.ndarray, "D"]
) -> Bool[np.ndarray, "D"]:
  """Which documents have the digest of an earlier one.

  Args:
    digests: of all documents.
    compared: those that take part; the others are no copies and have none.
  """
  numbers = np.flatnonzero(compared)
  order = numbers[np.lexsort((digests[numbers, 1], digests[numbers, 0]))]
  result = np.zeros(len(digests), bool)
  # lexsort is stable, so the first of equal ones comes first.
  ordered = digests[order]
  result[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
  return result


def near_copies(
  signatures: UInt32[np.ndarray, "D H"],
  compared: Bool[np.ndarray, "D"],
  *,
  threshold: float,
) -> Bool[np.ndarray, "D"]:
  """Which documents are near copies of an earlier one that is none.

  Besides the signatures, which may be mapped from a file, it needs 24 bytes a
  document, and more for those that share a band with another.

  Args:
    signatures: of all documents.
    compared: those that take part; the others are no copies and have none.
    threshold: the share of equal hashes, 0 to 1, from which on two documents
      are near copies.
  """
  numbers = np.flatnonzero(compared)
  rows = rows_of_a_band(threshold, signatures.shape[1])
  members, groups = [], []
  num_groups = 0
  for start in range(0, signatures.shape[1] - rows + 1, rows):
    keys = _band_keys(signatures, numbers, start, start + rows)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(ordered), bool)
    shared[1:] |= same
    shared[:-1] |= same
    group = np.cumsum(np.concatenate([[True], ~same])[: len(ordered)])
    members.append(numbers[order[shared]])
    groups.append(num_groups + group[shared])
    num_groups += len(ordered) + 1
  member, group = np.concatenate(members), np.concatenate(groups)
  by_document = np.argsort(member, kind="stable")
  member, group = member[by_document], group[by_document]
  borders = np.flatnonzero(np.diff(member)) + 1

  result = np.zeros(len(signatures), bool)
  kept: dict[int, list[int]] = collections.defaultdict(list)
  for own, own_groups in zip(
    np.split(member, borders), np.split(group, borders), strict=True
  ):
    if not len(own):
      continue
    document, bands = int(own[0]), own_groups.tolist()
    others = sorted({other for band in bands for other in kept[band]})
    equal = signatures[others] == signatures[document]
    if others and equal.mean(axis=1).max() >= threshold:
      result[document] = True
    else:
      for band in bands:
        kept[band].append(document)
  return result


def rows_of_a_band(threshold: float, num_hashes: int) -> int:
  """The most hashes in a band with which few near copies are missed.

  Bands of r hashes, b of them, share one with probability 1 - (1 - t^r)^b at
  the similarity t.
  """
  rows = [
    r
    for r in range(1, num_hashes + 1)
    if 1 - (1 - threshold**r) ** (num_hashes // r) >= _RECALL
  ]
  return max(rows, default=1)


def _band_keys(
  signatures: UInt32[np.ndarray, "D H"],
  numbers: np.ndarray,
  start: int,
  stop: int,
) -> np.ndarray:
  """uint64 hash of the hashes [start, stop) of some documents."""
  keys = np.zeros(len(numbers), np.uint64)
  for column in range(start, stop):
    keys ^= signatures[numbers, column]
    keys *= _MIX
    keys ^= keys >> np.uint64(29)
  return keys
