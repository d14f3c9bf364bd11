"""How many tokens of which texts are read in one step.

A step is computed at a shape [R, T]: R rows, T tokens, both powers of two.
Shorter rows and missing ones are padded, which costs as much as real tokens.
"""

from collections.abc import Sequence

# The shortest T.
MIN_TOKENS = 16


def plan(
  remaining: Sequence[int], budget: int, *, step_tokens: int
) -> list[int]:
  """Tokens of each text to be read now.

  The first text decides on T; others come along if they fill at least half of
  it, or rows that would be padding.

  Args:
    remaining: Tokens to be read of each text, at least 1, the first text most
      urgent.
    budget: R * T at most; at least MIN_TOKENS.
    step_tokens: What a step costs beside its tokens, in tokens.

  Returns:
    Tokens of each text now; 0: it waits for another step.
  """
  longest = _tokens(remaining[0], budget, step_tokens)
  max_rows = _floor(budget // longest)
  chunks = [min(left, longest) for left in remaining]
  by_fill = [
    i for i, chunk in enumerate(chunks) if 2 * chunk >= longest or not i
  ]
  rows = set(by_fill[:max_rows])
  for i in range(len(chunks)):
    if len(rows) == _ceil(len(rows)):
      break
    rows.add(i)
  return [chunk if i in rows else 0 for i, chunk in enumerate(chunks)]


def _tokens(left: int, budget: int, step_tokens: int) -> int:
  """T for a text of which this is left: in one step, or rather in two."""
  most = _floor(budget)
  whole = max(MIN_TOKENS, _ceil(left))
  if whole > most:
    return most
  half = whole // 2
  if half < MIN_TOKENS:
    return whole
  rest = max(MIN_TOKENS, _ceil(left - half))
  return half if rest + step_tokens < half else whole


def _ceil(num: int) -> int:
  """The power of two that is at least this."""
  return 1 << (num - 1).bit_length()


def _floor(num: int) -> int:
  """The power of two that is at most this."""
  return 1 << (num.bit_length() - 1)
