"""TPU slices by name, without a TPU: their devices, memory and speed.

A name is what a slice is rented by: `v5e-256` and `v6e-256` count chips,
`v5p-256` and `7x-256` count cores, of which their chips have two. JAX sees a
v5p chip as one device and a 7x chip as two. Any shape may be given instead of a
number, in chips: `v5p:4x4x8`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
  """What all slices of one generation share.

  Attributes:
    platform_name: libtpu's.
    device_kind: JAX's, of its devices.
    hbm_bytes: What the compiler lets a program have per device, as it says
      when one asks for more (libtpu 0.0.50.1).
    peak_flops: Published, dense bf16, per device.
    hbm_rate: Published bytes per second of a device's memory.
    clock: Hz of the compiler's cycles; 0: not known.
    devices_per_chip: As JAX counts them.
    units_per_chip: As the names count.
    shapes: Chips along each axis, by the number in the name.
  """

  platform_name: str
  device_kind: str
  hbm_bytes: float
  peak_flops: float
  hbm_rate: float
  clock: float
  devices_per_chip: int = 1
  units_per_chip: int = 1
  shapes: tuple[str, ...]


_GIB = 2.0**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
  *("8x8x8", "8x8x16", "8x16x16", "16x16x16"),
)

# Peaks and memory rates: Google Cloud's pages on each generation. Clocks are
# those at which the compiler's cycles of one large matmul fit the peak.
GENERATIONS = {
  "v5e": Generation(
    platform_name="v5e",
    device_kind="TPU v5 lite",
    hbm_bytes=15.75 * _GIB,
    peak_flops=197e12,
    hbm_rate=819e9,
    clock=1.5e9,
    shapes=_FLAT,
  ),
  "v6e": Generation(
    platform_name="v6e",
    device_kind="TPU v6 lite",
    hbm_bytes=31.24 * _GIB,
    peak_flops=918e12,
    hbm_rate=1640e9,
    clock=1.75e9,
    shapes=_FLAT,
  ),
  "v5p": Generation(
    platform_name="v5p",
    device_kind="TPU v5",
    hbm_bytes=95.73 * _GIB,
    peak_flops=459e12,
    hbm_rate=2765e9,
    clock=1.75e9,
    units_per_chip=2,
    shapes=_CUBES,
  ),
  "7x": Generation(
    platform_name="tpu7x",
    device_kind="TPU7x",
    hbm_bytes=94.74 * _GIB,
    peak_flops=1153.5e12,
    hbm_rate=3690e9,
    clock=0.0,
    devices_per_chip=2,
    units_per_chip=2,
    shapes=_CUBES,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """One slice.

  Attributes:
    name: As it was asked for.
    generation: What it is made of.
    shape: Chips along each axis of its network, such as `16x16`.
  """

  name: str
  generation: Generation
  shape: str

  @property
  def num_devices(self) -> int:
    return _num_chips(self.shape) * self.generation.devices_per_chip


def parse(name: str) -> Topology:
  """The slice of that name.

  Raises:
    ValueError: There is none; names the nearest ones.
  """
  separator = ":" if ":" in name else "-"
  prefix, _, size = name.partition(separator)
  if prefix not in GENERATIONS:
    raise ValueError(
      f"--topology={name}: {prefix!r} is none of {', '.join(GENERATIONS)}; "
      "name a slice such as v6e-256 or v5p:4x4x8."
    )
  generation = GENERATIONS[prefix]
  if separator == ":":
    num_axes = len(generation.shapes[0].split("x"))
    axes = size.split("x")
    good = all(axis.isdigit() and int(axis) > 0 for axis in axes)
    if len(axes) != num_axes or not good:
      raise ValueError(
        f"--topology={name}: {size!r} is no shape; chips along {num_axes} axes "
        f"are meant, such as {prefix}:{generation.shapes[3]}."
      )
    return Topology(name=name, generation=generation, shape=size)
  by_size = {
    _num_chips(shape) * generation.units_per_chip: shape
    for shape in generation.shapes
  }
  if not size.isdigit() or int(size) not in by_size:
    wanted = int(size) if size.isdigit() else 0
    nearest = sorted(by_size, key=lambda number: abs(number - wanted))[:3]
    shown = ", ".join(f"{prefix}-{number}" for number in sorted(nearest))
    raise ValueError(
      f"--topology={name}: there is no slice of {size!r}; the nearest are "
      f"{shown}. Other shapes: {prefix}:{generation.shapes[3]} and so on."
    )
  return Topology(name=name, generation=generation, shape=by_size[int(size)])


def devices(topology: Topology) -> list[Any]:
  """The slice's devices, to compile for; libtpu describes them.

  Call it before JAX has started: it makes the CPU JAX's own platform.

  Raises:
    ValueError: libtpu is not installed, or knows no such slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology={topology.name} needs libtpu, the TPU compiler, which is "
      "not among the installed packages. It comes with --config=tpu: bazel run "
      "--config=tpu //train:compile -- ...; outside Bazel: pip install "
      "'jax[tpu]'. No TPU is needed."
    )
  # libtpu would ask the network which machine this is, lock itself against a
  # second process, and write logs.
  os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
  }
  jax.config.update("jax_platforms", "cpu")
  description = f"{topology.generation.platform_name}:{topology.shape}"
  try:
    return list(topologies.get_topology_desc(description, "tpu").devices)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"--topology={topology.name}: libtpu cannot describe {description} "
      f"({str(error).splitlines()[0]}). Choose another shape, such as "
      f"{topology.name.split(':')[0].split('-')[0]}:"
      f"{topology.generation.shapes[3]}."
    ) from error


def version() -> str:
  """Of libtpu."""
  return importlib.metadata.version("libtpu")


def _num_chips(shape: str) -> int:
  return math.prod(int(axis) for axis in shape.split("x"))
