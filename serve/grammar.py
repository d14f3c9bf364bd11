"""What a text must obey, as masks over its next tokens, by llguidance.

JSON is compact, without white space between its parts: a weak model that may
write white space can go on writing it.

A grammar is compiled within limits, and so is every mask computed: who sends
one that is too large or too ambiguous is refused, or has his own request fail.

Dims: V vocabulary of the model, W = ceil(V / 32) words of a mask.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import llguidance
import numpy as np

_JSON_OPTIONS = {"whitespace_flexible": False}
# Grammars that are kept compiled: many requests come with the same one.
_NUM_KEPT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSchema:
  """JSON that a schema describes.

  Attributes:
    schema: JSON Schema, as a JSON value.
    is_strict: Whether keywords that cannot be enforced are refused rather than
      ignored.
  """

  schema: Any
  is_strict: bool = True


JSON_OBJECT = JsonSchema(schema={"type": "object"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regex:
  """Text that is a match as a whole, of Rust's regular expressions."""

  pattern: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """One of some texts."""

  texts: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lark:
  """What a grammar derives from `start`, in llguidance's dialect of Lark."""

  grammar: str


type Rule = JsonSchema | Regex | Choice | Lark


class Compiler:
  """Makes constraints for one model; any thread may call it."""

  def __init__(
    self,
    tokenizer: str | pathlib.Path,
    *,
    vocab_size: int,
    eos_ids: Sequence[int],
    max_bytes: int = 65_536,
  ):
    """Reads a tokenizer.

    Args:
      tokenizer: tokenizer.json, or the folder it is in.
      vocab_size: Of the model; ids that the tokenizer lacks are never allowed.
      eos_ids: Each of them ends a text, where the rule allows the end.
      max_bytes: Of a rule.

    Raises:
      ValueError: The tokenizer cannot be read, or has more ids than the model.
    """
    path = pathlib.Path(tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
      raise ValueError(
        f"tokenizer is {str(path)!r}, but {file} does not exist; give a"
        " tokenizer.json or a folder with one"
      )
    try:
      self._tokenizer = llguidance.LLTokenizer(
        str(file), n_vocab=vocab_size, eos_token=list(eos_ids)
      )
    except Exception as error:  # What the binding raises is not documented.
      raise ValueError(
        f"tokenizer {file} cannot be used for constraints with vocab_size"
        f" {vocab_size} and eos_ids {list(eos_ids)}: {error}"
      ) from error
    self._vocab_size = vocab_size
    self._eos_ids = frozenset(eos_ids)
    self._max_bytes = max_bytes
    self._matcher = functools.lru_cache(_NUM_KEPT)(self._compile)

  def compile(self, rule: Rule) -> "Matcher":
    """A constraint at the beginning of a text.

    It may take some 100 ms, in which other threads run.

    Raises:
      ValueError: The rule is not valid, not supported or too large; says why.
    """
    grammar = self._grammar(rule)
    return Matcher(
      self._matcher(type(rule).__name__, grammar).deep_copy(),
      vocab_size=self._vocab_size,
      eos_ids=self._eos_ids,
    )

  def _grammar(self, rule: Rule) -> str:
    """The rule in llguidance's language."""
    match rule:
      case JsonSchema():
        schema = self._json(rule.schema)
        options: Any = {**_JSON_OPTIONS, "lenient": not rule.is_strict}
        try:
          return llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides=options
          )
        except ValueError as error:
          raise ValueError(f"JsonSchema: {error}") from error
      case Regex():
        self._check_size("Regex", rule.pattern)
        return llguidance.LLMatcher.grammar_from_regex(rule.pattern)
      case Choice():
        if not rule.texts:
          raise ValueError("Choice: there is nothing to choose; give a text")
        texts = [_quoted(text) for text in rule.texts]
        lark = "start: " + " | ".join(texts)
        self._check_size("Choice", lark)
        return llguidance.LLMatcher.grammar_from_lark(lark)
      case Lark():
        self._check_size("Lark", rule.grammar)
        return llguidance.LLMatcher.grammar_from_lark(rule.grammar)

  def _json(self, schema: Any) -> str:
    try:
      text = json.dumps(schema, ensure_ascii=False)
    except RecursionError as error:
      raise ValueError("JsonSchema: too deeply nested") from error
    self._check_size("JsonSchema", text)
    return text

  def _check_size(self, kind: str, text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > self._max_bytes:
      raise ValueError(
        f"{kind}: {size} bytes; at most {self._max_bytes} are compiled"
      )

  def _compile(self, kind: str, grammar: str) -> llguidance.LLMatcher:
    """A matcher that is never moved on: it is copied."""
    limits = llguidance.LLParserLimits(
      # Of the lexer: it takes 100 ms to reach this.
      initial_lexer_fuel=200_000,
      max_lexer_states=20_000,  # 2 kB each.
      # Of each mask.
      step_lexer_fuel=100_000,
      step_max_items=20_000,
      # 1,000 is a schema of 20 alternatives with 10 optional members each. Lark
      # alone can be ambiguous: there 2,000 make a mask take 300 ms, 500 25 ms.
      max_items_in_row=500 if kind == "Lark" else 2_000,
      verbose_errors=False,
    )
    matcher = llguidance.LLMatcher(
      self._tokenizer, grammar, log_level=0, limits=limits
    )
    # The lexer is built when it is used: what is too large for a limit shows
    # in the first two masks.
    probe = Matcher(
      matcher.deep_copy(), vocab_size=self._vocab_size, eos_ids=self._eos_ids
    )
    try:
      allowed = probe.masks([])[0]
      bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
      probe.masks(np.flatnonzero(bits)[:1].tolist())
    except ValueError as error:
      raise ValueError(f"{kind}: {error}") from error
    return matcher


class Matcher:
  """A rule and where a text stands in it: a `request.Constraint`."""

  def __init__(
    self,
    matcher: llguidance.LLMatcher,
    *,
    vocab_size: int,
    eos_ids: frozenset[int],
  ):
    self._matcher = matcher
    self._vocab_size = vocab_size
    self._eos_ids = eos_ids
    self._has_ended = False

  def masks(self, drafts: list[int]) -> np.ndarray:
    """What is allowed next, and behind each draft in turn.

    Args:
      drafts: Tokens that may come next. Behind one that is not allowed, and
        behind the end, everything is.

    Returns:
      uint32 [1 + len(drafts), W]; bit i % 32 of word i // 32 says whether token
      i is allowed.

    Raises:
      ValueError: The rule is too complex at this place of the text.
    """
    num_words = -(-self._vocab_size // 32)
    masks = np.full((1 + len(drafts), num_words), 0xFFFFFFFF, np.uint32)
    if self._has_ended:
      return masks
    num_tried = 0
    for mask, draft in zip(masks, [*drafts, None], strict=True):
      self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
      # Of a matcher that has failed, all methods say that it has stopped.
      self._check()
      self._forbid_early_end(mask)
      if draft is None or not self._may_go_on(draft, mask):
        break
      if self._matcher.try_consume_tokens([draft]) != 1:
        break
      num_tried += 1
    if num_tried:
      self._matcher.rollback(num_tried)
    self._check()
    return masks

  def _forbid_early_end(self, mask: np.ndarray) -> None:
    """Takes the end out of a mask that has it as the text of a rule.

    Raises:
      ValueError: Nothing else is in it.
    """
    if self._matcher.is_accepting():
      return
    for token in self._eos_ids:
      mask[token // 32] &= ~np.uint32(1 << token % 32)
    if not mask.any():
      raise ValueError(
        "the rule wants the name of the token that ends a text to be written, "
        "which would end it; leave the name out"
      )

  def accept(self, tokens: list[int]) -> None:
    """Moves on behind tokens that were chosen.

    Raises:
      ValueError: One of them was not allowed, or the rule is too complex here.
    """
    for token in tokens:
      # The matcher never sees an end: it counts some of them, others not.
      if token in self._eos_ids and not self._has_ended:
        is_allowed = self._matcher.is_accepting()
        self._has_ended = is_allowed
      else:
        is_allowed = (
          not self._has_ended
          and 0 <= token < self._vocab_size
          and self._matcher.try_consume_tokens([token]) == 1
        )
      self._check()
      if not is_allowed:
        raise ValueError(f"token {token} is not allowed here")

  @property
  def is_complete(self) -> bool:
    """Whether nothing but the end of the text can follow."""
    return self._has_ended or self._matcher.is_stopped()

  def _may_go_on(self, draft: int, mask: np.ndarray) -> bool:
    """Whether a draft is allowed and not the end."""
    if draft in self._eos_ids or not 0 <= draft < self._vocab_size:
      return False
    return bool(mask[draft // 32] >> np.uint32(draft % 32) & np.uint32(1))

  def _check(self) -> None:
    if not self._matcher.is_error():
      return
    reason = self._matcher.get_error().removesuffix("<non-verbose/>").strip()
    if reason.startswith("NoExtension"):
      reason = "there is no text that obeys it"
    raise ValueError(reason)


def _quoted(text: str) -> str:
  """A text in Lark."""
  return json.dumps(text, ensure_ascii=False)
