"""Which documents are of the right length and language."""

import dataclasses
import functools

from py3langid import langid

# So much of a text tells its language; the rest would only cost time.
_LANGUAGE_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """What a document must be like.

  Attributes:
    min_chars: characters that it has at least.
    max_chars: characters that it has at most; 0: any number.
    languages: the languages that are kept, as ISO 639-1 codes ("en", "ko");
      empty: all.
    min_confidence: the probability, 0 to 1, that its language is one of them.
  """

  min_chars: int = 0
  max_chars: int = 0
  languages: tuple[str, ...] = ()
  min_confidence: float = 0.5

  def __post_init__(self):
    if self.min_chars < 0:
      raise ValueError(f"min_chars is {self.min_chars}; it must be >= 0")
    if self.max_chars < 0 or 0 < self.max_chars < self.min_chars:
      raise ValueError(
        f"max_chars is {self.max_chars}; it must be 0 (any number) or at least"
        f" min_chars, {self.min_chars}"
      )
    if not 0 <= self.min_confidence <= 1:
      raise ValueError(
        f"min_confidence is {self.min_confidence}; it must be 0 to 1"
      )
    if self.languages:
      known = _identifier().labels
      unknown = sorted(set(self.languages) - set(known))
      if unknown:
        raise ValueError(
          f"languages has {', '.join(unknown)}; known are"
          f" {', '.join(sorted(known))}"
        )

  def is_short(self, text: str) -> bool:
    """Whether the text is shorter than it may be."""
    return len(text) < self.min_chars

  def is_long(self, text: str) -> bool:
    """Whether the text is longer than it may be."""
    return bool(self.max_chars) and len(text) > self.max_chars

  def is_foreign(self, text: str) -> bool:
    """Whether the text is in none of the languages that are kept."""
    if not self.languages:
      return False
    probabilities = language_probabilities(text)
    kept = sum(probabilities[language] for language in set(self.languages))
    return kept < self.min_confidence


def language_probabilities(text: str) -> dict[str, float]:
  """The probability of each language, by the start of the text."""
  return dict(_identifier().rank(text[:_LANGUAGE_CHARACTERS]))


@functools.cache
def _identifier() -> langid.LanguageIdentifier:
  # Naive Bayes over byte n-grams (Lui and Baldwin 2012); 0.4 s to load.
  return langid.LanguageIdentifier.from_model_file(
    langid.MODEL_FILE, norm_probs=True
  )
