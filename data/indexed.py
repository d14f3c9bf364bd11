"""Megatron's token files: PREFIX.bin and PREFIX.idx.

PREFIX.bin is the tokens of all sequences, one after another, in one dtype.
PREFIX.idx says where they are; everything in it is little-endian and packed:

  offset       bytes  field
  0            9      "MMIDIDX" and two zeros
  9            8      version: 1
  17           1      code of the dtype
  18           8      S, number of sequences
  26           8      D, number of documents and one
  34           4 S    int32 length of each sequence, in tokens
  34 + 4 S     8 S    int64 byte in PREFIX.bin at which each begins
  34 + 12 S    8 D    int64 document d is the sequences [at d, at d + 1)
  34 + 12S+8D  S      int8 mode of each sequence; in multimodal files only

Documents may have any number of sequences and sequences any length, 0 too. The
format is that of megatron/core/datasets/indexed_dataset.py (Megatron-Core
0.16.1).

S sequences, D documents and one.
"""

import collections.abc
import functools
import hashlib
import mmap
import os
import pathlib
import struct
import time
import typing

import numpy as np

from data.sources import storage

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {
  1: np.uint8,
  2: np.int8,
  3: np.int16,
  4: np.int32,
  5: np.int64,
  6: np.float64,
  7: np.float32,
  8: np.uint16,
}
_CODES: dict[np.dtype, int] = {
  np.dtype(dtype): code for code, dtype in _DTYPES.items()
}

# Token files up to this size are digested whole, larger ones by so many blocks.
_WHOLE_BYTES = 1 << 26
_SAMPLED_BLOCKS = 4096
_BLOCK_BYTES = 1 << 12
_READ_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000


def best_dtype(vocab_size: int | None) -> np.dtype:
  """The dtype in which Megatron writes tokens below `vocab_size`."""
  small = vocab_size is not None and vocab_size < 65500
  return np.dtype(np.uint16 if small else np.int32)


class Indexed:
  """The files of a prefix, open for reading and checked.

  The tokens are mapped, not read. Sent to another process, it is opened there
  again.

  Attributes:
    prefix: of the files' names.
    dtype: of the tokens.
    sequence_lengths: int32 [S], in tokens.
    sequence_starts: int64 [S], the token at which each begins.
    document_indices: int64 [D], the sequence at which each document begins, and
      the end.
    modes: int8 [S] of a multimodal file; else None.
    tokens: all tokens, in the order of the file.
  """

  def __init__(self, prefix: str | os.PathLike):
    """Opens PREFIX.bin and PREFIX.idx.

    Args:
      prefix: path without the suffix.

    Raises:
      ValueError: a file is missing, or they are not as they must be.
    """
    self.prefix = os.fspath(prefix)
    index_file, token_file = _files(self.prefix)
    for file in (index_file, token_file):
      if not file.is_file():
        raise ValueError(
          f"{file} does not exist; give the prefix of a pair PREFIX.bin and"
          " PREFIX.idx, without the suffix"
        )
    index = _mapped(index_file)
    num_token_bytes = token_file.stat().st_size
    self.dtype, num_sequences, num_entries = _read_header(index_file, index)
    take = _Reader(index, _HEADER.size)
    self.sequence_lengths = take("<i4", num_sequences).astype(np.int32)
    pointers = take("<i8", num_sequences)
    self.document_indices = take("<i8", num_entries).astype(np.int64)
    self.modes = None
    if take.rest:
      self.modes = take("<i1", num_sequences).astype(np.int8)
    if num_sequences and self.sequence_lengths.min() < 0:
      number = int(np.argmax(self.sequence_lengths < 0))
      raise _damaged(
        index_file,
        f"sequence {number} has length {self.sequence_lengths[number]}",
      )
    starts = np.zeros(num_sequences + 1, np.int64)
    np.cumsum(self.sequence_lengths, dtype=np.int64, out=starts[1:])
    self.sequence_starts, self._num_tokens = starts[:-1], int(starts[-1])
    # Tokens are read by `sequence_starts`, so the pointers must say the same.
    wrong = pointers != self.sequence_starts * self.dtype.itemsize
    if wrong.any():
      number = int(np.argmax(wrong))
      raise _damaged(
        index_file,
        f"sequence {number} should begin at byte"
        f" {self.sequence_starts[number] * self.dtype.itemsize} of the token"
        f" file, where the one before ends, but begins at {pointers[number]}",
      )
    self._check_documents(index_file)
    if self._num_tokens * self.dtype.itemsize != num_token_bytes:
      raise _damaged(
        token_file,
        f"it has {num_token_bytes} bytes, but {index_file.name} describes"
        f" {self._num_tokens} tokens of {self.dtype.itemsize} bytes,"
        f" {self._num_tokens * self.dtype.itemsize} in all",
      )
    if self._num_tokens:
      dtype = self.dtype.newbyteorder("<")
      self.tokens = np.memmap(token_file, dtype, mode="r")
    else:
      self.tokens = np.empty(0, self.dtype)
    self._index_digest = hashlib.sha256(index).digest()

  @property
  def num_sequences(self) -> int:
    return len(self.sequence_lengths)

  @property
  def num_documents(self) -> int:
    return len(self.document_indices) - 1

  @property
  def num_tokens(self) -> int:
    return self._num_tokens

  @functools.cached_property
  def document_lengths(self) -> np.ndarray:
    """int64 tokens of each document."""
    starts = np.append(self.sequence_starts, self._num_tokens)
    return np.diff(starts[self.document_indices])

  @functools.cached_property
  def fingerprint(self) -> str:
    """Changes when the files do: sha256, in hexadecimal.

    Of PREFIX.idx whole; of PREFIX.bin the size and, up to 64 MiB, all of it, of
    larger ones 4,096 blocks of 4 KiB, evenly spaced, the first and the last
    among them: a file written anew is told, a few changed bytes may not be.
    The digest is noted in the cache for as long as the file keeps its times.
    """
    file = _files(self.prefix)[1]
    stat = file.stat()
    newest = max(stat.st_mtime_ns, stat.st_ctime_ns)
    key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {newest}"
    name = hashlib.sha256(key.encode() + self._index_digest).hexdigest()
    note = storage.cache_dir() / "fingerprints" / f"{name}.json"
    known = storage.read_note(note)
    if known:
      return known["fingerprint"]
    digest = hashlib.sha256(self._index_digest)
    digest.update(struct.pack("<Q", stat.st_size))
    # Read, not mapped: pages of a mapping count as memory of the process.
    with file.open("rb") as tokens:
      for start, stop in _digested(stat.st_size):
        tokens.seek(start)
        digest.update(tokens.read(stop - start))
    fingerprint = digest.hexdigest()
    # Times of files are coarse: one that is being written could keep them.
    if time.time_ns() - newest > _SETTLED_NS:
      storage.write_note(note, {"fingerprint": fingerprint})
    return fingerprint

  def _check_documents(self, file: pathlib.Path) -> None:
    indices = self.document_indices
    if indices[0] != 0 or indices[-1] != self.num_sequences:
      raise _damaged(
        file,
        f"the documents span the sequences [{indices[0]}, {indices[-1]}), not"
        f" [0, {self.num_sequences})",
      )
    falls = np.diff(indices) < 0
    if falls.any():
      number = int(np.argmax(falls))
      raise _damaged(
        file,
        f"document {number} begins at sequence {indices[number]} and ends"
        f" before it, at {indices[number + 1]}",
      )

  def __reduce__(self):
    return _open_again, (self.prefix, self._index_digest)


