"""Parameters from another checkpoint, for a run to begin with."""

import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax

from data import config as data_config
from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from model import schema
from model import transformer
from train import config as config_lib

# What two models with the same parameters and function may differ in.
_FREE = ("name", "init_std", "max_seq_len")


def check(config: config_lib.RunConfig, data: data_config.DataConfig) -> None:
  """Refuses a `checkpoint.init_from` that does not fit; reads no array.

  Args:
    config: The run.
    data: Its data, resolved.

  Raises:
    ValueError: There is no checkpoint, or it is of another model or tokenizer.
    CorruptCheckpointError: It is damaged.
  """
  folder = _find(config)
  meta = checkpoint.read_meta(folder)
  _check_model(meta.model, config.model, folder)
  tokenizer = folder / "meta" / checkpoint.TOKENIZER_FOLDER
  if tokenizer.is_dir() and data.tokenizer:
    theirs = tokenizer_lib.Tokenizer.load(tokenizer)
    ours = tokenizer_lib.Tokenizer.load(data.tokenizer)
    if theirs.fingerprint != ours.fingerprint:
      raise ValueError(
        f"checkpoint.init_from={folder} has another tokenizer than "
        f"data.tokenizer={data.tokenizer!r}: token ids have another meaning. "
        f"Tokenize the data with {tokenizer}."
      )


def load(config: config_lib.RunConfig, mesh: jax.sharding.Mesh) -> Any:
  """The parameters in `checkpoint.init_from`, on the mesh, as the run has them.

  Raises:
    CorruptCheckpointError: The checkpoint is damaged.
  """
  bundle = checkpoint.load(_find(config), mesh)
  logging.info(
    "Beginning with step %d of %s.", bundle.step, config.checkpoint.init_from
  )
  _, shapes = transformer.abstract(config.model, config.execution)
  return jax.jit(
    lambda params: jax.tree.map(lambda x, s: x.astype(s.dtype), params, shapes),
    donate_argnums=0,
  )(bundle.params)


def _find(config: config_lib.RunConfig) -> pathlib.Path:
  path = pathlib.Path(config.checkpoint.init_from)
  try:
    return checkpoint.find(path)
  except ValueError as error:
    raise ValueError(
      f"checkpoint.init_from={path} holds no checkpoint; name a run's workdir, "
      "the --output of an import, or one step in it."
    ) from error


def _check_model(
  found: model_config.ModelConfig,
  wanted: model_config.ModelConfig,
  path: pathlib.Path,
) -> None:
  same = {name: getattr(wanted, name) for name in _FREE}
  if wanted.learned_positions:
    del same["max_seq_len"]  # It is a shape.
  flat = [
    schema.flatten(schema.to_dict(model))
    for model in (dataclasses.replace(found, **same), wanted)
  ]
  differ = [
    f"model.{key}: {flat[0].get(key)!r} there, {flat[1].get(key)!r} here"
    for key in sorted(flat[0].keys() | flat[1].keys())
    if flat[0].get(key) != flat[1].get(key)
  ]
  if differ:
    raise ValueError(
      f"checkpoint.init_from={path} is of another model: {'; '.join(differ)}. "
      "Set the model's config to the checkpoint's."
    )
