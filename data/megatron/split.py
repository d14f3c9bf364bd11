"""Which sequences of a file are for training, validation and test.

By megatron/core/datasets/blended_megatron_dataset_config.py, Megatron-Core
0.16.1: contiguous ranges in the order of the file, before any shuffle. It
divides sequences, not documents, so a document of several sequences may be on
both sides.
"""

import enum
import itertools
import math
import re

# Book-ends of a split, as shares of the sequences; None: nothing is in it.
Matrix = tuple[
  tuple[float, float] | None,
  tuple[float, float] | None,
  tuple[float, float] | None,
]
EVERYTHING = (0.0, 1.0)


class Split(enum.Enum):
  """In the order in which --split names them."""

  TRAIN = 0
  VALID = 1
  TEST = 2


def parse(text: str) -> Matrix:
  """The book-ends that --split says.

  Args:
    text: such as "969,30,1"; what is missing is 0.

  Raises:
    ValueError: it does not say three shares or fewer.
  """
  # Megatron takes any digits and dots and passes over what is between them. A
  # sign or an exponent would be read as something else than it says.
  error = ValueError(
    f"data.megatron.split is {text!r}; give the shares of training, validation"
    " and test, such as '969,30,1', at least one of them above 0"
  )
  parts = re.findall(r"[.0-9]+", text)
  if len(parts) > 3 or re.search(r"[-+a-zA-Z]", text):
    raise error
  try:
    shares = [float(part) for part in parts] + [0.0] * (3 - len(parts))
  except ValueError:
    raise error from None
  # Added one by one: Python's sum would round better than Megatron's.
  total = shares[0] + shares[1] + shares[2]
  if not 0 < total < math.inf:
    raise error
  ends = [0.0]
  for share in shares:
    ends.append(ends[-1] + share / total)
  first, second, third = (
    None if stop <= start else (start, stop)
    for start, stop in itertools.pairwise(ends)
  )
  return first, second, third


def bounds(
  book_ends: tuple[float, float], num_sequences: int
) -> tuple[int, int]:
  """First sequence of a split, and the one after its last."""
  # Python rounds half to even, and so it must be.
  start, stop = (round(end * float(num_sequences)) for end in book_ends)
  return start, stop
