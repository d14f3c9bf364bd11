"""Parameters as a server computes with them.

Layers are unrolled (model/unrolled.py), matrices are in the dtype in which they
are multiplied, or in 8 bits (linear.Int8). A CPU that computes in float32 gets
a copy of a tied embedding, transposed, as output projection: XLA takes five
times as long with the table itself for one row, and twice for eight.

Dims as in model/sharding.py: the letters in which parameters' names end.
"""

import dataclasses
import functools
import os
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from model import config as model_config
from model import linear
from model import sharding
from model import unrolled

# What can be in 8 bits, and the dims that its products sum over.
_SUMMED = {
  "embed_VD": "D",
  "head_DV": "D",
  "q_DNH": "D",
  "k_DKH": "D",
  "v_DKH": "D",
  "gate_DNH": "D",
  "o_NHD": "NH",
  "gate_DF": "D",
  "up_DF": "D",
  "down_FD": "F",
  # Experts of a mixture.
  "gate_EDF": "D",
  "up_EDF": "D",
  "down_EFD": "F",
  # Gated DeltaNet.
  "q_DKH": "D",
  "v_DNH": "D",
  # Multi-head latent attention.
  "q_down_DR": "D",
  "q_up_RNH": "R",
  "latent_DC": "D",
  # Multiplied from either side; also as linear.py says.
  "k_up_CNH": "C",
  "v_up_CNH": "C",
}
# What cannot: small and delicate.
_KEPT = (
  "position_PD",
  "beta_DN",
  "decay_DN",
  "rope_key_DH",
)


# Products with nothing to be computed beside: a CPU's cores share them only in
# pieces.
_SPLIT = ("head_DV", "o_NHD", "down_FD")
_MAX_PARTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """What `prepare` makes of a model's parameters.

  Attributes:
    source: The model as it was trained.
    config: The model that the result belongs to.
    compute_dtype: Of products.
    quantizes: Whether matrices are in 8 bits.
    num_parts: Pieces in which some matrices are.
  """

  source: model_config.ModelConfig
  config: model_config.ModelConfig
  compute_dtype: str
  quantizes: bool
  num_parts: int


def layout(
  model: model_config.ModelConfig, *, compute_dtype: str, quantizes: bool
) -> Layout:
  """What this platform computes fastest with."""
  config = unrolled.config(model)
  is_cpu_float32 = (
    compute_dtype == "float32"
    and not quantizes
    and jax.default_backend() == "cpu"
  )
  if model.tie_embeddings and is_cpu_float32:
    config = dataclasses.replace(config, tie_embeddings=False)
  # Of several devices each has its own part anyway.
  is_split = is_cpu_float32 and jax.device_count() == 1
  return Layout(
    source=model,
    config=config,
    compute_dtype=compute_dtype,
    quantizes=quantizes,
    num_parts=min(os.cpu_count() or 1, _MAX_PARTS) if is_split else 1,
  )


def prepare(
  params: dict[str, Any], to: Layout, *, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """The parameters of `to.config`.

  Leaf by leaf: layers are taken out of `params`, whose groups are empty
  afterwards, so that memory peaks at a few leaves more than either.

  Args:
    params: Of `to.source`, stacked, on the mesh.
    to: What they become.
    mesh: Where they are.
  """
  result = unrolled.params(params, to.source)
  if to.source.tie_embeddings and not to.config.tie_embeddings:
    sharded = _sharding(mesh, sharding.param_spec("head_DV", 2))
    result["head_DV"] = _transpose(result["embed_VD"], out_sharding=sharded)
  _convert(result, to, mesh)
  return result


def _convert(params: dict[str, Any], to: Layout, mesh: jax.sharding.Mesh):
  """Replaces each leaf of nested dicts by what it becomes."""
  for name, leaf in params.items():
    if isinstance(leaf, dict):
      _convert(leaf, to, mesh)
    elif to.quantizes and name in _SUMMED:
      params[name] = _quantize(leaf, name=name, mesh=mesh)
    elif name in (*_SUMMED, *_KEPT):
      if leaf.dtype != to.compute_dtype:
        leaf = _cast(leaf, dtype=to.compute_dtype)
      if (
        name in _SPLIT
        and to.num_parts > 1
        and leaf.shape[-1] % to.num_parts == 0
      ):
        leaf = linear.split(leaf, to.num_parts)
      params[name] = leaf


def _sharding(mesh: jax.sharding.Mesh, spec: P) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, spec)


@functools.partial(jax.jit, static_argnames="out_sharding")
def _transpose(x, *, out_sharding):
  return jax.lax.with_sharding_constraint(x.T, out_sharding)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(x, *, dtype):
  return x.astype(dtype)


@functools.partial(jax.jit, static_argnames=("name", "mesh"))
def _quantize(x, *, name, mesh):
  """In 8 bits, on the devices where the same part of `x` is."""
  dims = sharding.param_dims(name)
  stacked = x.ndim - len(dims)
  summed = tuple(stacked + dims.index(d) for d in _SUMMED[name])
  weight = linear.quantize(x, summed=summed, stacked=stacked)
  specs = linear.specs(weight, sharding.param_spec(name, x.ndim), summed=summed)
  return jax.tree.map(
    lambda part, spec: jax.lax.with_sharding_constraint(
      part, _sharding(mesh, spec)
    ),
    weight,
    specs,
  )
