"""Keeps a constraint's errors apart from the engine's."""

import numpy as np

from serve import request as request_lib


class Constraint:
  """A constraint whose errors are a ValueError: its request's own."""

  def __init__(self, constraint: request_lib.Constraint):
    self._constraint = constraint

  def masks(self, drafts: list[int]) -> np.ndarray:
    try:
      return self._constraint.masks(drafts)
    except Exception as error:
      raise ValueError(f"The constraint failed: {error}") from error

  def accept(self, tokens: list[int]) -> None:
    try:
      self._constraint.accept(tokens)
    except Exception as error:
      raise ValueError(f"The constraint failed: {error}") from error

  @property
  def is_complete(self) -> bool:
    try:
      return self._constraint.is_complete
    except Exception as error:
      raise ValueError(f"The constraint failed: {error}") from error
