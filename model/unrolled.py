"""The same model with every layer in a group of its own: for serving.

A scan over stacked layers takes a slice of every weight, and of every layer's
cache, and puts the cache back: copies that cost a decoding CPU more than the
layers themselves (README.md). Unrolled, each layer's arrays are separate, and a
donated cache is updated in place. Compile time grows with depth instead.

  config = unrolled.config(trained)
  params = unrolled.params(params, trained)

Dims: L layers.
"""

import dataclasses
from typing import Any

import jax

from model import config as model_config


def config(model: model_config.ModelConfig) -> model_config.ModelConfig:
  """`model`, every group one layer; without multi-token prediction."""
  return dataclasses.replace(
    model,
    groups=tuple(
      model_config.LayerGroup(pattern=(block,), repeats=1)
      for block in model.layers
    ),
    mtp=None,
  )


def params(
  params: dict[str, Any], model: model_config.ModelConfig
) -> dict[str, Any]:
  """The parameters of `config(model)`, out of those of `model`.

  Leaf by leaf: stacked leaves are taken out of `params`, whose groups are empty
  afterwards, so that if nobody else holds them memory peaks at one leaf more.

  Args:
    params: Arrays with their shardings, which the layers keep; NumPy arrays; or
      ShapeDtypeStructs.
    model: The model that they are of, not unrolled.

  Returns:
    Nested dicts; what is not in a group is the same as in `params`.
  """
  result: dict[str, Any] = {
    name: value
    for name, value in params.items()
    if not name.startswith(("group_", "mtp_"))
  }
  first = 0
  for i, group in enumerate(model.groups):
    for j in range(len(group.pattern)):
      layers = [{} for _ in range(group.repeats)]
      _unstack(params[f"group_{i}"][f"block_{j}"], layers)
      for row, layer in enumerate(layers):
        index = first + row * len(group.pattern) + j
        result[f"group_{index}"] = {"block_0": layer}
    first += group.num_layers
  return result


def _unstack(stacked: dict[str, Any], layers: list[dict[str, Any]]) -> None:
  """Moves each leaf of nested dicts into one dict per layer."""
  for name in list(stacked):
    if isinstance(stacked[name], dict):
      inner = [layer.setdefault(name, {}) for layer in layers]
      _unstack(stacked[name], inner)
      continue
    leaves, treedef = jax.tree.flatten(stacked.pop(name))
    split = [_split(leaf, len(layers)) for leaf in leaves]
    # What is left of the stacked leaf would stay until the next one.
    del leaves
    for row, layer in enumerate(layers):
      layer[name] = treedef.unflatten([leaf[row] for leaf in split])


def _split(leaf: Any, num: int) -> list[Any]:
  """[L, ...] -> L times [1, ...]."""
  if num == 1:
    return [leaf]
  if isinstance(leaf, jax.ShapeDtypeStruct):
    shape = (1, *leaf.shape[1:])
    return num * [
      jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
    ]
  if not isinstance(leaf, jax.Array):
    return [leaf[row : row + 1] for row in range(num)]
  cut = jax.jit(
    lambda x: [x[row : row + 1] for row in range(num)],
    out_shardings=[leaf.sharding] * num,
  )
  return cut(leaf)
