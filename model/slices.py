"""Devices laid out as a mesh: which neighbours are near, which axes cross DCN.

Chips of one TPU slice talk over links of their own (ICI), slices over the data
centre's network (DCN), some 20 times slower. An axis that crosses it is cut:
its outer part goes over slices, its inner part over the chips of each. Only
axes whose traffic is small may (`data`: one reduction of gradients a step;
`fsdp`: the parameters too).

The hosts of a mesh are another matter: each has the rows of the batch that its
devices take, which are the same on hosts that share out one row's work.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostRows:
  """A host's part of each batch.

  Attributes:
    index: The number of the part.
    count: Of how many; hosts with equal parts share their number.
    is_first: Whether this host is the first of those with the part.
    shards: Which of the batch's shards it is, ascending.
  """

  index: int
  count: int
  is_first: bool
  shards: tuple[int, ...]


def count(devices: Sequence[Any]) -> int | None:
  """Slices of the devices; None where there is no such thing (CPUs, GPUs)."""
  if devices[0].platform != "tpu":
    return None
  return len({_slice(device) for device in devices})


def arrange(
  devices: Sequence[Any], sizes: Mapping[str, int], across: Mapping[str, int]
) -> np.ndarray:
  """The devices as an array of the mesh's shape.

  Args:
    devices: All of the mesh; without slices, equal runs of them stand for one.
    sizes: Size of each axis, outermost first.
    across: Over how many slices an axis goes; those that are left out: one.

  Returns:
    An array of devices; dim i is axis i of `sizes`.
  """
  outer = [across.get(axis, 1) for axis in sizes]
  inner = [size // n for size, n in zip(sizes.values(), outer, strict=True)]
  num_slices = math.prod(outer)
  assert num_slices * math.prod(inner) == len(devices), (sizes, across)
  groups: dict[int, list[Any]] = {}
  for i, device in enumerate(devices):
    number = i * num_slices // len(devices)
    if device.platform == "tpu":
      number = _slice(device)
    groups.setdefault(number, []).append(device)
  blocks = [
    mesh_utils.create_device_mesh(
      inner, groups[number], allow_split_physical_axes=True
    )
    for number in sorted(groups)
  ]
  # [*outer, *inner] -> outer and inner part of each axis side by side.
  stacked = np.stack(blocks).reshape(*outer, *inner)
  order = [i for pair in zip(*_halves(len(outer)), strict=True) for i in pair]
  return stacked.transpose(order).reshape(tuple(sizes.values()))


def _slice(device: Any) -> int:
  """Its slice; a slice that is only described (//train:compile) is one."""
  return getattr(device, "slice_index", 0)


def rows_of_host(
  mesh: jax.sharding.Mesh, batch_axes: Sequence[str], process: int
) -> HostRows:
  """Which rows of each batch a process has to give.

  Args:
    mesh: Any.
    batch_axes: The axes that the batch is spread over, outermost first.
    process: Number of the process.

  Raises:
    ValueError: The parts of two processes overlap, or differ in size.
  """
  names = [axis for axis in batch_axes if axis in mesh.shape]
  dims = [mesh.axis_names.index(axis) for axis in names]
  shape = [mesh.shape[axis] for axis in names]
  held: dict[int, set[int]] = {}
  for place, device in np.ndenumerate(mesh.devices):
    shard = 0
    for dim, size in zip(dims, shape, strict=True):
      shard = shard * size + place[dim]
    held.setdefault(device.process_index, set()).add(shard)
  parts = sorted({tuple(sorted(shards)) for shards in held.values()})
  lengths = {len(part) for part in parts}
  if sum(map(len, parts)) != math.prod(shape) or len(lengths) > 1:
    axes = ", ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in names)
    raise ValueError(
      f"{axes}: some hosts would hold a part of another's rows of the batch; "
      "make the other axes divide, or be a multiple of, the "
      f"{len(mesh.local_devices)} devices of a host."
    )
  mine = tuple(sorted(held[process]))
  alike = [p for p, shards in held.items() if tuple(sorted(shards)) == mine]
  return HostRows(
    index=parts.index(mine),
    count=len(parts),
    is_first=process == min(alike),
    shards=mine,
  )


def _halves(n: int) -> tuple[range, range]:
  return range(n), range(n, 2 * n)