class Writer:
  """Writes PREFIX.bin and PREFIX.idx, as Megatron's own tools do.

  Under other names until `close`: there is never a pair that is not whole. As a
  context manager it closes at the end, and leaves nothing after an error.

  Args:
    prefix: path without the suffix; its folder is made.
    dtype: of the tokens; see `best_dtype`.
    multimodal: every sequence has a mode.
  """

  def __init__(
    self,
    prefix: str | os.PathLike,
    dtype: np.typing.DTypeLike,
    *,
    multimodal: bool = False,
  ):
    self._dtype: np.dtype[typing.Any] = np.dtype(dtype)
    if self._dtype not in _CODES or self._dtype.kind == "f":
      names = [d.name for d in _CODES if d.kind != "f"]
      raise ValueError(
        f"dtype is {self._dtype}; token files have one of {', '.join(names)}"
      )
    self._multimodal = multimodal
    self._index_file, self._token_file = _files(os.fspath(prefix))
    self._index_file.parent.mkdir(parents=True, exist_ok=True)
    self._partial = [
      file.with_name(f"{file.name}.partial.{os.getpid()}")
      for file in (self._index_file, self._token_file)
    ]
    self._lengths: list[int] = []
    self._documents = [0]
    self._modes: list[int] = []
    self._out = self._partial[1].open("wb")

  def add_document(
    self,
    sequences: collections.abc.Sequence[np.typing.ArrayLike],
    *,
    modes: collections.abc.Sequence[int] | None = None,
  ) -> None:
    """Adds a document.

    Args:
      sequences: the tokens of each of its sequences; none is a document too.
      modes: of each sequence, in a multimodal file.

    Raises:
      ValueError: a token does not fit the dtype, or a mode is missing.
    """
    if self._multimodal != (modes is not None):
      raise ValueError("modes must be given if multimodal, and only then")
    if modes is not None and len(modes) != len(sequences):
      raise ValueError(
        f"there are {len(modes)} modes of {len(sequences)} sequences"
      )
    # First all checks: what is refused leaves nothing behind.
    parts = [self._tokens(sequence) for sequence in sequences]
    for part in parts:
      self._out.write(part.tobytes())
      self._lengths.append(len(part))
    self._modes.extend(modes or ())
    self._documents.append(len(self._lengths))

  def close(self) -> None:
    """Writes the index and gives the files their names."""
    self._sync(self._out)
    lengths = np.array(self._lengths, np.int64)
    pointers = (np.cumsum(lengths) - lengths) * self._dtype.itemsize
    with open(self._partial[0], "wb") as out:
      out.write(
        _HEADER.pack(
          _MAGIC,
          _VERSION,
          _CODES[self._dtype],
          len(lengths),
          len(self._documents),
        )
      )
      out.write(lengths.astype("<i4").tobytes())
      out.write(pointers.astype("<i8").tobytes())
      out.write(np.array(self._documents, "<i8").tobytes())
      out.write(np.array(self._modes, "<i1").tobytes())
      self._sync(out)
    # Without an index the pair is none, so the index goes first and comes last.
    self._index_file.unlink(missing_ok=True)
    os.replace(self._partial[1], self._token_file)
    os.replace(self._partial[0], self._index_file)

  def discard(self) -> None:
    """Ends without writing anything."""
    self._out.close()
    for file in self._partial:
      file.unlink(missing_ok=True)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if kind is None:
      self.close()
    else:
      self.discard()

  def _tokens(self, sequence: np.typing.ArrayLike) -> np.ndarray:
    tokens = np.asarray(sequence)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
      raise ValueError(
        f"a sequence has shape {tokens.shape} and dtype {tokens.dtype}; it must"
        " be a row of whole numbers"
      )
    if len(tokens) > np.iinfo(np.int32).max:
      raise ValueError(
        f"a sequence has {len(tokens)} tokens; the format holds 2**31 - 1, so"
        " divide the document"
      )
    limits = np.iinfo(self._dtype)
    if tokens.size and tokens.dtype != self._dtype:
      low, high = int(tokens.min()), int(tokens.max())
      if low < limits.min or high > limits.max:
        raise ValueError(
          f"a token is {low if low < limits.min else high}, outside of"
          f" {self._dtype}; write the file in a larger dtype"
        )
    return tokens.astype(self._dtype.newbyteorder("<"))

  @staticmethod
  def _sync(out) -> None:
    out.flush()
    os.fsync(out.fileno())
    out.close()


