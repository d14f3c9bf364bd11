"""The folder of imported models: made once, used by many, kept for a while.

Each import is a folder of its own beside a lock. Who makes or deletes one holds
the lock alone; who reads one holds it with others, so that nothing is deleted
that is in use. Locks die with their holders, and deleted imports are made again
when they are asked for.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from typing import IO

from absl import logging

from data import tokenizer as tokenizer_lib
from model.hf import importer
from model.hf import source

# So many are kept, unless the user says otherwise.
KEPT = 8

WEIGHTS = (".safetensors", ".gguf")
# Of an import. Another one makes all imports anew.
_FORMAT = 1
_NAME = re.compile(r".+-[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
  """An imported model.

  Attributes:
    step: Its step directory.
    is_new: It was made just now.
  """

  step: pathlib.Path
  is_new: bool


@contextlib.contextmanager
def hold(
  path: pathlib.Path, folder: pathlib.Path, *, keep: int
) -> Iterator[Import]:
  """The import of the model at `path`, which stays as long as it is held.

  Of several servers that start at a time one imports, and the others wait.

  Args:
    path: A folder with config.json and safetensors, or a .gguf file.
    folder: Of imports.
    keep: So many stay, those that were used last; the others are deleted,
      unless somebody holds them.

  Raises:
    ValueError: It cannot be imported.
  """
  place = folder / _key(path)
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      found = _take(stack, path, place)
      # The clock of files alone ticks too rarely to tell who was last.
      now = time.time_ns()
      os.utime(place, ns=(now, now))
      _delete_old(folder, keep=keep)
    except OSError as error:
      raise ValueError(
        f"{path} cannot be imported into {folder}: {error}; choose another"
        " folder (--import_folder), or make room there."
      ) from error
    yield found


def delete(made: Import) -> None:
  """Deletes an import when nobody holds it any more."""
  with _locked(made.step.parent, fcntl.LOCK_EX):
    shutil.rmtree(made.step.parent, ignore_errors=True)


def _take(
  stack: contextlib.ExitStack, path: pathlib.Path, place: pathlib.Path
) -> Import:
  """Makes the import if it is not there, and holds it with others."""
  is_new = False
  while True:
    with contextlib.ExitStack() as shared:
      shared.enter_context(_locked(place, fcntl.LOCK_SH))
      if (place / "0").is_dir():
        stack.push(shared.pop_all())
        return Import(step=place / "0", is_new=is_new)
    with _locked(place, fcntl.LOCK_EX):
      if not (place / "0").is_dir():
        _make(path, place)
        is_new = True


def _make(path: pathlib.Path, place: pathlib.Path) -> None:
  logging.info("Importing %s into %s.", path, place)
  result = importer.run(path, place, count_ids=_count_ids)
  logging.info(
    "%s: %s parameters in %s, imported in %.1f s.",
    result.folder,
    f"{result.num_parameters:,}",
    result.param_dtype,
    result.seconds,
  )


def _delete_old(folder: pathlib.Path, *, keep: int) -> None:
  """Deletes all but those that were used last."""
  places = [
    place
    for place in folder.iterdir()
    # Whatever else a user has there stays.
    if _NAME.fullmatch(place.name) and place.is_dir() and _lock(place).exists()
  ]
  for place in sorted(places, key=_last_use, reverse=True)[keep:]:
    try:
      with _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(place, ignore_errors=True)
        _lock(place).unlink(missing_ok=True)
    except BlockingIOError:  # It is in use.
      continue
    logging.info("Deleted %s: %d imports are kept.", place, keep)


def _last_use(place: pathlib.Path) -> int:
  try:
    return place.stat().st_mtime_ns
  except FileNotFoundError:  # Somebody else has deleted it.
    return 0


def _lock(place: pathlib.Path) -> pathlib.Path:
  return place.with_name(f"{place.name}.lock")


@contextlib.contextmanager
def _locked(place: pathlib.Path, kind: int) -> Iterator[None]:
  """Alone or with others among all processes and threads."""
  while True:
    with open(_lock(place), "w") as lock:
      fcntl.flock(lock, kind)
      # Who deletes an import deletes its lock.
      if _is_at(lock, _lock(place)):
        yield
        return


def _is_at(file: IO[str], path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def _count_ids(folder: pathlib.Path) -> int:
  return tokenizer_lib.Tokenizer.load(folder).vocab_size


def _key(path: pathlib.Path) -> str:
  """A name for what is at `path` now: other files have another."""
  path = path.resolve()
  if path.is_dir():
    folder, suffixes = path, (".json", *WEIGHTS)
  else:
    # Beside it may be other models, and its tokenizer.
    folder, suffixes = path.parent, ()
  states = [
    (file.name, stat.st_size, stat.st_mtime_ns)
    for file in sorted(folder.iterdir())
    if file == path
    or file.suffix in suffixes
    or file.name in source.TOKENIZER_FILES
    for stat in [file.stat()]
  ]
  description = json.dumps([_FORMAT, str(path), states])
  digest = hashlib.sha256(description.encode()).hexdigest()
  return f"{path.name if path.is_dir() else path.stem}-{digest[:16]}"
