"""A Hugging Face folder or GGUF file becomes a checkpoint.

Tensors are read, laid out and written one at a time (on each core), so memory
stays near a few of them whatever the size of the model. What an export needs to
give back the same files (config.json, dtypes) is kept beside the weights.
"""

import dataclasses
import pathlib
import time
from typing import Any, Literal

import ml_dtypes
import numpy as np

from model import checkpoint
from model import config as model_config
from model import schema
from model import streaming
from model import transformer
from model.hf import architecture
from model.hf import name_map
from model.hf import source as source_lib
from model.hf import tensors
from model.hf.families import family

# In a checkpoint's meta: what an export gives back.
CONFIG_FILE = "hf/config.json"
GENERATION_FILE = "hf/generation_config.json"
DTYPES_FILE = "hf/dtypes.json"

_TIED = "lm_head.weight"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MAX_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What an import did.

  Attributes:
    folder: The step directory.
    config: The model.
    param_dtype: Of the parameters.
    num_parameters: How many there are.
    num_bytes: Read from the source.
    seconds: Wall time.
    has_tokenizer: Whether one was carried along.
  """

  folder: pathlib.Path
  config: model_config.ModelConfig
  param_dtype: str
  num_parameters: int
  num_bytes: int
  seconds: float
  has_tokenizer: bool


def run(
  path: pathlib.Path,
  output: pathlib.Path,
  *,
  param_dtype: Literal["float32", "bfloat16"] | None = None,
  name: str | None = None,
  count_ids: source_lib.CountIds | None = None,
  config_file: str = "config.json",
) -> Result:
  """Imports the model at `path` as `<output>/0`.

  Args:
    path: A folder, or a .gguf file.
    output: Gets a step directory.
    param_dtype: Of the parameters; unset: bfloat16 if all tensors are, else
      float32, so that no bit is lost.
    name: What the model is called; unset: as its folder.
    count_ids: Reads the tokenizer, to check that it is the model's; unset: it
      is carried along unread.
    config_file: Which of the folder's files describes the model.

  Raises:
    ValueError: The source is not complete, not understood or not sound, or
      `output` has a checkpoint already.
  """
  start = time.perf_counter()
  source = source_lib.open_source(path, config_file=config_file)
  found, config = architecture.read(
    source.config, where=str(source.described_by)
  )
  config = dataclasses.replace(config, name=name or _name(path.resolve()))
  if count_ids is not None:
    source_lib.check_tokenizer(source, config.vocab_size, count_ids=count_ids)
  execution = model_config.ExecutionConfig(
    param_dtype=param_dtype or "bfloat16"
  )
  _, shapes = transformer.abstract(config, execution)
  bindings = architecture.bind(found, config, shapes)
  names = match_names(bindings, source.tensors, found, config)
  if param_dtype is None and not _fits_bfloat16(
    bindings, shapes, source.tensors, names
  ):
    execution = model_config.ExecutionConfig(param_dtype="float32")
    _, shapes = transformer.abstract(config, execution)
  _check_tied(source.tensors, config, names)
  values: dict[str, Any] = {
    checkpoint.CONFIG_FILE: {
      "model": schema.to_dict(config),
      "execution": schema.to_dict(execution),
    },
    CONFIG_FILE: source.config,
    DTYPES_FILE: {
      binding.theirs: source.tensors[names[binding.theirs]].dtype.name
      for binding in bindings
    },
  }
  if source.generation_config is not None:
    values[GENERATION_FILE] = source.generation_config
  with streaming.Writer(output, shapes) as writer:

    def copy(binding: name_map.Binding) -> None:
      read_name = names[binding.theirs]
      value = source.tensors.read(read_name)
      tensors.check_finite(read_name, value)
      dtype = writer.dtype(binding.ours[0])
      value = _cast(value, dtype, read_name, forced=param_dtype is not None)
      for ours, part in zip(binding.ours, binding.to_ours(value), strict=True):
        writer.write(ours, binding.index, part)

    streaming.for_each(copy, bindings)
    folder = writer.finish(values, tokenizer=source.tokenizer)
  return Result(
    folder=folder,
    config=config,
    param_dtype=execution.param_dtype,
    num_parameters=writer.num_elements,
    num_bytes=source.tensors.num_bytes,
    seconds=time.perf_counter() - start,
    has_tokenizer="tokenizer.json" in source.tokenizer,
  )


def _name(path: pathlib.Path) -> str:
  return path.stem if path.suffix == ".gguf" else path.name


def match_names(
  bindings: list[name_map.Binding],
  found_tensors: tensors.Tensors,
  found: family.Family,
  config: model_config.ModelConfig,
) -> dict[str, str]:
  """The name in the files of each tensor that the model needs.

  A base model without its head's prefix (`h.0.` for `transformer.h.0.`) is
  understood.

  Raises:
    ValueError: Lists all tensors that are missing, that no parameter is for,
      and that have another shape.
  """
  names, missing, misshapen = {}, [], []
  prefix = bindings[0].theirs.split(".", 1)[0] + "."
  for binding in bindings:
    bare = binding.theirs.removeprefix(prefix)
    theirs = binding.theirs if binding.theirs in found_tensors else bare
    if theirs not in found_tensors:
      missing.append(binding.theirs)
      continue
    names[binding.theirs] = theirs
    shape = found_tensors[theirs].shape
    if shape != binding.their_shape:
      misshapen.append(f"{theirs} {shape} for {binding.their_shape}")
  used = set(names.values())
  extra = [
    name
    for name in found_tensors
    if name not in used
    # The shared expert of a DeepSeek without one has no elements.
    and 0 not in found_tensors[name].shape
    and not architecture.is_ignored(found, config, name)
    and not architecture.is_ignored(found, config, prefix + name)
    and not (config.tie_embeddings and name == _TIED)
  ]
  problems = [
    f"{len(items)} {what}: {_some(items)}"
    for what, items in (
      ("missing", missing),
      ("not understood", extra),
      ("of another shape (found for expected)", misshapen),
    )
    if items
  ]
  if problems:
    raise ValueError(
      f"The tensors do not fit config.json ({found.model_type}): "
      + "; ".join(problems)
      + ". Is it the config.json of these weights?"
    )
  return names


def _some(items: list[str]) -> str:
  shown = ", ".join(items[:_MAX_SHOWN])
  more = len(items) - _MAX_SHOWN
  return f"{shown} and {more} more" if more > 0 else shown


def _fits_bfloat16(
  bindings: list[name_map.Binding],
  shapes: dict[str, Any],
  found: tensors.Tensors,
  names: dict[str, str],
) -> bool:
  """Whether every tensor is bfloat16 whose parameter would be."""
  dtypes = streaming.dtypes(shapes)
  return all(
    found[names[binding.theirs]].dtype == _BFLOAT16
    or dtypes[binding.ours[0]] != _BFLOAT16
    for binding in bindings
  )


def _cast(
  value: np.ndarray, dtype: np.dtype, name: str, *, forced: bool
) -> np.ndarray:
  """`value` in another dtype; loses bits only if the user asked for it.

  Raises:
    ValueError: Numbers fall outside the dtype's range, or would lose bits.
  """
  if value.dtype == dtype:
    return value
  with np.errstate(over="ignore"):
    cast = value.astype(dtype)
  if value.dtype.itemsize <= dtype.itemsize:
    return cast
  if not np.isfinite(cast).all():
    raise ValueError(
      f"{name} is {value.dtype.name} and has numbers beyond the range of "
      f"{dtype.name}: it cannot be imported."
    )
  if not forced and not np.array_equal(cast.astype(value.dtype), value):
    raise ValueError(
      f"{name} is {value.dtype.name}, and loses bits as {dtype.name}; ask for "
      f"that with --param_dtype={dtype.name}."
    )
  return cast


def _check_tied(
  found: tensors.Tensors,
  config: model_config.ModelConfig,
  names: dict[str, str],
) -> None:
  """A tied model's head, if it is there as well, must be the embedding."""
  if not config.tie_embeddings or _TIED not in found:
    return
  embedding = next(
    n for n in names if n.endswith(("embed_tokens.weight", "wte.weight"))
  )
  head, table = found[_TIED], found[names[embedding]]
  step = max(1, 2**24 // max(1, table.shape[1]))
  equal = head.shape == table.shape and all(
    np.array_equal(
      found.read_slice(_TIED, row, min(row + step, table.shape[0])),
      found.read_slice(names[embedding], row, min(row + step, table.shape[0])),
    )
    for row in range(0, table.shape[0], step)
  )
  if not equal:
    raise ValueError(
      f"tie_word_embeddings is true, but {_TIED} is not {names[embedding]}: "
      "set it to false in config.json to import both, or remove the head."
    )
