"""Text files as tokens: tokenized on first use, into the cache folder.

The dataset has the name of all that decides its tokens: the content of the
files (the version of remote ones), the tokenizer and how the text is taken. So
a changed file makes another dataset, and a moved or copied one does not. One
process of a machine makes it, and others wait.
"""

import collections.abc
import hashlib
import json
import os
import pathlib
import shutil

from data import directory_lock
from data import documents
from data import manifest
from data import tokenization
from data import tokenizer as tokenizer_lib
from data.sources import storage

# Raised when the same text gives another dataset.
_VERSION = 1
_FORMATS = {
  "jsonl": documents.Format.JSONL,
  "parquet": documents.Format.PARQUET,
  "arrow": documents.Format.ARROW,
  "text": documents.Format.TEXT,
}
FORMATS = tuple(_FORMATS)
# Shards may not depend on the machine; a process starts in half a second.
_SHARD_BYTES = 1 << 24
_MOST_SHARDS = 512


def prepare(
  files: collections.abc.Sequence[storage.File],
  *,
  format: str,
  field: str,
  tokenizer: str | pathlib.Path,
) -> pathlib.Path:
  """The dataset of the files' text; made now if need be.

  Args:
    files: in their order.
    format: one of FORMATS.
    field: with the text, in files of rows.
    tokenizer: tokenizer.json or the folder with it.

  Returns:
    A directory for `data.sources.array_record`.

  Raises:
    ValueError: a file is not what the format says, or has no text.
  """
  loaded = tokenizer_lib.Tokenizer.load(tokenizer)
  content = [_VERSION, loaded.fingerprint, loaded.eos_id, format]
  content += [field if format != "text" else ""]
  keys = [storage.content_key(file) for file in files]
  content += keys
  key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
  dataset = storage.cache_dir() / "tokenized" / key
  if (dataset / manifest.FILE).is_file():
    return dataset
  work = dataset.with_name(f"{key}.work")
  with directory_lock.hold(work):
    if (dataset / manifest.FILE).is_file():
      return dataset
    with storage.read_in_place(files) as places:
      output = _tokenize(files, places, work, format, field, tokenizer)
    for file, before in zip(files, keys, strict=True):
      if storage.content_key(file) != before:
        raise ValueError(
          f"{file.name} changed while it was read; start again when nobody"
          " writes it"
        )
    output.replace(dataset)
    # The folder holds the lock; what else is in it is of no use any more.
    for rest in work.iterdir():
      if rest.is_dir():
        shutil.rmtree(rest)
  return dataset


def _tokenize(
  files: collections.abc.Sequence[storage.File],
  places: list[str],
  work: pathlib.Path,
  format: str,
  field: str,
  tokenizer: str | pathlib.Path,
) -> pathlib.Path:
  """Makes the dataset, in a folder in `work`."""
  sizes = map(documents.size_of, places)
  num_shards = min(max(sum(sizes) // _SHARD_BYTES, 1), _MOST_SHARDS)
  # An interrupted run goes on, unless the files have been moved since.
  state = [[place, documents.version_of(place)] for place in places]
  state = hashlib.sha256(json.dumps(state).encode()).hexdigest()
  # The progress bar shows this name.
  output = work / f"{pathlib.PurePath(files[0].name).name}-{state[:8]}"
  try:
    tokenization.run(
      places,
      output,
      tokenizer=tokenizer,
      options=tokenization.Options(
        format=_FORMATS[format],
        field=field,
        num_shards=num_shards,
        num_workers=min(os.cpu_count() or 1, num_shards),
      ),
    )
  except ValueError as error:
    raise ValueError(_explained(str(error), places, files)) from error
  return output


def _explained(
  message: str,
  places: collections.abc.Sequence[str],
  files: collections.abc.Sequence[storage.File],
) -> str:
  """A message of the tokenizer's program in the words of a config."""
  for place, file in zip(places, files, strict=True):
    message = message.replace(place, file.name)
  return (
    message.replace("--field", "its field")
    .replace("--format", "its format")
    .replace("with --noverify", "by //tools/tokenize --noverify")
  )
