"""A checkpoint becomes a Hugging Face folder that Transformers loads.

Tensors are read and written one at a time. What was imported gets its own
config.json and dtypes back; a model that was trained or reshaped here gets
those of the first architecture that computes its function.
"""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from model import streaming
from model import transformer
from model.hf import architecture
from model.hf import importer
from model.hf import name_map
from model.hf import source as source_lib
from model.hf import tensors
from model.hf.families import family
from tools.hf import safetensors_writer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What an export did.

  Attributes:
    architecture: The class that loads it.
    num_tensors: How many were written.
    num_bytes: In all tensors.
    seconds: Wall time.
    left_out: Parts of the model that the architecture has no place for.
  """

  architecture: str
  num_tensors: int
  num_bytes: int
  seconds: float
  left_out: tuple[str, ...]


def run(
  path: pathlib.Path,
  output: pathlib.Path,
  *,
  dtype: str | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> Result:
  """Exports the checkpoint at `path` to the new folder `output`.

  Args:
    path: As `checkpoint.find` takes it.
    output: Must not exist, or be empty.
    dtype: Of all tensors; unset: as they were imported, or else as the
      parameters are stored.
    max_shard_bytes: Of the tensors in one file.

  Raises:
    ValueError: There is no checkpoint, no architecture for it, no room, or
      `dtype` cannot hold a tensor.
    CorruptCheckpointError: The checkpoint is damaged.
  """
  start = time.perf_counter()
  folder = checkpoint.find(path)
  meta = checkpoint.read_meta(folder)
  config, execution = meta.model, meta.execution
  _, shapes = transformer.abstract(config, execution)
  found, values, dtypes = _describe(meta, config)
  bindings = architecture.bind(found, config, shapes)
  specs = {
    binding.theirs: tensors.Spec(
      shape=binding.their_shape,
      dtype=_dtype(dtype or dtypes.get(binding.theirs, execution.param_dtype)),
    )
    for binding in bindings
  }
  values["dtype" if "dtype" in values else "torch_dtype"] = _most_bytes(specs)
  with safetensors_writer.Writer(
    output, specs, max_shard_bytes=max_shard_bytes
  ) as writer:
    _copy(folder, meta, bindings, specs, writer)
    if importer.GENERATION_FILE in meta.files:
      _write_json(
        writer.partial / source_lib.GENERATION_CONFIG,
        meta.json(importer.GENERATION_FILE),
      )
    prefix = f"{checkpoint.TOKENIZER_FOLDER}/"
    for name, content in meta.files.items():
      if name.startswith(prefix):
        (writer.partial / name.removeprefix(prefix)).write_bytes(content)
    if (writer.partial / "tokenizer.json").is_file():
      values = _special_ids(writer.partial) | values
    _write_json(writer.partial / "config.json", values)
  return Result(
    architecture=found.architecture,
    num_tensors=len(specs),
    num_bytes=writer.num_bytes,
    seconds=time.perf_counter() - start,
    left_out=() if config.mtp is None else ("mtp",),
  )


def _special_ids(folder: pathlib.Path) -> dict[str, int | None]:
  """Ids by which Transformers begins and ends a text."""
  tokenizer = tokenizer_lib.Tokenizer.load(folder)
  return {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": tokenizer.eos_id,
  }


def _describe(
  meta: checkpoint.Meta, config: model_config.ModelConfig
) -> tuple[family.Family, dict[str, Any], dict[str, str]]:
  """Family, config.json and dtypes: the imported ones, if they still hold."""
  if importer.CONFIG_FILE in meta.files:
    values = meta.json(importer.CONFIG_FILE)
    found, again = architecture.read(values)
    if architecture.is_same(again, config):
      return found, values, meta.json(importer.DTYPES_FILE)
  found, values = architecture.write(config)
  return found, values, {}


def _copy(
  folder: pathlib.Path,
  meta: checkpoint.Meta,
  bindings: list[name_map.Binding],
  specs: dict[str, tensors.Spec],
  writer: safetensors_writer.Writer,
) -> None:
  """Writes every tensor, and checks the digests of all that was read.

  Parameter by parameter, not layer by layer: a trainer's checkpoint may hold
  all layers of one in one piece, which is so read once.

  Raises:
    CorruptCheckpointError: An array is missing or not as it was written.
  """
  reader = streaming.Reader(folder)
  by_parameters: dict[tuple[str, ...], list[name_map.Binding]]
  by_parameters = collections.defaultdict(list)
  for binding in bindings:
    by_parameters[binding.ours].append(binding)
  for names, group in by_parameters.items():
    with contextlib.ExitStack() as stack:
      arrays = [stack.enter_context(reader.open(name)) for name in names]
      digests = np.zeros((len(names), 2), np.uint32)
      lock = threading.Lock()

      def copy(binding, arrays=arrays, digests=digests, lock=lock) -> None:
        ours = [array.read(binding.index) for array in arrays]
        sums = [
          streaming.digest(part, binding.index, array.shape)
          for part, array in zip(ours, arrays, strict=True)
        ]
        with lock:
          digests += sums
        theirs = binding.rule.to_theirs(ours)
        dtype = specs[binding.theirs].dtype
        writer.write(binding.theirs, _cast(theirs, dtype, binding.theirs))

      streaming.for_each(copy, group)
    for name, digest in zip(names, digests, strict=True):
      expected = meta.array_digests.get(f"params.{name}")
      if checkpoint.to_hex(digest) != expected:
        raise checkpoint.CorruptCheckpointError(
          f"{folder}: parameter {name} is not as it was written (digests "
          "differ). Restore the checkpoint from a copy, or use an earlier step."
        )


def _cast(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """`value` in another dtype.

  Raises:
    ValueError: It has not the range.
  """
  with np.errstate(over="ignore"):
    cast = value.astype(dtype, copy=False)
  if dtype == np.float16 and not np.isfinite(cast).all():
    raise ValueError(
      f"{name} has numbers that float16 has not; choose --dtype=bfloat16 or "
      "float32."
    )
  return cast


def _dtype(name: str) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _most_bytes(specs: dict[str, tensors.Spec]) -> str:
  """The dtype that most numbers have."""
  sizes: collections.Counter[str] = collections.Counter()
  for spec in specs.values():
    sizes[spec.dtype.name] += math.prod(spec.shape)
  return sizes.most_common(1)[0][0]


def _write_json(file: pathlib.Path, value: Any) -> None:
  text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
  file.write_text(text, encoding="utf-8")
