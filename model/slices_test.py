"""Which device lies where in a mesh of slices, and who gives which rows."""

import dataclasses
import math
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import slices

_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
  """As much of a device as is looked at."""

  id: int
  slice_index: int = 0
  process_index: int = 0
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v6 lite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """As much of a mesh as is looked at."""

  devices: np.ndarray
  axis_names: tuple[str, ...] = _AXES

  @property
  def shape(self):
    return dict(zip(self.axis_names, self.devices.shape, strict=True))

  @property
  def local_devices(self):
    return [d for d in self.devices.flat if d.process_index == 0]


def on_hosts(array, num_hosts) -> Any:
  """A mesh of devices numbered so; each host has a run of the numbers."""
  per_host = np.size(array) // num_hosts
  make = np.vectorize(
    lambda i: Device(id=i, process_index=i // per_host), otypes=[object]
  )
  return Mesh(devices=make(np.array(array)))


class SlicesTest(parameterized.TestCase):
  def test_count(self):
    devices = [Device(id=i, slice_index=i // 4) for i in range(8)]
    self.assertEqual(slices.count(devices), 2)
    self.assertIsNone(slices.count(jax.devices()))

  @parameterized.parameters(
    # data goes over slices, everything else stays in one.
    ({"data": 4, "fsdp": 4, "tensor": 1}, {"data": 2}, (2, 1, 1)),
    ({"data": 2, "fsdp": 4, "tensor": 2}, {"data": 2}, (1, 1, 1)),
    ({"data": 1, "fsdp": 8, "tensor": 2}, {"fsdp": 2}, (1, 4, 1)),
    ({"data": 4, "fsdp": 4, "tensor": 1}, {"data": 2, "fsdp": 2}, (2, 2, 1)),
  )
  def test_slices_are_blocks_of_the_mesh(self, sizes, across, block):
    num_slices = math.prod(across.values())
    # Not in order: what counts is the slice that a device says it is of.
    devices = [
      Device(
        id=i,
        slice_index=i % num_slices,
        coords=(i // num_slices % 2, i // num_slices // 2, 0),
      )
      for i in range(16)
    ]
    made = slices.arrange(devices, sizes, across)
    self.assertEqual(made.shape, tuple(sizes.values()))
    self.assertCountEqual(made.flat, devices)
    outer = [across.get(axis, 1) for axis in sizes]
    for place in np.ndindex(*outer):
      part = made[
        tuple(
          slice(p * size, (p + 1) * size)
          for p, size in zip(place, block, strict=True)
        )
      ]
      self.assertEqual(
        {device.slice_index for device in part.flat},
        {int(np.ravel_multi_index(place, outer))},
      )

  def test_without_slices_runs_of_devices_stand_for_them(self):
    devices = jax.devices()
    made = slices.arrange(devices, {"data": 2, "fsdp": 4}, {"fsdp": 2})
    ids = [[device.id for device in row] for row in made]
    self.assertEqual(ids, [[0, 1, 4, 5], [2, 3, 6, 7]])

  @parameterized.parameters(
    # [data, fsdp, tensor]; parts of the two hosts.
    (np.arange(8).reshape(2, 4, 1), [(0, 1, 2, 3), (4, 5, 6, 7)]),
    (
      np.array([0, 1, 4, 5, 2, 3, 6, 7]).reshape(2, 4, 1),
      [(0, 1, 4, 5), (2, 3, 6, 7)],
    ),
    # Two hosts share out the heads of the same rows.
    (np.arange(4).reshape(2, 1, 2).transpose(2, 1, 0), [(0, 1), (0, 1)]),
    (np.arange(8).reshape(1, 1, 8), [(0,), (0,)]),
  )
  def test_rows_of_hosts(self, array, parts):
    mesh = on_hosts(array, 2)
    for process, part in enumerate(parts):
      rows = slices.rows_of_host(mesh, ("data", "fsdp"), process)
      distinct = sorted(set(parts))
      self.assertEqual(rows.shards, part)
      self.assertEqual(rows.count, len(distinct))
      self.assertEqual(rows.index, distinct.index(part))
      self.assertEqual(rows.is_first, parts.index(part) == process)

  def test_parts_that_overlap(self):
    # Three hosts of two devices, rows over pairs that cross them.
    mesh = on_hosts(np.array([[[0, 1, 2]], [[3, 4, 5]]]), 3)
    with self.assertRaisesRegex(ValueError, "mesh.data=2, mesh.fsdp=1: some"):
      slices.rows_of_host(mesh, ("data", "fsdp"), 0)


if __name__ == "__main__":
  absltest.main()
