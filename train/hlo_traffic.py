"""Collectives and memory traffic of a compiled program.

Sizes are per device. A collective's is that of the whole array: what is
gathered, reduced, or sent. Asynchronous is one that the schedule starts in one
place and waits for in another; the work between is what hides it. TPUs have
three forms of that: `x-start` and `x-done`; calls that run on the SparseCore;
and fusions that carry a collective along with a matmul.
"""

import collections
import dataclasses
import re

from train import hlo

KINDS = (
  *("all-gather", "reduce-scatter", "all-reduce", "all-to-all"),
  *("ragged-all-to-all", "collective-permute"),
)
# What computes nothing and moves nothing.
_FREE = frozenset(
  {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call", "after-all", "partition-id"),
    *("opt-barrier", "domain", "add-dependency"),
  }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """Collectives of one kind over groups of one size.

  Attributes:
    kind: One of `KINDS`.
    group_size: Devices that take part together; 0: pairs.
    count: Executions in one run of the program.
    num_bytes: Of all of them.
    asynchronous_bytes: Of those that are started before they are waited for.
    overlapped_bytes: Of those with estimated compute in between.
    compute_cycles: That compute, as the compiler estimates it.
  """

  kind: str
  group_size: int
  count: int
  num_bytes: float
  asynchronous_bytes: float
  overlapped_bytes: float
  compute_cycles: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _One:
  """A collective where it is scheduled."""

  kind: str
  group_size: int
  num_bytes: float
  is_asynchronous: bool = False
  compute_cycles: float = 0.0


def collectives(module: hlo.Module) -> list[Collective]:
  """What one run of the program communicates, largest first."""
  groups = collections.defaultdict(list)
  for computation, times in module.executed():
    for one in _scheduled(module, computation):
      groups[one.kind, one.group_size].append((one, times))
  found = [
    Collective(
      kind=kind,
      group_size=group_size,
      count=sum(times for _, times in ones),
      num_bytes=sum(one.num_bytes * times for one, times in ones),
      asynchronous_bytes=sum(
        one.num_bytes * times for one, times in ones if one.is_asynchronous
      ),
      overlapped_bytes=sum(
        one.num_bytes * times for one, times in ones if one.compute_cycles > 0
      ),
      compute_cycles=sum(one.compute_cycles * times for one, times in ones),
    )
    for (kind, group_size), ones in groups.items()
  ]
  return sorted(found, key=lambda one: -one.num_bytes)


def _scheduled(module: hlo.Module, computation: str) -> list[_One]:
  """The collectives that this computation itself starts."""
  found = []
  lines = module.computations[computation]
  for place, line in enumerate(lines):
    one = _collective(module, line)
    if one is None:
      continue
    done = _done(lines, place)
    if done is not None:
      between = sum(other.cycles for other in lines[place + 1 : done])
      one = dataclasses.replace(
        one, is_asynchronous=True, compute_cycles=between
      )
    found.append(one)
  return found


def _collective(module: hlo.Module, line: hlo.Instruction) -> _One | None:
  """What `line` communicates, if it does."""
  if _kind(line) is not None:
    return _describe(line)
  inner = None
  if line.opcode in ("call-start", "async-start"):
    inner = line.called("to_apply") or line.called("calls")
  elif line.opcode == "fusion" and _carries(line):
    inner = line.called("calls")
  if inner is None:
    return None
  for instruction in module.inside(inner):
    if _kind(instruction) is not None:
      return _describe(
        instruction, scatters="all-reduce-scatter" in str(line.called("calls"))
      )
  return None


def _carries(line: hlo.Instruction) -> bool:
  """Fusions that are, or start, a collective.

  Those that go on with one, or end it, hold it too: they do not count.
  """
  calls = str(line.called("calls"))
  return line.name.startswith("async-collective-start") or calls.startswith(
    ("all-reduce-scatter", "all-gather", "reduce-scatter", "all-reduce")
  )


def _kind(line: hlo.Instruction) -> str | None:
  name = line.opcode.removesuffix("-start")
  return name if name in KINDS else None


def _describe(line: hlo.Instruction, *, scatters: bool = False) -> _One:
  kind = _kind(line)
  assert kind is not None, line
  group_size = _group_size(line.attributes)
  sizes = [array.num_bytes for array in line.arrays]
  if line.opcode.endswith("-start"):
    # (operands, results, ...): the result is the larger, or the same.
    num_bytes = max(sizes)
  else:
    num_bytes = sum(sizes)
  if kind == "reduce-scatter":
    num_bytes *= max(1, group_size)
  if kind == "all-reduce" and scatters:
    kind = "reduce-scatter"
  return _One(kind=kind, group_size=group_size, num_bytes=num_bytes)


def _group_size(attributes: str) -> int:
  """Of `replica_groups`, in any of the ways in which they are written."""
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
  if mesh is not None:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    size = 1
    for axis in re.findall(r"'(\w+)'", mesh[2]):
      size *= int(sizes[axis])
    return size
  tiles = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
  if tiles is not None:
    return int(tiles[1])
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  return len(listed[1].split(",")) if listed is not None else 0


def _done(lines: tuple[hlo.Instruction, ...], place: int) -> int | None:
  """Where what starts at `place` is waited for; None: it is not apart."""
  start = lines[place]
  if start.name.startswith("async-collective-start"):
    wanted = start.name.replace("-start", "-done", 1)
    for i in range(place + 1, len(lines)):
      if lines[i].name == wanted:
        return i
    return None
  if not start.opcode.endswith("-start"):
    return None
  names = {start.name}
  for i in range(place + 1, len(lines)):
    if names & set(lines[i].operands):
      if lines[i].opcode.endswith("-done"):
        return i
      if lines[i].opcode.endswith("-update"):
        names.add(lines[i].name)
  return None


def cycles(module: hlo.Module) -> float:
  """The compiler's estimate of compute; no collectives, no Pallas kernels."""
  return sum(
    times * line.cycles
    for computation, times in module.executed()
    for line in module.computations[computation]
  )


def unknown_loops(module: hlo.Module) -> int:
  """Loops whose length is not known, which therefore count once."""
  return sum(
    line.opcode == "while" and module.trips(line) is None
    for computation, _ in module.executed()
    for line in module.computations[computation]
  )


def num_kernels(module: hlo.Module) -> int:
  """Pallas kernels in the program's text."""
  return sum(
    line.opcode == "custom-call" and "tpu_custom_call" in line.attributes
    for lines in module.computations.values()
    for line in lines
  )


def memory_bytes(module: hlo.Module) -> float:
  """Read from and written to the device's large memory.

  Operands and results of every instruction, where they lie there. Of an operand
  that is only sliced, and a result of which only a slice is updated in place,
  the slice counts: that is how a loop uses the stacked arrays of its layers.
  """
  total = 0.0
  for computation, times in module.executed():
    lines = module.computations[computation]
    by_name = {line.name: line for line in lines}
    total += times * sum(_traffic(module, line, by_name) for line in lines)
  return total


def _traffic(
  module: hlo.Module,
  line: hlo.Instruction,
  by_name: dict[str, hlo.Instruction],
) -> float:
  if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
    return 0.0
  if line.opcode.endswith("-start"):
    # Of operand and result, those that lie there; the rest are semaphores.
    return sum(array.num_bytes for array in line.arrays if array.in_hbm)
  operands = [by_name[name].arrays for name in line.operands if name in by_name]
  read = [sum(a.num_bytes for a in arrays if a.in_hbm) for arrays in operands]
  written = sum(array.num_bytes for array in line.arrays if array.in_hbm)
  match line.opcode:
    case "dynamic-slice" | "slice" | "gather":
      return written + min(sum(read[:1]), written)
    case "dynamic-update-slice":
      return 2 * sum(read[1:2])
    case "fusion":
      inner = line.called("calls")
      if inner is not None:
        return _fusion_traffic(module.computations[inner], read, written)
  return sum(read) + written


def _fusion_traffic(
  lines: tuple[hlo.Instruction, ...], read: list[float], written: float
) -> float:
  """A fusion's, given the sizes of its operands and result."""
  total = 0.0
  for line in lines:
    if line.opcode == "parameter":
      number = int(line.attributes.partition(")")[0])
      size = read[number] if number < len(read) else 0.0
      users = [other for other in lines if line.name in other.operands]
      slices = [
        sum(array.num_bytes for array in user.arrays)
        for user in users
        if user.opcode == "dynamic-slice"
      ]
      is_updated = [
        user.opcode == "dynamic-update-slice" and user.operands[0] == line.name
        for user in users
      ]
      if users and len(slices) == len(users):
        size = min(size, sum(slices))
      elif users and all(is_updated):
        size = 0.0
      total += size
  by_name = {line.name: line for line in lines}
  updates = [line for line in lines if line.opcode == "dynamic-update-slice"]
  if updates:
    written = min(
      written,
      sum(
        array.num_bytes
        for line in updates
        for name in line.operands[1:2]
        if name in by_name
        for array in by_name[name].arrays
      ),
    )
  return total + written
