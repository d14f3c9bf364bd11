"""Runs the parts of a job in processes of this machine.

A `Runner` is what a job is given to have its parts done. A part is done by a
function of it alone, which writes files and notes when they are whole; parts
are in no order, and one that is done twice gives the same files.
"""

import collections.abc
import concurrent.futures
from concurrent.futures import process
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from typing import Any, Protocol

import tqdm

_ATTEMPT = ".partial"


class WorkerKilledError(RuntimeError):
  """A worker is gone, and not by an error of its own."""


class _StoppedError(Exception):
  """A worker gave its part up since another one failed."""


class Part(Protocol):
  """One part of a job."""

  @property
  def name(self) -> str: ...

  @property
  def size(self) -> int:
    """Bytes to read."""
    ...


class Runner(Protocol):
  """Has all parts of a job done, anywhere.

  Raises ValueError if the input is at fault.
  """

  def __call__(
    self,
    do: collections.abc.Callable[[Any], object],
    parts: collections.abc.Sequence[Part],
    *,
    label: str,
    bytes_done: int,
  ) -> None:
    """Does the parts.

    Args:
      do: does one; can be sent to another process.
      parts: to do.
      label: of what is shown of the progress.
      bytes_done: of the job, by an earlier run.
    """
    ...


@contextlib.contextmanager
def attempt(
  output: pathlib.Path, *, name: str, note: str
) -> collections.abc.Iterator[pathlib.Path]:
  """A folder for what one attempt at a part writes.

  At the end its files are moved to the output, all at their place before the
  note is.

  Args:
    output: folder of the job.
    name: of the part.
    note: name of the file that says that the part is done.
  """
  with tempfile.TemporaryDirectory(
    prefix=f"{name}.", suffix=_ATTEMPT, dir=output
  ) as scratch:
    folder = pathlib.Path(scratch)
    yield folder
    for file in sorted(folder.iterdir(), key=lambda file: file.name == note):
      file.replace(output / file.name)


def remove_attempts(output: pathlib.Path) -> None:
  """Removes what attempts that were stopped have left."""
  for left in output.glob(f"*{_ATTEMPT}"):
    if left.is_dir():
      shutil.rmtree(left, ignore_errors=True)
    else:
      left.unlink(missing_ok=True)


def check_made(notes: collections.abc.Iterable[pathlib.Path]) -> None:
  """Checks that what a runner had made can be seen here.

  Args:
    notes: that parts write when they are done.

  Raises:
    ValueError: one is missing.
  """
  for note in notes:
    if not note.is_file():
      raise ValueError(
        f"{note} was not made, or by a machine with another"
        f" {note.parent}; give an output folder that all machines share"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """A runner with processes; one process is this one."""

  num_workers: int = 1

  def __call__(
    self,
    do: collections.abc.Callable[[Any], object],
    parts: collections.abc.Sequence[Part],
    *,
    label: str,
    bytes_done: int,
  ) -> None:
    with tqdm.tqdm(
      total=bytes_done + sum(part.size for part in parts),
      initial=bytes_done,
      desc=label,
      unit="B",
      unit_scale=True,
    ) as bar:
      if min(self.num_workers, len(parts)) > 1:
        self._in_processes(do, parts, bar)
      else:
        for part in parts:
          do(part)
          bar.update(part.size)
      bar.update(bar.total - bar.n)

  def _in_processes(
    self,
    do: collections.abc.Callable[[Any], object],
    parts: collections.abc.Sequence[Part],
    bar: tqdm.tqdm,
  ) -> None:
    context = multiprocessing.get_context("spawn")
    bytes_read = context.Value("q", 0)
    stop = context.RawValue("b", 0)
    start = bar.n
    with concurrent.futures.ProcessPoolExecutor(
      min(self.num_workers, len(parts)),
      context,
      initializer=_start_worker,
      initargs=(bytes_read, stop),
    ) as pool:
      futures = [pool.submit(_do, do, part) for part in parts]
      waiting = set(futures)
      try:
        while waiting:
          finished, waiting = concurrent.futures.wait(
            waiting, 0.2, concurrent.futures.FIRST_EXCEPTION
          )
          if any(future.exception() for future in finished):
            break
          # The text of JSON is shorter than its lines. Read without the lock,
          # which a worker may have held when it was killed.
          read = bytes_read.get_obj().value
          bar.update(min(start + read, bar.total) - bar.n)
      finally:
        # After an error, or Ctrl-C, there is nothing to wait for.
        stop.value = 1
        pool.shutdown(cancel_futures=True)
      try:
        for future in futures:
          if not future.cancelled():
            with contextlib.suppress(_StoppedError):
              future.result()
      except process.BrokenProcessPool as error:
        raise WorkerKilledError(
          f"a worker of {bar.desc} was killed, perhaps for the memory that it"
          " took; run the same command again to do the parts that are missing,"
          " with fewer workers if memory is short"
        ) from error


# What the workers have read, for the progress bar, and whether to stop; None
# outside a worker.
_bytes_read: Any = None
_stop: Any = None


def report(num_bytes: int) -> None:
  """Tells that a part has read so much more; ends a part that is given up."""
  if _bytes_read is not None:
    with _bytes_read.get_lock():
      _bytes_read.value += num_bytes
  if _stop is not None and _stop.value:
    raise _StoppedError


def _start_worker(bytes_read, stop) -> None:
  global _bytes_read, _stop
  _bytes_read, _stop = bytes_read, stop
  # One core for each worker: the tokenizer's own threads would compete.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  # Ctrl-C reaches all processes; the first one tells the others.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends a worker when its parent is killed: it would wait for work forever."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _do(do: collections.abc.Callable[[Any], object], part: Part) -> None:
  # What it returns stays here: it is in the files that it wrote.
  do(part)
