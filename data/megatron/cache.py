"""Indices on disk, memory-mapped: made once, opened at once afterwards.

A folder for each index, named by a hash of all that decides it. It is written
under another name and then renamed, so what is there is whole, and hosts that
share the folder may make the same one at the same time.
"""

import collections.abc
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

# Changes when the same key would mean other arrays.
_VERSION = 1


def arrays(
  folder: pathlib.Path | None,
  key: Any,
  make: collections.abc.Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Arrays, from the cache if they are there.

  Args:
    folder: of the cache; None: they are made.
    key: all that decides them; JSON.
    make: makes them.

  Raises:
    ValueError: what is there cannot be read.
  """
  if folder is None:
    return make()
  text = json.dumps([_VERSION, key], sort_keys=True)
  place = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
  if not place.exists():
    _write(place, make(), text)
  try:
    names = json.loads((place / "names.json").read_text())
    return {
      name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
      for name in names
    }
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(
      f"{place} cannot be read ({error}); remove this folder, and it is made"
      " again"
    ) from error


def _write(place: pathlib.Path, made: dict[str, np.ndarray], key: str) -> None:
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".partial-", dir=place.parent)
  except OSError as error:
    raise ValueError(
      f"data.megatron.cache: {place.parent} cannot be written ({error}); give"
      " another folder, or leave it empty"
    ) from error
  try:
    folder = pathlib.Path(partial)
    folder.chmod(0o755)
    for name, array in made.items():
      with open(folder / f"{name}.npy", "wb") as out:
        np.save(out, array, allow_pickle=False)
        out.flush()
        os.fsync(out.fileno())
    (folder / "names.json").write_text(json.dumps(sorted(made)))
    # For people who wonder what it is.
    (folder / "key.json").write_text(key)
    try:
      os.rename(folder, place)
    except OSError:
      # Another host was first; its arrays are the same.
      if not place.exists():
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
