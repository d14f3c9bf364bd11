"""Text files to a tokenized dataset (`data/manifest.py` is its layout).

The input is cut into shards by bytes, before anything is read, so the output
does not depend on who makes them. Every shard is made on its own, by a function
of its part of the input, and noted when it is whole: a run that was stopped, at
any point, does only the shards that are not. Documents are in the order of
files and rows, whatever the order in which shards were made.
"""

import collections.abc
import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import Any

from array_record.python import array_record_module
import numpy as np

from data import directory_lock
from data import documents
from data import manifest
from data import screening
from data import tokenizer as tokenizer_lib
from data import worker_pool

_JOB = "job.json"
_LOCK = ".lock"
_BATCH_DOCUMENTS = 256
_BATCH_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How to tokenize.

  Attributes:
    format: of the input files.
    field: JSONL field or Parquet column with the text.
    num_shards: files to make; also the most workers that can be used.
    record_tokens: tokens in a record, at most. A reader reads whole records.
    verify: decode every document again and compare it with its text.
    num_workers: processes; 1 makes the shards in this one.
    note_empty: write PART.empty.npy, before which document each one without
      text was; for Megatron, which keeps them.
    screen: which documents are left out.
  """

  format: documents.Format = documents.Format.AUTO
  field: str = "text"
  num_shards: int = 8
  record_tokens: int = 8192
  verify: bool = True
  num_workers: int = 1
  note_empty: bool = False
  screen: screening.Screen = screening.Screen()

  def __post_init__(self):
    for field in ("num_shards", "record_tokens", "num_workers"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field} is {getattr(self, field)}; it must be >= 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
  """All that a worker needs to make one shard."""

  name: str
  output: pathlib.Path
  spans: list[documents.Span]
  tokenizer: str
  options: Options

  @property
  def size(self) -> int:
    """Bytes of the input."""
    return sum(span.stop - span.start for span in self.spans)

  @property
  def field(self) -> str:
    return self.options.field

  @property
  def screen(self) -> screening.Screen:
    return self.options.screen


def run(
  inputs: collections.abc.Sequence[str | pathlib.Path],
  output: str | pathlib.Path,
  *,
  tokenizer: str | pathlib.Path,
  options: Options,
  runner: worker_pool.Runner | None = None,
) -> manifest.Manifest:
  """Tokenizes files into the directory `output`, or finishes doing so.

  Args:
    inputs: files, and directories of files.
    output: directory of the dataset. One that is whole already is left as is.
    tokenizer: tokenizer.json or the folder with it.
    options: how.
    runner: makes the shards, instead of `options.num_workers` processes.

  Returns:
    The manifest of the whole dataset.

  Raises:
    ValueError: the input is missing, empty or malformed, or the output cannot
      be written or belongs to another input, tokenizer or option.
  """
  output = pathlib.Path(output)
  runner = runner or worker_pool.Pool(num_workers=options.num_workers)
  files = documents.find(inputs)
  documents.check(files, format=options.format, field=options.field)
  loaded = tokenizer_lib.Tokenizer.load(tokenizer)
  with directory_lock.hold(output):
    _claim(output, files, loaded.fingerprint, options)
    if (output / manifest.FILE).is_file():
      return manifest.load(output)
    runs = documents.split(
      files, format=options.format, parts=options.num_shards
    )
    tasks = [
      _Task(
        name=f"shard-{index:05d}-of-{len(runs):05d}",
        output=output,
        spans=spans,
        tokenizer=str(tokenizer),
        options=options,
      )
      for index, spans in enumerate(runs)
    ]
    screened = {}
    if options.screen.is_on:
      found = screening.run(tasks, runner=runner)
      if not found.num_kept:
        screening.clean(tasks)  # Other options may be tried at once.
        raise ValueError(_no_document(inputs, found.dropped))
      screened = options.screen.identity() | dataclasses.asdict(found)
    result = manifest.Manifest(
      tokenizer=loaded.fingerprint,
      vocab_size=loaded.vocab_size,
      eos_id=loaded.eos_id,
      dtype=_dtype(loaded).name,
      record_tokens=options.record_tokens,
      shards=tuple(_make_shards(tasks, runner)),
      screening=screened,
    )
    if not result.num_documents:
      raise ValueError(_no_document(inputs, {}))
    result.save(output)
    for task in tasks:
      _note(task).unlink()
    screening.clean(tasks)
    worker_pool.remove_attempts(output)
  return result


def _no_document(
  inputs: collections.abc.Sequence[str | pathlib.Path], dropped: dict[str, int]
) -> str:
  names = ", ".join(map(str, inputs))
  if not dropped:
    return f"input {names} has no document with text; give other files or field"
  reasons = ", ".join(
    f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped.items()
  )
  return f"input {names} has no document left ({reasons}); leave out fewer"


def _claim(
  output: pathlib.Path, files: list[str], fingerprint: str, options: Options
) -> None:
  """Notes what `output` is made from, or checks it against what was noted."""
  job: dict[str, Any] = {
    "tokenizer": fingerprint,
    "input": [[_absolute(file), *documents.version_of(file)] for file in files],
    "format": options.format.value,
    "field": options.field,
    "num_shards": options.num_shards,
    "record_tokens": options.record_tokens,
  }
  if options.screen.is_on:
    job["screen"] = options.screen.identity()
  if options.note_empty:
    job["note_empty"] = True
  file = output / _JOB
  if not file.is_file():
    if (output / manifest.FILE).is_file():
      raise ValueError(
        f"output {str(output)!r} has a {manifest.FILE} but no {_JOB}, so what"
        " it was made from is not known; choose another output"
      )
    manifest.write_atomically(file, json.dumps(job, indent=1) + "\n")
    return
  known = json.loads(file.read_text(encoding="utf-8"))
  fields = dict.fromkeys([*job, *known])
  changed = [field for field in fields if job.get(field) != known.get(field)]
  if not changed:
    return
  made = {entry.name for entry in output.iterdir()} - {_JOB, _LOCK}
  if made:
    raise ValueError(
      f"output {str(output)!r} was made with another {', '.join(changed)};"
      " remove that directory or choose another output"
    )
  # An earlier run made nothing of it: its options were wrong, say.
  manifest.write_atomically(file, json.dumps(job, indent=1) + "\n")


def _absolute(file: str) -> str:
  if documents.is_remote(file):
    return file
  return str(pathlib.Path(file).absolute())


def _make_shards(
  tasks: list[_Task], runner: worker_pool.Runner
) -> list[manifest.Shard]:
  """Has the missing shards made; all shards, in order."""
  missing = [task for task in tasks if _finished(task) is None]
  size = sum(task.size for task in tasks)
  if missing:
    runner(
      _make_shard,
      missing,
      label="Tokenizing " + "/".join(tasks[0].output.parts[-2:]),
      bytes_done=size - sum(task.size for task in missing),
    )
  worker_pool.check_made(map(_note, missing))
  return [_read_note(task) for task in tasks]


def _make_shard(task: _Task) -> None:
  """Writes the files of a shard, and the note that they are whole."""
  note = _note(task).name
  with worker_pool.attempt(task.output, name=task.name, note=note) as folder:
    shard = _write_shard(task, folder)
    content = json.dumps(dataclasses.asdict(shard))
    manifest.write_atomically(folder / note, content)


def _write_shard(task: _Task, folder: pathlib.Path) -> manifest.Shard:
  tokenizer = tokenizer_lib.Tokenizer.load(task.tokenizer)
  dtype = _dtype(tokenizer)
  records_file = folder / f"{task.name}.array_record"
  writer = array_record_module.ArrayRecordWriter(
    str(records_file), "group_size:1"
  )
  digest = hashlib.sha256()
  lengths: list[int] = []
  empty: list[int] = []
  num_bytes = 0
  for batch in _batches(task):
    texts = []
    for document in batch:
      if document.text:
        texts.append(document.text)
      else:
        empty.append(len(lengths) + len(texts))
    num_bytes += sum(len(text.encode()) for text in texts)
    encoded = tokenizer.encode_batch(texts)
    if task.options.verify:
      _verify(tokenizer, batch, encoded)
    for ids in encoded:
      tokens = np.array([*ids, tokenizer.eos_id], dtype)
      lengths.append(len(tokens))
      digest.update(tokens)
      for start in range(0, len(tokens), task.options.record_tokens):
        record = tokens[start : start + task.options.record_tokens]
        writer.write(record.tobytes())
  writer.close()
  documents_file = folder / f"{task.name}.documents.npy"
  np.save(documents_file, np.array(lengths, np.int64), allow_pickle=False)
  if task.options.note_empty:
    np.save(empty_file(folder, task.name), np.array(empty, np.int64))
  return manifest.Shard(
    name=task.name,
    num_documents=len(lengths),
    num_empty=len(empty),
    num_tokens=sum(lengths),
    num_bytes=num_bytes,
    tokens_sha256=digest.hexdigest(),
    records_size=records_file.stat().st_size,
    records_sha256=manifest.sha256(records_file),
    documents_size=documents_file.stat().st_size,
    documents_sha256=manifest.sha256(documents_file),
    num_dropped=screening.dropped(task) if task.screen.is_on else 0,
  )


def _batches(
  task: _Task,
) -> collections.abc.Iterator[list[documents.Document]]:
  """The documents of a shard, some at a time; counts what is read."""
  batch: list[documents.Document] = []
  num_bytes = 0
  found = itertools.chain.from_iterable(
    documents.read(span, field=task.options.field) for span in task.spans
  )
  if task.screen.is_on:
    found = _kept(found, task)
  for document in found:
    batch.append(document)
    num_bytes += len(document.text.encode())
    if len(batch) == _BATCH_DOCUMENTS or num_bytes > _BATCH_BYTES:
      yield batch
      worker_pool.report(num_bytes)
      batch, num_bytes = [], 0
  yield batch


def _kept(
  found: collections.abc.Iterable[documents.Document], task: _Task
) -> collections.abc.Iterator[documents.Document]:
  """The documents that are not left out."""
  for document, kept in zip(found, screening.kept(task), strict=True):
    if kept:
      yield document


def _verify(
  tokenizer: tokenizer_lib.Tokenizer,
  batch: list[documents.Document],
  encoded: list[list[int]],
) -> None:
  written = [document for document in batch if document.text]
  decoded = tokenizer.decode_batch(encoded)
  for document, text in zip(written, decoded, strict=True):
    if document.text != text:
      pairs = enumerate(zip(document.text, text, strict=False))
      shorter = min(len(document.text), len(text))
      at = next((i for i, (a, b) in pairs if a != b), shorter)
      raise ValueError(
        f"{document.origin}: the tokens decode to another text, from character"
        f" {at}: {document.text[at : at + 20]!r} became {text[at : at + 20]!r};"
        " use a tokenizer that keeps every byte, or accept its changes with"
        " --noverify"
      )


def _finished(task: _Task) -> manifest.Shard | None:
  """The shard, if an earlier run finished it and its files are still good."""
  if not _note(task).is_file():
    return None
  shard = _read_note(task)
  return None if shard.damage(task.output, digests=True) else shard


def empty_file(output: pathlib.Path, name: str) -> pathlib.Path:
  """Where a shard notes its documents without text."""
  return output / f"{name}.empty.npy"


def _read_note(task: _Task) -> manifest.Shard:
  return manifest.Shard(**json.loads(_note(task).read_text(encoding="utf-8")))


def _note(task: _Task) -> pathlib.Path:
  return task.output / f"{task.name}.json"


def _dtype(tokenizer: tokenizer_lib.Tokenizer) -> np.dtype:
  return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
