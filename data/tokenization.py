"""Text files to a tokenized dataset (`data/manifest.py` is its layout).

The input is cut into shards by bytes, before anything is read, so the output
does not depend on the number of workers. Every shard is made on its own, by one
process, and noted when it is whole: a run that was stopped, at any point, does
only the shards that are not.
"""

import collections.abc
import concurrent.futures
from concurrent.futures import process
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib

from array_record.python import array_record_module
import numpy as np
import tqdm

from data import directory_lock
from data import documents
from data import manifest
from data import tokenizer as tokenizer_lib

_JOB = "job.json"
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
  """

  format: documents.Format = documents.Format.AUTO
  field: str = "text"
  num_shards: int = 8
  record_tokens: int = 8192
  verify: bool = True
  num_workers: int = 1

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


def run(
  inputs: collections.abc.Sequence[str | pathlib.Path],
  output: str | pathlib.Path,
  *,
  tokenizer: str | pathlib.Path,
  options: Options,
) -> manifest.Manifest:
  """Tokenizes files into the directory `output`, or finishes doing so.

  Args:
    inputs: files, and directories of files.
    output: directory of the dataset. One that is whole already is left as is.
    tokenizer: tokenizer.json or the folder with it.
    options: how.

  Returns:
    The manifest of the whole dataset.

  Raises:
    ValueError: the input is missing, empty or malformed, or the output cannot
      be written or belongs to another input, tokenizer or option.
  """
  output = pathlib.Path(output)
  files = documents.find(inputs)
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
    result = manifest.Manifest(
      tokenizer=loaded.fingerprint,
      vocab_size=loaded.vocab_size,
      eos_id=loaded.eos_id,
      dtype=_dtype(loaded).name,
      record_tokens=options.record_tokens,
      shards=tuple(_make_shards(tasks, options.num_workers)),
    )
    if not result.num_documents:
      raise ValueError(
        f"input {', '.join(map(str, inputs))} has no document with text"
      )
    result.save(output)
    for task in tasks:
      _note(task).unlink()
  return result


def _claim(
  output: pathlib.Path, files: list[str], fingerprint: str, options: Options
) -> None:
  """Notes what `output` is made from, or checks it against what was noted."""
  stats = [pathlib.Path(file).stat() for file in files]
  job = {
    "tokenizer": fingerprint,
    "input": [
      [str(pathlib.Path(file).absolute()), stat.st_size, stat.st_mtime_ns]
      for file, stat in zip(files, stats, strict=True)
    ],
    "format": options.format.value,
    "field": options.field,
    "num_shards": options.num_shards,
    "record_tokens": options.record_tokens,
  }
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
  changed = [field for field in job if job[field] != known.get(field)]
  if changed:
    raise ValueError(
      f"output {str(output)!r} was made with another {', '.join(changed)};"
      " remove that directory or choose another output"
    )


def _make_shards(tasks: list[_Task], num_workers: int) -> list[manifest.Shard]:
  """Makes the missing shards, showing progress; all shards, in order."""
  finished = ((task.name, _finished(task)) for task in tasks)
  done = {name: shard for name, shard in finished if shard is not None}
  missing = [task for task in tasks if task.name not in done]
  total = sum(_size(task) for task in tasks)
  with tqdm.tqdm(
    total=total,
    initial=total - sum(_size(task) for task in missing),
    desc="Tokenizing " + "/".join(tasks[0].output.parts[-2:]),
    unit="B",
    unit_scale=True,
  ) as bar:
    if min(num_workers, len(missing)) > 1:
      done |= _make_in_workers(missing, num_workers, bar)
    else:
      for task in missing:
        done[task.name] = _make_shard(task)
        bar.update(_size(task))
    bar.update(total - bar.n)
  return [done[task.name] for task in tasks]


def _make_in_workers(
  tasks: list[_Task], num_workers: int, bar: tqdm.tqdm
) -> dict[str, manifest.Shard]:
  """Makes the shards, each in one of the processes; by name."""
  context = multiprocessing.get_context("spawn")
  bytes_read = context.Value("q", 0)
  start = bar.n
  with concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(tasks)),
    context,
    initializer=_start_worker,
    initargs=(bytes_read,),
  ) as pool:
    futures = [pool.submit(_make_shard, task) for task in tasks]
    waiting = set(futures)
    while waiting:
      finished, waiting = concurrent.futures.wait(
        waiting, 0.2, concurrent.futures.FIRST_EXCEPTION
      )
      if any(future.exception() for future in finished):
        pool.shutdown(cancel_futures=True)
        break
      # The text of JSON is shorter than its lines.
      bar.update(min(start + bytes_read.value, bar.total) - bar.n)
    try:
      shards = [future.result() for future in futures if not future.cancelled()]
    except process.BrokenProcessPool as error:
      raise RuntimeError(
        f"a worker that made {tasks[0].output} was killed; run the same command"
        " again to make the shards that are missing"
      ) from error
  return {shard.name: shard for shard in shards}


# What the workers have read, for the progress bar; None outside a worker.
_bytes_read = None


def _start_worker(bytes_read) -> None:
  global _bytes_read
  _bytes_read = bytes_read
  # One core for each worker: the tokenizer's own threads would compete.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _make_shard(task: _Task) -> manifest.Shard:
  """Writes the two files of a shard and the note that it is whole."""
  tokenizer = tokenizer_lib.Tokenizer.load(task.tokenizer)
  dtype = _dtype(tokenizer)
  records_file = task.output / f"{task.name}.array_record"
  partial = records_file.with_name(records_file.name + ".partial")
  writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
  digest = hashlib.sha256()
  lengths: list[int] = []
  num_bytes = num_empty = 0
  for batch in _batches(task):
    texts = [document.text for document in batch if document.text]
    num_empty += len(batch) - len(texts)
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
  documents_file = task.output / f"{task.name}.documents.npy"
  np.save(documents_file, np.array(lengths, np.int64), allow_pickle=False)
  partial.replace(records_file)
  shard = manifest.Shard(
    name=task.name,
    num_documents=len(lengths),
    num_empty=num_empty,
    num_tokens=sum(lengths),
    num_bytes=num_bytes,
    tokens_sha256=digest.hexdigest(),
    records_size=records_file.stat().st_size,
    records_sha256=manifest.sha256(records_file),
    documents_size=documents_file.stat().st_size,
    documents_sha256=manifest.sha256(documents_file),
  )
  note = json.dumps(dataclasses.asdict(shard))
  manifest.write_atomically(_note(task), note)
  return shard


def _batches(
  task: _Task,
) -> collections.abc.Iterator[list[documents.Document]]:
  """The documents of a shard, some at a time; counts what is read."""
  batch: list[documents.Document] = []
  num_bytes = 0
  for document in itertools.chain.from_iterable(
    documents.read(span, field=task.options.field) for span in task.spans
  ):
    batch.append(document)
    num_bytes += len(document.text.encode())
    if len(batch) == _BATCH_DOCUMENTS or num_bytes > _BATCH_BYTES:
      yield batch
      if _bytes_read is not None:
        with _bytes_read.get_lock():
          _bytes_read.value += num_bytes
      batch, num_bytes = [], 0
  yield batch


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
  shard = manifest.Shard(**json.loads(_note(task).read_text(encoding="utf-8")))
  return None if shard.damage(task.output, digests=True) else shard


def _note(task: _Task) -> pathlib.Path:
  return task.output / f"{task.name}.json"


def _size(task: _Task) -> int:
  return sum(span.stop - span.start for span in task.spans)


def _dtype(tokenizer: tokenizer_lib.Tokenizer) -> np.dtype:
  return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
