"""Llama-shaped models with random parameters, to measure how fast they are."""

import pathlib
from typing import Any, Literal

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from model import checkpoint
from model import config as model_config
from model import schema
from model import sharding
from model import streaming
from model import transformer
from serve import checkpoints

SIZES: dict[str, dict[str, Any]] = {
  # 100.1 million parameters.
  "100m": {
    "vocab_size": 32_000,
    "dim": 768,
    "num_layers": 12,
    "num_heads": 12,
    "num_kv_heads": 4,
    "head_dim": 64,
    "mlp_dim": 2048,
  },
  # Drafts for it.
  "9m": {
    "vocab_size": 32_000,
    "dim": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_dim": 704,
  },
}


def config(size: str) -> model_config.ModelConfig:
  """The model of that size, with tied embeddings."""
  return model_config.dense(
    name=f"random-{size}", tie_embeddings=True, **SIZES[size]
  )


def params(
  model: model_config.ModelConfig,
  run: model_config.ExecutionConfig,
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """Normal numbers with the model's `init_std`; scales of norms are 1."""
  rng = np.random.default_rng(seed)
  _, shapes = transformer.abstract(model, run)

  def make(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    if path[-1].key.rpartition("_")[0].endswith("scale"):
      return np.ones(shape.shape, shape.dtype)
    values = rng.standard_normal(shape.shape, np.float32)
    return (values * model.init_std).astype(shape.dtype)

  return jax.tree_util.tree_map_with_path(make, shapes)


def make(
  size: str,
  mesh: jax.sharding.Mesh,
  compute_dtype: Literal["float32", "bfloat16"],
) -> checkpoints.Model:
  """The model as if it were loaded."""
  model = config(size)
  run = model_config.ExecutionConfig(compute_dtype=compute_dtype)
  return checkpoints.Model(
    name=model.name,
    config=model,
    execution=run,
    params=jax.device_put(
      params(model, run), jax.sharding.NamedSharding(mesh, P())
    ),
    mesh=mesh,
  )


def write(size: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes it as a checkpoint for a server to load.

  Returns:
    The checkpoint.
  """
  model, run = config(size), model_config.ExecutionConfig()
  values = params(model, run)
  shapes = jax.eval_shape(lambda: values)
  with streaming.Writer(folder, shapes, step=0) as writer:
    for name, leaf in sharding.named_leaves(values).items():
      writer.write(name, (), np.asarray(leaf))
    described = {
      "model": schema.to_dict(model),
      "execution": schema.to_dict(run),
    }
    writer.finish({checkpoint.CONFIG_FILE: described}, tokenizer={})
  return folder / "0"
