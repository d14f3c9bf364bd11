"""Who guesses the next tokens of a text; see serve/ngram.py."""

from collections.abc import Sequence
from typing import Protocol


class Guesser(Protocol):
  """Knows one text, and guesses how it goes on."""

  def __len__(self) -> int:
    """Tokens of the text that it knows."""
    ...

  def extend(self, tokens: Sequence[int]) -> None:
    """Appends to the text."""
    ...

  def propose(self, num_tokens: int) -> Sequence[int]:
    """At most so many tokens that may follow."""
    ...
