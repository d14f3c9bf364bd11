"""Guesses of the next tokens: what followed the last ones earlier in the text.

Prompt lookup decoding (arXiv:2304.04487 calls it LLMA): answers repeat much of
their prompts, code and lists much of themselves.
"""

from collections.abc import Sequence


class Lookup:
  """One text, and where its n-grams last went on.

  A token costs as many dictionary entries as there are lengths of n-grams,
  however long the text is.
  """

  def __init__(self, *, min_ngram: int, max_ngram: int):
    """Begins with an empty text.

    Args:
      min_ngram: Fewest last tokens that must be found again.
      max_ngram: Most that are looked for.
    """
    if not 1 <= min_ngram <= max_ngram:
      raise ValueError(
        f"min_ngram is {min_ngram} and max_ngram {max_ngram}; 1 <= min_ngram <="
        " max_ngram is needed"
      )
    self._lengths = range(max_ngram, min_ngram - 1, -1)
    self._text: list[int] = []
    # Behind each n-gram that something has followed: where, the last time.
    self._next: dict[tuple[int, ...], int] = {}

  def __len__(self) -> int:
    return len(self._text)

  def extend(self, tokens: Sequence[int]) -> None:
    """Appends to the text."""
    text, following = self._text, self._next
    for token in tokens:
      end = len(text)
      for length in self._lengths:
        if length <= end:
          following[tuple(text[end - length :])] = end
      text.append(token)

  def propose(self, num_tokens: int) -> list[int]:
    """What followed the longest n-gram that ends the text, the last time.

    Args:
      num_tokens: How many are wanted. Where the text ends before that, it goes
        on with what is proposed: a text that repeats itself does so again.

    Returns:
      So many tokens, or none if nothing is found.
    """
    text = self._text
    for length in self._lengths:
      if length > len(text):
        continue
      start = self._next.get(tuple(text[-length:]))
      if start is not None:
        tokens = text[start : start + num_tokens]
        period = len(tokens)
        while len(tokens) < num_tokens:
          tokens.append(tokens[-period])
        return tokens
    return []
