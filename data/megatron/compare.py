"""What differs between what Cacao made and what Megatron did, case by case."""

import collections.abc
import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """Of one case.

  Attributes:
    name: such as "gpt/g00".
    differences: what is not equal, or why it could not be compared; empty if
      the case passes.
    num_compared: values and arrays compared.
  """

  name: str
  differences: tuple[str, ...]
  num_compared: int


class Compare:
  """Collects the differences of a case.

  Each array and field of the case must be asked for: what nobody asks for is a
  difference, too.

  Args:
    name: of the case, such as "gpt/g00".
    arrays: by their full names, such as "gpt/g00/text".
  """

  def __init__(self, name: str, arrays: collections.abc.Mapping[str, Any]):
    self._name = name
    self._arrays = arrays
    self._unseen = {n for n in arrays if n.startswith(f"{name}/")}
    self._differences: list[str] = []
    self._num_compared = 0

  def array(self, name: str, ours: np.ndarray, *, dtype: bool = True) -> None:
    """Compares an array, which must be there.

    Args:
      name: of the array, in the case.
      ours: what it should be.
      dtype: its dtype must be that of ours.
    """
    theirs = self.read(name)
    self._num_compared += 1
    # Texts are kept as int32, whatever the tokens are.
    if not dtype:
      ours = ours.astype(theirs.dtype)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
      self._differences.append(
        f"{name} is {ours.dtype}{list(ours.shape)}, not"
        f" {theirs.dtype}{list(theirs.shape)}"
      )
    elif not np.array_equal(ours, theirs):
      places = np.argwhere(ours != theirs)
      place = tuple(places[0].tolist())
      self._differences.append(
        f"{name}{list(place)} is {ours[place]}, not {theirs[place]};"
        f" {len(places)} of {ours.size} differ"
      )

  def read(self, name: str) -> np.ndarray:
    """An array, which must be there."""
    full = f"{self._name}/{name}"
    if full not in self._arrays:
      raise ValueError(f"there is no array {full}")
    self._unseen.discard(full)
    return self._arrays[full]

  def value(self, name: str, ours: Any, theirs: Any) -> None:
    """Compares a value."""
    self._num_compared += 1
    # 1 and 1.0 are equal here, 1 and true are not.
    same_kind = isinstance(ours, bool) == isinstance(theirs, bool)
    if ours != theirs or not same_kind:
      self._differences.append(f"{name} is {ours}, not {theirs}")

  def fields(
    self,
    case: dict,
    *,
    given: collections.abc.Collection[str],
    required: dict[str, Any],
    optional: dict[str, Any] | None = None,
    where: str = "",
  ) -> None:
    """Compares all fields of a case.

    Args:
      case: the fields.
      given: names of those that say what the case is.
      required: what must be there, and what it should be.
      optional: what may be there.
      where: what the fields are of, if not of the case as a whole.
    """
    ours = {**required, **(optional or {})}
    for name, value in ours.items():
      if name in case:
        self.value(f"{where}{name}", value, case[name])
      elif name in required:
        self._differences.append(f"{where}{name} is missing")
    for name in case:
      if name not in ours and name not in given:
        self._differences.append(
          f"{where}{name} is no known field of such a case"
        )

  def result(self) -> Result:
    unseen = [f"{name} is no known array" for name in sorted(self._unseen)]
    return Result(
      name=self._name,
      differences=(*self._differences, *unseen),
      num_compared=self._num_compared,
    )
