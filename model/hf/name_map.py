"""Which tensor of a Hugging Face folder is which parameter, and in what layout.

A `Rule` ties one tensor of theirs to one or more parameters of a block or of
the model. Most are a transposed matrix; the rest of the field's habits (fused
projections, heads that carry two things, one tensor per expert or all experts
in one) are told by `layout`, `inputs` and `groups`. A rule works on one layer
(and one expert, if theirs are apart), in both directions, and bit for bit.

Dims: E experts, L layers; letters of parameters as in model/README.md.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any, Literal

import numpy as np

from model import config as model_config
from model import sharding

Shape = tuple[int, ...]

# Rows and columns of what is transposed in one go.
_STRIP = 16
_STRIP_LENGTH = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """One tensor of theirs.

  Attributes:
    theirs: Its name; `{expert}` in it stands for an expert's index.
    ours: The parameters that it holds, without layer and expert dims.
    layout: `out_in`, a matrix [out, in] as torch's Linear; `in_out`, one
      [in, out]; `flat`, all dims in one; `same`, as ours; `depthwise`,
      [channels, 1, width].
    inputs: How many of ours' leading dims are inputs of the matmul.
    groups: Several parameters lie side by side in the output dim, once for each
      of so many groups: 1 for fused projections, the number of heads where each
      head has its own share of each, the width where they alternate.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: Literal["out_in", "in_out", "flat", "same", "depthwise"] = "out_in"
  inputs: int = 1
  groups: int = 1

  def their_shape(self, shapes: list[Shape]) -> Shape:
    """The shape of their tensor, of parameters of these shapes."""
    lead, num_in, outs = self._dims(shapes)
    total = sum(outs)
    match self.layout:
      case "out_in":
        return (*lead, total, num_in)
      case "in_out":
        return (*lead, num_in, total)
      case "flat":
        return (*lead, total)
      case "same":
        return shapes[0]
      case "depthwise":
        width = shapes[0][-1]
        return (total // width, 1, width)

  def to_ours(
    self, theirs: np.ndarray, shapes: list[Shape]
  ) -> list[np.ndarray]:
    """Their tensor as our parameters."""
    lead, num_in, outs = self._dims(shapes)
    if self.layout == "in_out":
      theirs = np.swapaxes(theirs, -1, -2)
    # [E?, groups, out / groups, in]
    grouped = theirs.reshape(*lead, self.groups, -1, num_in)
    ends = np.cumsum([out // self.groups for out in outs])[:-1]
    parts = np.split(grouped, ends, axis=-2)
    return [
      _transpose(part.reshape(*lead, -1, num_in)).reshape(shape)
      for part, shape in zip(parts, shapes, strict=True)
    ]

  def to_theirs(self, ours: list[np.ndarray]) -> np.ndarray:
    """The inverse of `to_ours`."""
    shapes = [x.shape for x in ours]
    lead, num_in, _ = self._dims(shapes)
    if self.layout == "in_out":
      parts = [x.reshape(*lead, num_in, self.groups, -1) for x in ours]
      fused = _concatenate(parts, axis=-1)
    else:
      parts = [
        _transpose(x.reshape(*lead, num_in, -1)).reshape(
          *lead, self.groups, -1, num_in
        )
        for x in ours
      ]
      fused = _concatenate(parts, axis=-2)
    return fused.reshape(self.their_shape(shapes))

  def _dims(self, shapes: list[Shape]) -> tuple[Shape, int, list[int]]:
    """Leading expert dim, size of the inputs, sizes of the outputs."""
    matrix = self.layout in ("out_in", "in_out")
    inputs = self.inputs if matrix else 0
    has_lead = sharding.param_dims(self.ours[0])[0] == "E" and (
      "{expert}" not in self.theirs
    )
    lead = shapes[0][:1] if has_lead and self.layout != "same" else ()
    rest = [shape[len(lead) :] for shape in shapes]
    num_in = math.prod(rest[0][:inputs])
    return lead, num_in, [math.prod(shape[inputs:]) for shape in rest]


def _concatenate(parts: list[np.ndarray], *, axis: int) -> np.ndarray:
  return np.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]


def _transpose(array: np.ndarray) -> np.ndarray:
  """The last two dims swapped, contiguous.

  Row-major matrices go strip by strip, so that the lines that a strip writes
  to stay in the cache: 7 times as fast as one strided copy.
  """
  flipped = np.swapaxes(array, -1, -2)
  rows, columns = array.shape[-2:]
  if columns == 1 or array.strides[-1] > array.strides[-2]:
    return np.ascontiguousarray(flipped)
  result = np.empty(flipped.shape, array.dtype)
  for i in range(0, rows, _STRIP):
    for j in range(0, columns, _STRIP_LENGTH):
      place = (..., slice(j, j + _STRIP_LENGTH), slice(i, i + _STRIP))
      result[place] = flipped[place]
  return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
  """A rule at its place: one tensor of theirs and slices of our parameters.

  Attributes:
    theirs: Full name of their tensor.
    rule: How it is laid out.
    ours: Full dotted names of the parameters.
    index: Of the slice on their stacked dims: layer, expert.
    shapes: Of the slices.
  """

  theirs: str
  rule: Rule
  ours: tuple[str, ...]
  index: tuple[int, ...]
  shapes: tuple[Shape, ...]

  @property
  def their_shape(self) -> Shape:
    return self.rule.their_shape(list(self.shapes))

  def to_ours(self, theirs: np.ndarray) -> list[np.ndarray]:
    """Their tensor as slices of our parameters."""
    return self.rule.to_ours(theirs, list(self.shapes))


def bind(
  config: model_config.ModelConfig,
  params: dict[str, Any],
  *,
  top: list[Rule],
  layers: list[list[Rule]],
) -> list[Binding]:
  """All bindings of a model, in the order of its layers.

  Args:
    config: The model.
    params: Its parameter tree, abstractly.
    top: Rules of what is outside the layers.
    layers: Rules of each layer, with parameters named as in a block.

  Raises:
    ValueError: A parameter is bound twice or never: the rules do not describe
      this model. Those of multi-token prediction are never bound.
  """
  leaves = {
    name: leaf.shape
    for name, leaf in sharding.named_leaves(params).items()
    if not name.startswith("mtp_")
  }
  bindings = [
    binding for rule in top for binding in _bind_rule(rule, "", (), leaves)
  ]
  for number, (prefix, row) in enumerate(places(config)):
    for rule in layers[number]:
      bindings += _bind_rule(rule, f"{prefix}.", (row,), leaves)
  bound: dict[str, int] = dict.fromkeys(leaves, 0)
  for binding in bindings:
    for name, shape in zip(binding.ours, binding.shapes, strict=True):
      bound[name] += math.prod(shape)
  wrong = [n for n, size in bound.items() if size != math.prod(leaves[n])]
  if wrong:
    raise ValueError(
      f"The name map does not cover {config.name!r}: parameters {wrong} are "
      "not bound exactly once."
    )
  return bindings


def places(config: model_config.ModelConfig) -> Iterator[tuple[str, int]]:
  """Of each layer, first to last: its block's dotted name and row in it."""
  for g, group in enumerate(config.groups):
    for row in range(group.repeats):
      for b in range(len(group.pattern)):
        yield f"group_{g}.block_{b}", row


def _bind_rule(
  rule: Rule, prefix: str, index: tuple[int, ...], leaves: dict[str, Shape]
) -> list[Binding]:
  names = tuple(prefix + name for name in rule.ours)
  unknown = [name for name in names if name not in leaves]
  if unknown:
    raise ValueError(
      f"The name map binds {rule.theirs!r} to {unknown}, which the model does "
      "not have."
    )
  shapes = [leaves[name][len(index) :] for name in names]
  if "{expert}" not in rule.theirs:
    return [
      Binding(
        theirs=rule.theirs,
        rule=rule,
        ours=names,
        index=index,
        shapes=tuple(shapes),
      )
    ]
  return [
    Binding(
      theirs=rule.theirs.replace("{expert}", str(expert)),
      rule=rule,
      ours=names,
      index=(*index, expert),
      shapes=tuple(shape[1:] for shape in shapes),
    )
    for expert in range(shapes[0][0])
  ]
