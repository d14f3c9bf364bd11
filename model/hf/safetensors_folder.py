"""A Hugging Face folder of safetensors, checked before a number is used.

A file is 8 bytes with the length of its header, the header (JSON: name ->
dtype, shape, the range of its bytes), then the bytes of the tensors without a
gap (https://github.com/huggingface/safetensors#format). A model of several
files, its shards, has an index: tensor -> file.
"""

import collections
import collections.abc
import dataclasses
import json
import math
import pathlib
import re
import struct
from typing import Any

import numpy as np

from model.hf import tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
  "BF16": tensors.BFLOAT16,
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
}
# What the safetensors library reads; longer ones are not headers.
_LONGEST_HEADER = 100_000_000
_SHARD = re.compile(r"(?P<stem>.*)-\d+-of-(?P<count>\d+)\.safetensors")
# Names of weights in other formats -> what to do about them.
_OTHER_FORMATS = {
  "*.gguf": "give the .gguf file itself",
  "*.bin": "a pickle: convert it to safetensors",
  "*.pt": "a pickle: convert it to safetensors",
  "*.pth": "a pickle: convert it to safetensors",
  "*.h5": "TensorFlow's: convert it to safetensors",
  "*.msgpack": "Flax's: convert it to safetensors",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
  """A tensor of a header: where its bytes begin in the file."""

  info: tensors.Info
  offset: int


class SafetensorsFolder(tensors.Tensors):
  """The tensors of a folder; made by `open_folder`."""

  def __init__(self, entries: collections.abc.Mapping[str, _Entry]):
    super().__init__({name: entry.info for name, entry in entries.items()})
    self._offsets = {name: entry.offset for name, entry in entries.items()}

  def _read_rows(self, name: str, start: int, array: np.ndarray) -> None:
    row_bytes = math.prod(array.shape[1:]) * array.itemsize
    tensors.read_into(
      array, self[name].file, self._offsets[name] + start * row_bytes
    )


def open_folder(folder: str | pathlib.Path) -> SafetensorsFolder:
  """Opens the weights of a folder; reads all the headers and no weights.

  They are the shards of model.safetensors.index.json, or model.safetensors, or
  the only *.safetensors there is. Files of another name beside an index (such
  as Mistral's consolidated*.safetensors) are a second copy and left alone.

  Raises:
    ValueError: anything is missing, cut short, there twice, of a dtype that is
      not a float's, or not what the index says. It names the file and a way
      out.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(
      f"{folder} is not a folder; give the one with the model's config.json and"
      " *.safetensors"
    )
  index = folder / INDEX
  if index.is_file():
    return SafetensorsFolder(_open_shards(folder, _read_index(index)))
  files = sorted(folder.glob("*.safetensors"))
  if not files:
    raise ValueError(_what_else(folder))
  shards = [f.name for f in files if _is_shard(f.name)]
  if shards:
    raise ValueError(
      f"{folder} has shards ({shards[0]}), but no {INDEX} that says what is in"
      " them; get it from where the shards are from"
    )
  single = folder / SINGLE
  if single not in files:
    if len(files) > 1:
      names = ", ".join(file.name for file in files)
      raise ValueError(
        f"{folder} has several weights ({names}), but neither {SINGLE} nor"
        f" {INDEX}; leave the one that is meant"
      )
    single = files[0]
  return SafetensorsFolder(_read_header(single))


def _is_shard(name: str) -> bool:
  match = _SHARD.fullmatch(name)
  return match is not None and int(match["count"]) > 1


def _what_else(folder: pathlib.Path) -> str:
  """The message for a folder without safetensors."""
  for pattern, fix in _OTHER_FORMATS.items():
    found = sorted(folder.glob(pattern))
    if found:
      return f"{folder} has no *.safetensors, but {found[0].name} ({fix})"
  return (
    f"{folder} has no *.safetensors; give the folder that the model was"
    " downloaded to"
  )


def _read_index(index: pathlib.Path) -> dict[str, str]:
  """Tensor -> file name."""
  tensors.reject_pointer(index)
  try:
    value = json.loads(
      index.read_text(encoding="utf-8"), object_pairs_hook=_unique(index)
    )
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"{index} is not JSON ({error}); download it again"
    ) from error
  weight_map = value.get("weight_map") if isinstance(value, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(
      f'{index} has no "weight_map" of tensor names to file names; download it'
      " again"
    )
  for name, file in weight_map.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(
        f"{index}: {name} is in {file!r}, which is not a file of this folder;"
        " download the index again"
      )
  return weight_map


def _unique(file: pathlib.Path):
  """Makes the objects of a JSON file, whose keys must differ."""

  def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
      counts = collections.Counter(key for key, _ in pairs)
      twice = next(key for key, count in counts.items() if count > 1)
      raise ValueError(
        f"{file} has {twice!r} twice, and they may differ; make it again, or"
        " get it from elsewhere"
      )
    return value

  return make


def _open_shards(
  folder: pathlib.Path, weight_map: dict[str, str]
) -> dict[str, _Entry]:
  """The tensors of an index, in its order, found in their shards."""
  shards = sorted(set(weight_map.values()))
  missing = [name for name in shards if not (folder / name).is_file()]
  if missing:
    raise ValueError(
      f"{folder} lacks {len(missing)} of the {len(shards)} files that {INDEX}"
      f" lists: {_some(missing)}; download them"
    )
  _check_unlisted(folder, shards)
  entries: dict[str, _Entry] = {}
  for shard in shards:
    header = _read_header(folder / shard)
    for name, entry in header.items():
      home = weight_map.get(name)
      if home is None:
        raise ValueError(
          f"{folder / shard} has {name}, which {INDEX} does not list; the index"
          " is of another version: download both again"
        )
      if home != shard:
        raise ValueError(
          f"{name} is in {folder / shard}, but {INDEX} says it is in {home};"
          " one of the two is stale: download both again"
        )
      entries[name] = entry
  absent = [name for name in weight_map if name not in entries]
  if absent:
    raise ValueError(
      f"{folder / weight_map[absent[0]]} lacks {absent[0]}, which {INDEX} says"
      f" is there ({len(absent)} such tensors); the file is of another version:"
      " download it again"
    )
  return {name: entries[name] for name in weight_map}


def _check_unlisted(folder: pathlib.Path, shards: list[str]) -> None:
  """Raises if a file looks as if it belonged to the index, but is not in it."""
  stems = {_stem(name) for name in shards}
  for file in sorted(folder.glob("*.safetensors")):
    if file.name not in shards and _stem(file.name) in stems:
      raise ValueError(
        f"{file} is not listed in {INDEX}; it is left over or the index is of"
        " another version: remove it, or get the right index"
      )


def _stem(name: str) -> str:
  match = _SHARD.fullmatch(name)
  return match["stem"] if match else name.removesuffix(".safetensors")


def _read_header(file: pathlib.Path) -> dict[str, _Entry]:
  """The tensors of a file, in the order of their bytes."""
  tensors.reject_pointer(file)
  size = file.stat().st_size
  with file.open("rb") as stream:
    prefix = stream.read(8)
    if len(prefix) < 8:
      raise ValueError(
        f"{file} has {size} bytes, less than the 8 of a header's length; the"
        " download was cut short: get it again"
      )
    (length,) = struct.unpack("<Q", prefix)
    if length > _LONGEST_HEADER:
      raise ValueError(
        f"{file} is not safetensors (its first bytes are {prefix!r}, a header"
        f" of {length} bytes); get it again, or remove it"
      )
    if 8 + length > size:
      raise ValueError(
        f"{file} has {size} bytes, but its header alone needs {8 + length}; the"
        " download was cut short: get it again"
      )
    raw = stream.read(length)
  try:
    header = json.loads(raw, object_pairs_hook=_unique(file))
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"{file}: the header is not JSON ({error}); the file is damaged: get it"
      " again"
    ) from error
  if not isinstance(header, dict):
    raise ValueError(
      f"{file}: the header is not a JSON object; the file is damaged: get it"
      " again"
    )
  header.pop("__metadata__", None)
  _check_dtypes(file, header)
  entries = {
    name: _entry(file, name, fields, begin=8 + length)
    for name, fields in header.items()
  }
  _check_extent(file, entries, begin=8 + length, size=size)
  return dict(sorted(entries.items(), key=lambda item: item[1].offset))


def _check_dtypes(file: pathlib.Path, header: dict[str, Any]) -> None:
  others = collections.defaultdict(list)
  for name, fields in header.items():
    dtype = fields.get("dtype") if isinstance(fields, dict) else None
    if dtype not in DTYPES:
      others[str(dtype)].append(name)
  if others:
    listed = "; ".join(
      f"{dtype} ({len(names)} tensors, such as {names[0]})"
      for dtype, names in sorted(others.items())
    )
    raise ValueError(
      f"{file}: dtypes that are not supported: {listed}. Dequantize the model"
      f" first, to one of {', '.join(DTYPES)}, or remove these tensors"
    )


def _entry(
  file: pathlib.Path, name: str, fields: dict[str, Any], *, begin: int
) -> _Entry:
  """A tensor of a header, checked by itself."""
  shape = _counts(fields.get("shape"))
  offsets = _counts(fields.get("data_offsets"))
  if shape is None or offsets is None or len(offsets) != 2:
    raise ValueError(
      f"{file}: {name} has shape {fields.get('shape')} and data_offsets"
      f" {fields.get('data_offsets')}; the file is damaged: get it again"
    )
  info = tensors.Info(
    shape=tuple(shape), dtype=DTYPES[fields["dtype"]], file=file
  )
  if offsets[1] - offsets[0] != info.num_bytes:
    raise ValueError(
      f"{file}: {name} ({fields['dtype']} {shape}) needs {info.num_bytes}"
      f" bytes, but has {offsets[1] - offsets[0]}; the file is damaged: get it"
      " again"
    )
  return _Entry(info=info, offset=begin + offsets[0])


def _counts(value: object) -> list[int] | None:
  """A value of JSON if it is a list of non-negative integers."""
  if not isinstance(value, list):
    return None
  counts = [v for v in value if type(v) is int and v >= 0]
  return counts if len(counts) == len(value) else None


def _check_extent(
  file: pathlib.Path, entries: dict[str, _Entry], *, begin: int, size: int
) -> None:
  """Raises unless the tensors fill the file: no gap, overlap, lack or rest."""
  end = begin
  by_offset = sorted(
    entries.items(), key=lambda item: (item[1].offset, item[1].info.num_bytes)
  )
  for name, entry in by_offset:
    if entry.offset != end:
      raise ValueError(
        f"{file}: the bytes of {name} begin at {entry.offset}, those before it"
        f" end at {end}; the file is damaged: get it again"
      )
    end += entry.info.num_bytes
  if end > size:
    raise ValueError(
      f"{file} has {size} bytes, but its tensors need {end}; the download was"
      " cut short: get it again"
    )
  if end < size:
    raise ValueError(
      f"{file} has {size} bytes, but its tensors end at {end}; the file is"
      " damaged: get it again"
    )


def _some(names: list[str]) -> str:
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
