"""Which files a path means, and what is in them.

dataset    a folder with manifest.json, or *.array_record: `data/manifest.py`
megatron   PREFIX.bin and PREFIX.idx
arrow      *.arrow, or a folder that Hugging Face's `save_to_disk` wrote
jsonl, parquet, text   by the suffixes of the files
"""

import collections.abc
import glob
import json
import pathlib

from data import manifest
from data.sources import storage

_SUFFIXES = {
  ".jsonl": "jsonl",
  ".parquet": "parquet",
  ".arrow": "arrow",
  ".txt": "text",
  ".md": "text",
  ".py": "text",
}
_MEGATRON = (".idx", ".bin")
_FORMATS = "dataset, megatron, jsonl, parquet, arrow or text"


def detect(path: str) -> str:
  """The format of what is at a path: one of `SourceConfig.format`.

  Args:
    path: a file, a folder, a glob or a prefix; local or a URL.

  Raises:
    ValueError: nothing is there, or it cannot be told.
  """
  stem = prefix(path)
  if any(storage.exists(stem + suffix) for suffix in _MEGATRON):
    return "megatron"
  files = storage.find(path)
  names = {file.relative for file in files}
  suffixes = {_suffix(name) for name in names}
  if manifest.FILE in names or ".array_record" in suffixes:
    return "dataset"
  if names & {"dataset_dict.json", "dataset_info.json", "state.json"}:
    return "arrow"
  kinds = {_SUFFIXES.get(suffix, "") for suffix in suffixes}
  if len(kinds) == 1 and "" not in kinds:
    return kinds.pop()
  raise ValueError(
    f"{path!r} has {', '.join(sorted(map(repr, suffixes)))} files, which do not"
    f" tell the format; set its format to {_FORMATS}, or give a glob of the"
    " files that are meant"
  )


def files(path: str, format: str) -> list[storage.File]:
  """The files to read, in their order.

  Args:
    path: as for `detect`.
    format: what is there. In a folder, files with the suffix of another format
      are not meant, and `text` means all.

  Raises:
    ValueError: there is none.
  """
  found = storage.find(path)
  if [file.relative for file in found] == [pathlib.PurePath(path).name]:
    return found
  by_name = {file.relative: file for file in found}
  if glob.has_magic(path) and not storage.exists(path):
    return found
  if format == "arrow":
    return _arrow(by_name, path)
  if format != "text":
    suffix = f".{format}"
    found = [file for file in found if _suffix(file.relative) == suffix]
    if not found:
      raise ValueError(
        f"{path!r} has no {suffix} file; set its format, or give a glob"
      )
  return found


def prefix(path: str) -> str:
  """Path of a pair of Megatron's files, without the suffix."""
  return path.removesuffix(".bin").removesuffix(".idx")


def megatron_prefix(path: str) -> pathlib.Path:
  """The same, of the files on this machine.

  Raises:
    ValueError: a remote file is missing.
  """
  stem = prefix(path)
  if not storage.is_remote(stem):
    return storage.local_path(stem)
  (index,), (tokens,) = (storage.find(stem + suffix) for suffix in _MEGATRON)
  return storage.fetch([index, tokens])[0].with_suffix("")


def folder(path: str) -> pathlib.Path:
  """A folder on this machine with the files of a folder.

  Raises:
    ValueError: a remote file cannot be read.
  """
  if not storage.is_remote(path):
    return storage.local_path(path)
  found = storage.find(path)
  first = storage.fetch(found)[0]
  return first.parents[len(pathlib.PurePosixPath(found[0].relative).parts) - 1]


def _suffix(name: str) -> str:
  """Suffix of a file's name, without that of its compression."""
  place = pathlib.PurePosixPath(name)
  compressed = place.suffix in storage.COMPRESSED
  return (place.with_suffix("") if compressed else place).suffix


def _arrow(
  by_name: collections.abc.Mapping[str, storage.File], path: str
) -> list[storage.File]:
  """The Arrow files of a folder, as `save_to_disk` of Hugging Face wrote it.

  A DatasetDict has dataset_dict.json and a folder for each split; a split has
  state.json, which names its files in order.
  """
  inner = ""
  if "dataset_dict.json" in by_name:
    splits = _json(by_name["dataset_dict.json"]).get("splits", [])
    if "train" not in splits:
      raise ValueError(
        f"{path!r} has the splits {', '.join(splits)}, not train; give the"
        " folder of one of them"
      )
    inner = "train/"
  if f"{inner}state.json" in by_name:
    state = _json(by_name[f"{inner}state.json"])
    if state.get("_indices_data_files"):
      raise ValueError(
        f"{path!r} is a selection of rows by an index of its own; write it with"
        " flatten_indices().save_to_disk() of the library datasets"
      )
    names = [inner + file["filename"] for file in state.get("_data_files", [])]
    missing = [name for name in names if name not in by_name]
    if missing or not names:
      raise ValueError(
        f"{path!r} lacks {', '.join(missing) or 'data files'}, by its"
        " state.json; copy the folder again"
      )
    return [by_name[name] for name in names]
  if "dataset_info.json" in by_name:
    # The cache of the library has all splits, and results of `map`, together.
    raise ValueError(
      f"{path!r} has no state.json, so which of its files belong together is"
      f" not known; give a glob of them, such as {path.rstrip('/')}/*-train*"
      ".arrow, or write the dataset with save_to_disk()"
    )
  found = [file for name, file in by_name.items() if name.endswith(".arrow")]
  if not found:
    raise ValueError(f"{path!r} has no .arrow file; set its format")
  return found


def _json(file: storage.File) -> dict:
  try:
    (path,) = storage.fetch([file])
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{file.name} is not valid JSON ({error}); copy it again"
    ) from error
