"""A checkpoint ready to be computed with, for programs that only read one."""

import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax

from model import checkpoint
from model import config as model_config
from model import schema
from model import sharding
from model import transformer

# What a user can mend: a path, a damaged file, a setting.
ERRORS = (ValueError, checkpoint.CorruptCheckpointError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
  """A loaded model.

  Attributes:
    config: What the parameters belong to.
    graphdef: The model's structure.
    params: On `mesh`.
    mesh: Of all devices.
    tokenizer: Folder with its tokenizer.
    meta: What else was saved with it.
  """

  config: model_config.ModelConfig
  graphdef: nnx.GraphDef
  params: dict[str, Any]
  mesh: jax.sharding.Mesh
  tokenizer: pathlib.Path
  meta: checkpoint.Meta


def load(
  path: pathlib.Path,
  *,
  compute_dtype: str,
  tensor: int = 1,
) -> TrainedModel:
  """Loads and verifies a checkpoint onto all devices.

  Args:
    path: As `checkpoint.find` takes it.
    compute_dtype: Of the activations, float32 or bfloat16.
    tensor: Devices that share heads, feed-forward and vocabulary; the others
      share rows.

  Raises:
    ValueError: There is no checkpoint, it has no tokenizer, or the mesh does
      not fit it.
    CorruptCheckpointError: It is damaged.
  """
  folder = checkpoint.find(path)
  mesh = sharding.make_mesh(
    sharding.MeshConfig(tensor=tensor), list(jax.devices())
  )
  bundle = checkpoint.load(folder, mesh)
  if bundle.tokenizer is None:
    raise ValueError(
      f"--checkpoint={path} has no tokenizer, so it can read no text; train on "
      "text rather than synthetic tokens, or import the model from a folder "
      "with its tokenizer.json."
    )
  saved = schema.to_dict(bundle.meta.execution)
  execution = schema.from_dict(
    model_config.ExecutionConfig,
    saved | {"compute_dtype": compute_dtype},
    path="execution",
  )
  graphdef, _ = transformer.abstract(bundle.config, execution)
  return TrainedModel(
    config=bundle.config,
    graphdef=graphdef,
    params=bundle.params,
    mesh=mesh,
    tokenizer=bundle.tokenizer,
    meta=bundle.meta,
  )
