"""A tokenized dataset on disk, read at any place of its token stream."""

import pathlib

from array_record.python import array_record_module
import numpy as np

from data import manifest as manifest_lib
from data import ragged

# The defaults read 16 MiB ahead on several threads, for sequential readers.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class ArrayRecordSource:
  """The token stream of a dataset: its documents one after another.

  Opening checks the manifest and the sizes of all files; `verify` also reads
  them whole. Readers are opened on first use in each process, so the source can
  be sent to another one.

  Attributes:
    manifest: what the dataset says of itself.
    document_lengths: int64 tokens of every document, its eos included.
  """

  def __init__(self, directory: str | pathlib.Path, *, verify: bool = False):
    """Opens a dataset.

    Args:
      directory: written by `data/tokenization.py`.
      verify: compare the sha256 of every file with the manifest.

    Raises:
      ValueError: it is missing, unfinished, damaged or has no tokens.
    """
    self._directory = pathlib.Path(directory)
    self.manifest = manifest_lib.load(directory)
    for shard in self.manifest.shards:
      damage = shard.damage(self._directory, digests=verify)
      if damage:
        raise ValueError(
          f"dataset {str(directory)!r} is damaged: {damage}; restore the file,"
          " or remove the directory and run //tools/tokenize again"
        )
    if np.iinfo(self.manifest.dtype).max < self.manifest.vocab_size - 1:
      raise ValueError(
        f"dataset {str(directory)!r} is damaged: its manifest has the dtype"
        f" {self.manifest.dtype}, which cannot hold its"
        f" {self.manifest.vocab_size} ids; run //tools/tokenize again"
      )
    if not self.manifest.num_tokens:
      raise ValueError(f"dataset {str(directory)!r} is empty; tokenize text")
    lengths = [self._lengths(shard) for shard in self.manifest.shards]
    self.document_lengths = np.concatenate(lengths)
    # Where each record, and each shard's first record, is in the stream.
    record_tokens = self.manifest.record_tokens
    records = [_record_lengths(part, record_tokens) for part in lengths]
    self._record_starts = ragged.running_sum(np.concatenate(records))
    self._shard_starts = ragged.running_sum([len(part) for part in records])
    self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

  @property
  def num_tokens(self) -> int:
    return self.manifest.num_tokens

  @property
  def num_documents(self) -> int:
    return self.manifest.num_documents

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the stream, in the dataset's dtype.

    Raises:
      ValueError: the range is outside the stream, or a record is damaged.
    """
    if not 0 <= start <= stop <= self.num_tokens:
      raise ValueError(
        f"[{start}, {stop}) is outside [0, {self.num_tokens}), the tokens of"
        f" {self._directory}"
      )
    if start == stop:
      return np.empty(0, self.manifest.dtype)
    starts = self._record_starts
    first = int(np.searchsorted(starts, start, "right")) - 1
    last = int(np.searchsorted(starts, stop, "left"))
    tokens = [self._record(record) for record in range(first, last)]
    joined = tokens[0] if len(tokens) == 1 else np.concatenate(tokens)
    offset = start - int(starts[first])
    return joined[offset : offset + stop - start]

  def _record(self, record: int) -> np.ndarray:
    index = int(np.searchsorted(self._shard_starts, record, "right")) - 1
    within = record - int(self._shard_starts[index])
    shard = self.manifest.shards[index]
    file = self._directory / shard.records_file
    try:
      if index not in self._readers:
        self._readers[index] = array_record_module.ArrayRecordReader(
          str(file), _RANDOM_ACCESS
        )
      (data,) = self._readers[index].read([within])
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise ValueError(
        f"{file}: record {within} cannot be read ({error}); {_FIX}"
      ) from error
    tokens = np.frombuffer(
      data, np.dtype(self.manifest.dtype).newbyteorder("<")
    )
    expected = int(np.diff(self._record_starts[record : record + 2])[0])
    if len(tokens) != expected:
      raise ValueError(
        f"{file}: record {within} has {len(tokens)} tokens, not {expected};"
        f" {_FIX}"
      )
    return tokens

  def _lengths(self, shard: manifest_lib.Shard) -> np.ndarray:
    file = self._directory / shard.documents_file
    try:
      lengths = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
      raise ValueError(f"{file} cannot be read ({error}); {_FIX}") from error
    if (len(lengths), lengths.sum()) != (shard.num_documents, shard.num_tokens):
      raise ValueError(f"{file} does not agree with the manifest; {_FIX}")
    return lengths

  def __getstate__(self):
    return {**self.__dict__, "_readers": {}}


_FIX = (
  "restore the file, or remove the directory and run //tools/tokenize again"
)


def _record_lengths(documents: np.ndarray, record_tokens: int) -> np.ndarray:
  """Lengths of the records that documents of these lengths are cut into."""
  counts = -(-documents // record_tokens)
  lengths = np.full(counts.sum(), record_tokens, np.int64)
  lengths[np.cumsum(counts) - 1] = documents - (counts - 1) * record_tokens
  return lengths