class _Reader:
  """Arrays one after another out of bytes."""

  def __init__(self, data: bytes | mmap.mmap, offset: int):
    self._data = data
    self._offset = offset

  @property
  def rest(self) -> int:
    return len(self._data) - self._offset

  def __call__(self, dtype: str, count: int) -> np.ndarray:
    array = np.frombuffer(self._data, dtype, count, self._offset)
    self._offset += array.nbytes
    return array


def _mapped(file: pathlib.Path) -> bytes | mmap.mmap:
  """The content; of a large index, only the tables are kept in memory."""
  with open(file, "rb") as opened:
    if not os.fstat(opened.fileno()).st_size:
      return b""  # Which cannot be mapped.
    return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _read_header(
  file: pathlib.Path, index: bytes | mmap.mmap
) -> tuple[np.dtype, int, int]:
  """dtype, S and D."""
  if len(index) < _HEADER.size:
    raise _damaged(
      file,
      f"it has {len(index)} bytes, fewer than the {_HEADER.size} of a head",
    )
  magic, version, code, num_sequences, num_entries = _HEADER.unpack_from(index)
  if magic != _MAGIC:
    raise _damaged(file, f"it begins with {magic!r}, not with {_MAGIC!r}")
  if version != _VERSION:
    raise _damaged(file, f"it has version {version}, not {_VERSION}")
  if code not in _DTYPES:
    raise _damaged(file, f"it has the dtype code {code}, which does not exist")
  dtype = np.dtype(_DTYPES[code])
  if dtype.kind == "f":
    raise ValueError(
      f"{file} describes numbers of {dtype}, which are no tokens; give a file"
      " of whole numbers"
    )
  if not num_entries:
    raise _damaged(
      file, "its table of documents has no entry, not even the end"
    )
  size = _HEADER.size + 12 * num_sequences + 8 * num_entries
  if len(index) not in (size, size + num_sequences):
    raise _damaged(
      file,
      f"it has {len(index)} bytes, but {num_sequences} sequences and"
      f" {num_entries - 1} documents take {size} (with modes"
      f" {size + num_sequences})",
    )
  return dtype, num_sequences, num_entries


def _damaged(file: pathlib.Path, what: str) -> ValueError:
  return ValueError(
    f"{file} is damaged: {what}; copy both files of the pair again, or write"
    " them anew"
  )


def _files(prefix: str) -> tuple[pathlib.Path, pathlib.Path]:
  """PREFIX.idx and PREFIX.bin."""
  return pathlib.Path(prefix + ".idx"), pathlib.Path(prefix + ".bin")


def _digested(size: int) -> collections.abc.Iterator[tuple[int, int]]:
  """The parts (first byte, end) of a token file that are digested."""
  if size <= _WHOLE_BYTES:
    for start in range(0, size, _READ_BYTES):
      yield start, min(start + _READ_BYTES, size)
    return
  last = size - _BLOCK_BYTES
  for number in range(_SAMPLED_BLOCKS):
    start = last * number // (_SAMPLED_BLOCKS - 1)
    yield start, start + _BLOCK_BYTES


def _open_again(prefix: str, index_digest: bytes) -> Indexed:
  opened = Indexed(prefix)
  if opened._index_digest != index_digest:
    raise ValueError(
      f"{prefix}.idx changed while it was in use; start the run again"
    )
  return opened
