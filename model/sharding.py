"""The mesh, and which dim of which array lies on which of its axes.

Arrays are declared, not annotated: a parameter's name ends in the letters of
its dims (`q_DNH`, `table_VD`), activations are constrained by the same letters
(`constrain(x, "BTD")`), and two small tables say where each letter goes.

Dims: B batch, T query length, S key length, D model, M the model dim again,
N query heads, K key/value heads, H head dim, F feed-forward, E experts, C and R
ranks of key/value and query latents, W width of a convolution, P positions,
V vocabulary, L layers (the leading dim of every stacked parameter).
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

# Mesh axes, outermost (slowest links) first.
AXES = ("data", "fsdp", "expert", "tensor")

# Parameters: `fsdp` shards the model dim of every matrix (ZeRO-3), `tensor`
# the dim that a matmul can split without communication inside a block, and
# `expert` the experts. Of two dims with the same axis the first has it.
PARAM_RULES = {
  "D": "fsdp",
  "C": "fsdp",
  "R": "fsdp",
  "E": "expert",
  "N": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
  "H": None,
  "M": None,
  "W": None,
  "P": None,
  "L": None,
}

# The axes whose devices hold distinct rows of the batch.
BATCH_AXES = ("data", "fsdp", "expert")

# Activations: the batch is spread over every axis that holds distinct rows.
ACTIVATION_RULES = {
  "B": BATCH_AXES,
  "T": None,
  "S": None,
  "D": None,
  "H": None,
  "C": None,
  "R": None,
  "M": None,
  "N": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices per mesh axis; `fsdp=None` takes all that the others leave.

  Attributes:
    data: Replicas of the parameters; each has its own rows of the batch.
    fsdp: Shards of parameters, gradients and optimizer state (ZeRO-3).
    expert: Shards of the experts; each has its own rows of the batch too.
    tensor: Shards of heads, feed-forward and vocabulary.
  """

  data: int = 1
  fsdp: int | None = None
  expert: int = 1
  tensor: int = 1

  def __post_init__(self):
    for axis in AXES:
      size = getattr(self, axis)
      if size is not None and size < 1:
        raise ValueError(f"mesh.{axis}={size} must be at least 1.")


def make_mesh(config: MeshConfig, devices: list[Any]) -> jax.sharding.Mesh:
  """The mesh of `devices` that `config` describes.

  Raises:
    ValueError: The product of the axes is not the number of devices.
  """
  num = len(devices)
  fixed = math.prod(getattr(config, a) or 1 for a in AXES)
  fsdp = config.fsdp if config.fsdp is not None else max(1, num // fixed)
  sizes = {axis: getattr(config, axis) for axis in AXES} | {"fsdp": fsdp}
  if math.prod(sizes.values()) != num:
    shown = " * ".join(f"mesh.{a}={n}" for a, n in sizes.items())
    raise ValueError(
      f"{shown} = {math.prod(sizes.values())}, but there are {num} devices; "
      "make the product equal the device count, or leave mesh.fsdp unset to "
      "let it take what the other axes leave."
    )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=auto, devices=devices
  )


def param_dims(name: str) -> str:
  """The letters of a parameter's dims, stacked layers left out: its last part.

  Raises:
    ValueError: The name does not end in letters of dims.
  """
  if not _is_param_name(name):
    raise ValueError(
      f"Parameter {name!r} must end in the letters of its dims, such as q_DNH; "
      f"letters are {''.join(PARAM_RULES)}."
    )
  return name.rpartition("_")[2]


def is_matrix(name: str) -> bool:
  """Whether each token is multiplied with it: not a norm scale, not a bias."""
  stem = name.rpartition("_")[0]
  return len(param_dims(name)) >= 2 and not stem.endswith(("scale", "bias"))


def named_leaves(tree: Any) -> dict[str, Any]:
  """Dotted name -> leaf of a tree of nested dicts, such as the parameters."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def param_spec(name: str, ndim: int) -> P:
  """The spec of the parameter `name`, read off the dims in its last part.

  Vectors (norm scales) are replicated: sharding them costs a collective each
  and saves nothing.
  """
  dims = param_dims(name)
  num_vector_dims = len(dims)
  dims = "L" * (ndim - len(dims)) + dims
  assert len(dims) == ndim, (name, ndim)
  if num_vector_dims < 2:
    return P()
  axes: list[str | None] = []
  for dim in dims:
    axis = PARAM_RULES[dim]
    axes.append(axis if axis not in axes else None)
  return P(*axes)


def param_shardings(params: Any, mesh: jax.sharding.Mesh) -> Any:
  """A NamedSharding for each leaf of a tree whose keys are parameter names.

  Args:
    params: Nested dicts of arrays or ShapeDtypeStructs; an optimizer state
      that mirrors them works too. Leaves without a parameter's name (counters)
      and factors of second moments are replicated.
    mesh: As `make_mesh` gives it.

  Raises:
    ValueError: A dim does not divide evenly over its axis.
  """

  def one(path, leaf):
    name = _name(path)
    if not _is_param_name(name) or _is_factor(path, leaf):
      return jax.sharding.NamedSharding(mesh, P())
    spec = param_spec(name, leaf.ndim)
    for size, axis in zip(leaf.shape, spec, strict=False):
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(
          f"mesh.{axis}={mesh.shape[axis]} does not divide a dim of size "
          f"{size} in parameter {jax.tree_util.keystr(path)} of shape "
          f"{leaf.shape}; use a mesh.{axis} that does."
        )
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, params)


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs with these shardings, as restoring asks for them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Rows of a batch over all axes that hold distinct rows."""
  return jax.sharding.NamedSharding(mesh, P(BATCH_AXES))


def num_batch_shards(mesh: jax.sharding.Mesh | None = None) -> int:
  """In how many pieces the batch is cut: by `mesh`, or by the one that is set.

  1 where there is neither.
  """
  shape = (mesh or jax.sharding.get_abstract_mesh()).shape
  return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


def constrain(x: jax.Array, dims: str) -> jax.Array:
  """Pins the layout of activation `x`; a no-op where no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or math.prod(mesh.shape.values()) == 1:
    return x
  return jax.lax.with_sharding_constraint(
    x, P(*(ACTIVATION_RULES[d] for d in dims))
  )


def constrain_param(x: jax.Array, name: str) -> jax.Array:
  """Lays `x`, a parameter's gradient, out as that parameter is."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, param_spec(name, x.ndim))


def _name(path) -> str:
  """The last dict key on a tree path."""
  keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
  return str(keys[-1]) if keys else ""


def _is_factor(path, leaf) -> bool:
  """Whether it is of a second moment by rows and columns (Adafactor): small."""
  attributes = {k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)}
  is_rest = leaf.ndim < len(param_dims(_name(path)))
  return bool(attributes & {"v_row", "v_col"}) or is_rest


def _is_param_name(name: str) -> bool:
  stem, _, dims = name.rpartition("_")
  return bool(stem) and bool(dims) and set(dims) <= set(PARAM_RULES)


def put_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """This process's rows of a batch -> global device arrays.

  Args:
    batch: Tree of numpy arrays [b, ...], b = this process's rows.
    mesh: The mesh to spread the rows over.
  """
  sharding = batch_sharding(mesh)

  def put(x: np.ndarray) -> jax.Array:
    shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x, shape)

  return jax.tree.map(put, batch)
