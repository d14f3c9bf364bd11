"""Text files to Megatron's PREFIX.bin and PREFIX.idx.

Made as a dataset of shards first (`data/tokenization.py`), which is then joined
into one pair: equal to what Megatron's tools/preprocess_data.py writes with
--append-eod. A document is one sequence; one without text has none.

    PREFIX.bin, PREFIX.idx   the tokens
    PREFIX.json              counts, digests; written last: the pair is whole
    PREFIX.job/              what it was made from, to go on or to refuse
"""

import collections.abc
import dataclasses
import json
import pathlib

import numpy as np
import tqdm

from data import directory_lock
from data import indexed
from data import manifest
from data import tokenization
from data import worker_pool
from data.sources import array_record

_BLOCK_TOKENS = 1 << 22


def prefix_of(output: str | pathlib.Path, field: str) -> pathlib.Path:
  """The prefix that Megatron gives the files of --output-prefix."""
  output = pathlib.Path(output)
  return output.with_name(f"{output.name}_{field}_document")


def run(
  inputs: collections.abc.Sequence[str | pathlib.Path],
  prefix: str | pathlib.Path,
  *,
  tokenizer: str | pathlib.Path,
  options: tokenization.Options,
  runner: worker_pool.Runner | None = None,
) -> manifest.Manifest:
  """Tokenizes files into PREFIX.bin and PREFIX.idx, or finishes doing so.

  Args:
    inputs: as of `tokenization.run`.
    prefix: of the two files. A pair that is whole already is left as is.
    tokenizer: the same.
    options: the same.
    runner: the same.

  Returns:
    The manifest of the shards that were joined.

  Raises:
    ValueError: as of `tokenization.run`.
  """
  prefix = pathlib.Path(prefix)
  folder = prefix.with_name(prefix.name + ".job")
  result = tokenization.run(
    inputs,
    folder,
    tokenizer=tokenizer,
    options=dataclasses.replace(options, note_empty=True),
    runner=runner,
  )
  with directory_lock.hold(folder):
    if not _is_whole(prefix):
      _join(folder, prefix, result)
    for shard in result.shards:
      for file in (
        folder / shard.records_file,
        folder / shard.documents_file,
        tokenization.empty_file(folder, shard.name),
      ):
        file.unlink(missing_ok=True)
  return result


def _join(
  folder: pathlib.Path, prefix: pathlib.Path, made: manifest.Manifest
) -> None:
  """Writes the pair from the shards, and the note that it is whole."""
  try:
    source = array_record.ArrayRecordSource(folder, verify=True)
  except ValueError as error:
    raise ValueError(
      f"{prefix}.bin or .idx was removed or changed since it was made; remove"
      f" {folder} too and run the same command again"
    ) from error
  _note(prefix).unlink(missing_ok=True)
  dtype = indexed.best_dtype(made.vocab_size)
  with (
    indexed.Writer(prefix, dtype) as writer,
    tqdm.tqdm(
      total=made.num_tokens, desc=f"Writing {prefix.name}", unit=" tokens"
    ) as bar,
  ):
    empty = _documents_before_empty(folder, made)
    number = next_empty = 0
    for tokens, lengths in _blocks(source):
      begin = 0
      for length in lengths.tolist():
        while next_empty < len(empty) and empty[next_empty] == number:
          writer.add_document([])
          next_empty += 1
        writer.add_document([tokens[begin : begin + length]])
        begin += length
        number += 1
      bar.update(len(tokens))
    for _ in empty[next_empty:]:
      writer.add_document([])
  files = {
    suffix: {
      "size": file.stat().st_size,
      "sha256": manifest.sha256(file),
    }
    for suffix, file in _files(prefix).items()
  }
  content = {
    "format": "megatron",
    "files": files,
    "tokenizer": made.tokenizer,
    "vocab_size": made.vocab_size,
    "eos_id": made.eos_id,
    "dtype": dtype.name,
    "num_documents": made.num_documents + len(empty),
    "num_empty": len(empty),
    "num_tokens": made.num_tokens,
    "num_bytes": made.num_bytes,
    "screening": made.screening,
  }
  text = json.dumps(content, indent=1) + "\n"
  manifest.write_atomically(_note(prefix), text)


def _blocks(
  source: array_record.ArrayRecordSource,
) -> collections.abc.Iterator[tuple[np.ndarray, np.ndarray]]:
  """(tokens, document lengths) of some documents at a time."""
  ends = np.cumsum(source.document_lengths)
  first = start = 0
  while first < len(ends):
    last = int(np.searchsorted(ends, start + _BLOCK_TOKENS, "right"))
    last = max(last, first + 1)
    stop = int(ends[last - 1])
    yield source.read(start, stop), source.document_lengths[first:last]
    first, start = last, stop


def _documents_before_empty(
  folder: pathlib.Path, made: manifest.Manifest
) -> list[int]:
  """How many documents with text are before each one without."""
  counts: list[int] = []
  first = 0
  for shard in made.shards:
    file = tokenization.empty_file(folder, shard.name)
    counts += (first + np.load(file, allow_pickle=False)).tolist()
    first += shard.num_documents
  return counts


def _is_whole(prefix: pathlib.Path) -> bool:
  """Whether the pair is there, with the digests that were noted."""
  if not _note(prefix).is_file():
    return False
  files = json.loads(_note(prefix).read_text(encoding="utf-8"))["files"]
  return all(
    file.is_file()
    and file.stat().st_size == files[suffix]["size"]
    and manifest.sha256(file) == files[suffix]["sha256"]
    for suffix, file in _files(prefix).items()
  )


def _files(prefix: pathlib.Path) -> dict[str, pathlib.Path]:
  return {
    suffix: prefix.with_name(f"{prefix.name}.{suffix}")
    for suffix in ("bin", "idx")
  }


def _note(prefix: pathlib.Path) -> pathlib.Path:
  return prefix.with_name(prefix.name + ".json")
