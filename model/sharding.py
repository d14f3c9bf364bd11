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
import functools
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from model import slices

# Mesh axes, outermost (slowest links) first.
AXES = ("data", "fsdp", "expert", "context", "tensor")
# The axis whose devices hold pieces of each sequence.
CONTEXT = "context"

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

# Activations: the batch is spread over every axis that holds distinct rows, a
# sequence over the axis of its pieces.
ACTIVATION_RULES = {
  "B": BATCH_AXES,
  "T": CONTEXT,
  "S": None,
  "D": None,
  "H": None,
  "C": None,
  "R": None,
  "M": None,
  "L": None,
  "N": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
}

# Where a mixer walks along a sequence: it lies in one piece, and its heads on
# the axis of the pieces too.
WHOLE_SEQUENCE_RULES = ACTIVATION_RULES | {
  "T": None,
  "N": ("tensor", CONTEXT),
  "K": ("tensor", CONTEXT),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices per mesh axis; `fsdp=None` takes all that the others leave.

  Attributes:
    data: Replicas of the parameters; each has its own rows of the batch.
    fsdp: Shards of parameters, gradients and optimizer state (ZeRO-3).
    expert: Shards of the experts; each has its own rows of the batch too.
    context: Pieces of every sequence (kernels/attention_context.py).
    tensor: Shards of heads, feed-forward and vocabulary.
    dcn_data: Slices of a TPU job that `data` goes over, a part of its size;
      unset: those that `dcn_fsdp` leaves. Elsewhere, equal runs of devices.
    dcn_fsdp: Slices that `fsdp` goes over.
  """

  data: int = 1
  fsdp: int | None = None
  expert: int = 1
  context: int = 1
  tensor: int = 1
  dcn_data: int | None = None
  dcn_fsdp: int = 1

  def __post_init__(self):
    for axis in (*AXES, "dcn_data", "dcn_fsdp"):
      size = getattr(self, axis)
      if size is not None and size < 1:
        raise ValueError(f"mesh.{axis}={size} must be at least 1.")


def make_mesh(config: MeshConfig, devices: list[Any]) -> jax.sharding.Mesh:
  """The mesh of `devices` that `config` describes.

  Raises:
    ValueError: The product of the axes is not the number of devices, or axes
      do not go over their slices.
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
  arranged = slices.arrange(devices, sizes, _across(config, sizes, devices))
  return jax.sharding.Mesh(arranged, AXES, axis_types=auto)


def _across(
  config: MeshConfig, sizes: dict[str, int], devices: list[Any]
) -> dict[str, int]:
  """Over how many slices each axis goes."""
  found = slices.count(devices)
  num_slices = found or (config.dcn_data or 1) * config.dcn_fsdp
  data = config.dcn_data or max(1, num_slices // config.dcn_fsdp)
  across = {"data": data, "fsdp": config.dcn_fsdp}
  if math.prod(across.values()) != num_slices:
    raise ValueError(
      f"mesh.dcn_data={data} * mesh.dcn_fsdp={config.dcn_fsdp} must be the "
      f"number of slices, {num_slices}; leave mesh.dcn_data unset to let it "
      "take what mesh.dcn_fsdp leaves."
    )
  for axis, n in across.items():
    if sizes[axis] % n:
      raise ValueError(
        f"mesh.{axis}={sizes[axis]} must be a multiple of mesh.dcn_{axis}={n}, "
        f"the slices that it goes over; of {num_slices} slices in all, set "
        f"mesh.data={num_slices} or a multiple, or mesh.dcn_fsdp={num_slices}."
      )
  return across


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


def num_context_shards() -> int:
  """In how many pieces the mesh that is set cuts a sequence."""
  return jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1)


def axes_of(dim: str, size: int) -> tuple[str, ...] | None:
  """The axes of the mesh that is set on which a dim of an activation lies.

  None where they do not divide its size.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rule = ACTIVATION_RULES[dim]
  axes = (rule,) if isinstance(rule, str) else rule or ()
  axes = tuple(axis for axis in axes if axis in mesh.shape)
  return None if size % math.prod(mesh.shape[a] for a in axes) else axes


def constrain(
  x: jax.Array, dims: str, *, rules: dict[str, Any] | None = None
) -> jax.Array:
  """Pins the layout of activation `x`; a no-op where no mesh is set.

  Args:
    x: The activation.
    dims: A letter for each of its dims.
    rules: Where they lie; ACTIVATION_RULES, but that a sequence which `context`
      does not divide lies in one piece.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or math.prod(mesh.shape.values()) == 1:
    return x
  if rules is None:
    rules = ACTIVATION_RULES
    if any(
      d == "T" and axes_of(d, size) is None
      for d, size in zip(dims, x.shape, strict=True)
    ):
      rules = rules | {"T": None}
  return jax.lax.with_sharding_constraint(x, P(*(rules[d] for d in dims)))


def replicate(x: jax.Array) -> jax.Array:
  """All of `x` on every device, where any host may read it."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P())


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
  rows = host_rows(mesh)

  def put(x: np.ndarray) -> jax.Array:
    shape = (x.shape[0] * rows.count, *x.shape[1:])
    per_shard = x.shape[0] // len(rows.shards)

    def shard(index: Any) -> np.ndarray:
      start = rows.shards.index((index[0].start or 0) // per_shard) * per_shard
      return x[(slice(start, start + per_shard), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, shard)

  return jax.tree.map(put, batch)


@functools.cache
def host_rows(mesh: jax.sharding.Mesh) -> slices.HostRows:
  """Which rows of each batch this process gives to `put_batch`.

  Where a host's shards do not follow one another on the mesh, the batch's rows
  lie on the devices in another order than they have in the data. Nothing
  depends on it.

  Raises:
    ValueError: The hosts' parts overlap.
  """
  return slices.rows_of_host(mesh, BATCH_AXES, jax.process_index())
