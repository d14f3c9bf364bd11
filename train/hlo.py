"""What a compiled program's text says: a reader of XLA's HLO.

Only what a report needs: computations, their instructions with shapes, operands
and attributes, and how often each runs. The text is that of
jax.stages.Compiled.as_text(), in the order in which the device executes it.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = {
  dtype: bits
  for bits, dtypes in {
    4: "s4 u4 f4e2m1fn",
    8: "pred s8 u8 f8e4m3fn f8e5m2 f8e4m3 f8e8m0fnu",
    16: "s16 u16 bf16 f16",
    32: "s32 u32 f32",
    64: "s64 u64 f64",
  }.items()
  for dtype in dtypes.split()
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
  """One array of a shape.

  Attributes:
    dims: Its sizes.
    num_bytes: All of it.
    in_hbm: It lies in the device's large memory, not in a small fast one.
  """

  dims: tuple[int, ...]
  num_bytes: float
  in_hbm: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line.

  Attributes:
    name: Unique in the module.
    arrays: Of its result; several where that is a tuple.
    opcode: Such as `fusion`.
    operands: Names of instructions of the same computation.
    attributes: All that follows the operands, as text.
    is_root: Its computation's result.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute such as `body` names."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return match[1] if match else None

  @functools.cached_property
  def cycles(self) -> float:
    """The compiler's estimate of its time, where it has one."""
    match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    cycles = float(match[1]) if match else 0.0
    return cycles if cycles < 1e15 else 0.0  # More is "do not know".


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
  """A program: computations by name, their instructions in order."""

  computations: dict[str, tuple[Instruction, ...]]
  entry: str

  def trips(self, loop: Instruction) -> int | None:
    """How often a `while` runs; None: not known before it does.

    The condition of a loop over a range compares with a constant.
    """
    name = loop.called("condition")
    assert name is not None, loop
    return self._bound(name)

  def _bound(self, computation: str) -> int | None:
    bounds = []
    for instruction in self.computations[computation]:
      if instruction.opcode == "constant":
        match = re.match(r"(\d+)\)", instruction.attributes)
        bounds += [int(match[1])] if match else []
      inner = instruction.called("calls")
      if inner is not None:
        bounds += [self._bound(inner)]
    return max((bound for bound in bounds if bound is not None), default=None)

  def executed(self) -> Iterator[tuple[str, int]]:
    """(computation, how often it runs): the entry's, and those of loops.

    Of branches, each counts. A loop of unknown length counts once.
    """
    yield from self._executed(self.entry, 1)

  def _executed(
    self, computation: str, times: int
  ) -> Iterator[tuple[str, int]]:
    yield computation, times
    for instruction in self.computations[computation]:
      match instruction.opcode:
        case "while":
          body = instruction.called("body")
          assert body is not None, instruction
          trips = self.trips(instruction)
          yield from self._executed(body, times * (trips or 1))
        case "conditional":
          for name in self._branches(instruction):
            yield from self._executed(name, times)
        case "call":
          name = instruction.called("to_apply")
          if name is not None:
            yield from self._executed(name, times)

  def _branches(self, instruction: Instruction) -> list[str]:
    match = re.search(
      r"branch_computations=\{([^}]*)\}", instruction.attributes
    )
    names = match[1].split(",") if match else []
    for attribute in ("true_computation", "false_computation"):
      name = instruction.called(attribute)
      names += [name] if name else []
    return [name.strip().lstrip("%") for name in names]

  def inside(self, computation: str) -> Iterator[Instruction]:
    """Instructions of a computation and of all that it calls."""
    for instruction in self.computations[computation]:
      yield instruction
      for attribute in ("calls", "to_apply"):
        name = instruction.called(attribute)
        if name in self.computations and instruction.opcode != "all-reduce":
          yield from self.inside(name)


def parse(text: str) -> Module:
  """Reads a module.

  Instructions with attributes of several lines (kernels' metadata) keep the
  first line's.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header is not None:
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif current is not None:
      instruction = _instruction(line)
      if instruction is not None:
        current.append(instruction)
  if not entry:
    raise ValueError("This is no text of an HLO module: it has no ENTRY.")
  return Module(
    computations={name: tuple(lines) for name, lines in computations.items()},
    entry=entry,
  )


def arrays(shape: str) -> tuple[Array, ...]:
  """Those of a shape, which may be a (nested) tuple."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(shape):
    if dtype not in _BITS:
      continue
    sizes = tuple(int(size) for size in dims.split(",") if size)
    memory = re.search(r"S\((\d+)\)", layout)
    found.append(
      Array(
        dims=sizes,
        num_bytes=math.prod(sizes) * _BITS[dtype] / 8,
        in_hbm=memory is None or memory[1] == "0",
      )
    )
  return tuple(found)


def _instruction(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if match is None:
    return None
  name, rest = match[1], match[2]
  end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
  opcode = _OPCODE.match(rest, end)
  if opcode is None:
    return None
  stop = _closing(rest, opcode.end() - 1) - 1
  inner = rest[opcode.end() : stop]
  # A constant has its value there.
  is_value = opcode[1] in ("constant", "parameter", "iota")
  operands = () if is_value else tuple(re.findall(r"%([\w.\-]+)", inner))
  start = opcode.end() if is_value else stop + 1
  return Instruction(
    name=name,
    arrays=arrays(rest[:end]),
    opcode=opcode[1],
    operands=operands,
    attributes=rest[start:],
    is_root=line.lstrip().startswith("ROOT "),
  )


def _closing(text: str, start: int) -> int:
  """Behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i + 1
  return len(text)
