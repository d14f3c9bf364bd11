"""Token ids to text as they come, and the strings at which it ends.

A token is bytes, not characters: a Korean syllable or an emoji may be torn
between several. So each id is looked up in a table of bytes, and what is not a
whole character yet waits. That needs no decoding of earlier tokens again, which
is where the usual ways go wrong: a prompt that ends inside a character, a
leading space that a decoder drops.

What is given out in pieces is, put together, what the tokenizer makes of prompt
and continuation at once, less the prompt's. Only where a model writes invalid
UTF-8 may a decoder with byte tokens (`<0xE4>`) differ: it then gives up on the
valid neighbours, too.
"""

import codecs
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# A character has at most so many bytes.
_LONGEST = 4


class Vocabulary:
  """What each id of a tokenizer stands for.

  Attributes:
    special_ids: Ids of special tokens, which usually are not shown.
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    """Reads the decoder's rules.

    Raises:
      ValueError: A token's text depends on more than its place at the start.
    """
    spec = json.loads(backend.to_str())
    self._rules = _Rules.read(spec["decoder"])
    names = backend.get_vocab(with_added_tokens=True)
    self._names = [""] * (1 + max(names.values()))
    for name, token in names.items():
      self._names[token] = name
    encode = self._rules.encode
    self._bytes = [encode(name) if name else b"" for name in self._names]
    self.special_ids = frozenset(
      token["id"] for token in spec["added_tokens"] if token["special"]
    )

  @classmethod
  def load(cls, path: str | pathlib.Path) -> "Vocabulary":
    """Reads tokenizer.json, or that of a folder.

    Raises:
      ValueError: Its decoder is of a kind that is not known.
    """
    path = pathlib.Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
      return cls(tokenizers.Tokenizer.from_file(str(file)))
    except ValueError as error:
      raise ValueError(f"tokenizer {file}: {error}") from error

  def __len__(self) -> int:
    return len(self._names)

  def name(self, token: int) -> str:
    """As the vocabulary spells it (`Ġthe`); empty if there is none."""
    return self._names[token] if token < len(self._names) else ""

  def token_bytes(self, token: int) -> bytes:
    """What it adds to a text, unless it is the first; no such id: nothing."""
    return self._bytes[token] if token < len(self._bytes) else b""

  def text(self, token: int) -> str:
    """The same as text, with U+FFFD for what is not a whole character."""
    return self.token_bytes(token).decode(errors="replace")

  def first_bytes(self, token: int) -> bytes:
    """What it adds as the first: some decoders drop a space."""
    return self._rules.encode_first(self.name(token))

  @property
  def num_stripped(self) -> int:
    """Spaces dropped from the beginning of every text."""
    return self._rules.num_stripped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """What a token has added.

  Attributes:
    token: Its id.
    text: The characters that it completed, and U+FFFD where it is what the next
      one showed to be torn; the pieces' texts are the text, but for what the
      prompt has torn.
    offset: Characters of the continuation before `text`.
  """

  token: int
  text: str
  offset: int


class Detokenizer:
  """The text of one continuation, token by token.

  Attributes:
    text: What has been given out, put together.
    stop: The stop string that was found.
    pieces: What each token has added, whether it is given out or not.
  """

  def __init__(
    self,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    stops: Iterable[str] = (),
    include_stop: bool = False,
    skip_special_tokens: bool = True,
    min_tokens: int = 0,
  ):
    """Nothing of the prompt is ever given out.

    Args:
      vocabulary: Of the tokenizer.
      prompt: Ids before the continuation; their last few are looked at.
      stops: Strings at which the text ends: the one that is complete first,
        and of several the longest. What the first `min_tokens` tokens say is
        not looked at.
      include_stop: The stop string belongs to the text.
      skip_special_tokens: Special tokens are not text.
      min_tokens: See `stops`.
    """
    self.text = ""
    self.stop: str | None = None
    self.pieces: list[Piece] = []
    self._vocabulary = vocabulary
    self._skipped = vocabulary.special_ids if skip_special_tokens else ()
    self._include_stop = include_stop
    self._min_tokens = min_tokens
    self._matchers = [_Matcher(stop) for stop in stops]
    self._held = ""
    self._length = 0
    self._at_start = True
    self._has_bytes = False
    self._to_strip = 0
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._prime(prompt)

  def push(self, tokens: Iterable[int]) -> str:
    """Takes the next tokens.

    Returns:
      The text that is certain now. After a stop string: nothing more.
    """
    released = [self._push(token) for token in tokens]
    return "".join(released)

  def finish(self) -> str:
    """What was held back; a torn character as U+FFFD. Nothing comes after."""
    if self.stop is not None:
      return ""
    # What the prompt alone has torn is not ours to tell.
    rest = self._decoder.decode(b"", True) if self._has_bytes else ""
    self._length += len(rest)
    if rest:
      last = self.pieces[-1]
      text = last.text + rest
      self.pieces[-1] = dataclasses.replace(last, text=text)
    released = self._release(rest)
    if self.stop is None:
      released += self._held
      self.text += self._held
      self._held = ""
    return released

  def _prime(self, prompt: Sequence[int]) -> None:
    """Brings the decoder to where the prompt ends."""
    tail = b""
    for token in reversed(prompt):
      if token in self._skipped or token >= len(self._vocabulary):
        continue
      self._at_start = False
      tail = self._vocabulary.token_bytes(token) + tail
      if len(tail) >= _LONGEST:
        break
    # A prompt of spaces only may have been dropped in part.
    if not tail.strip(b" "):
      self._to_strip = max(0, self._vocabulary.num_stripped - len(tail))
    # Behind the last byte that begins a character all is said.
    tail = tail[-_LONGEST:]
    while tail and 0x80 <= tail[0] < 0xC0:
      tail = tail[1:]
    self._decoder.decode(tail)

  def _push(self, token: int) -> str:
    if self.stop is not None:
      return ""
    new = self._new_bytes(token)
    waiting, _ = self._decoder.getstate()
    text = self._decoder.decode(new)
    # What turns out to be torn is an earlier token's, not this one's.
    torn, own = "", text
    if waiting and new and not _goes_on(waiting, new[:1]):
      torn, own = text[:1], text[1:]
      if self.pieces:
        last = self.pieces[-1]
        self.pieces[-1] = dataclasses.replace(last, text=last.text + torn)
    offset = self._length + len(torn)
    self.pieces.append(Piece(token=token, text=own, offset=offset))
    self._length += len(text)
    return self._release(text)

  def _new_bytes(self, token: int) -> bytes:
    if token in self._skipped or token >= len(self._vocabulary):
      return b""
    if self._at_start:
      self._at_start = False
      new = self._vocabulary.first_bytes(token)
    else:
      new = self._vocabulary.token_bytes(token)
    while self._to_strip and new.startswith(b" "):
      new = new[1:]
      self._to_strip -= 1
    if new:
      self._to_strip = 0
      self._has_bytes = True
    return new

  def _release(self, text: str) -> str:
    """Looks for stop strings; what could still become one stays."""
    kept = 0
    if self._matchers and len(self.pieces) > self._min_tokens:
      for count, character in enumerate(text, start=1):
        found = [m.stop for m in self._matchers if m.push(character)]
        if found:
          self.stop = max(found, key=len)
          text = text[:count]
          kept = len(self.stop)
          break
      else:
        kept = max(matcher.matched for matcher in self._matchers)
    if self._include_stop:
      kept = 0
    text = self._held + text
    end = len(text) - kept
    self._held = "" if self.stop else text[end:]
    self.text += text[:end]
    return text[:end]


def _goes_on(waiting: bytes, byte: bytes) -> bool:
  """Whether a byte may follow in the character that has begun."""
  try:
    codecs.getincrementaldecoder("utf-8")().decode(waiting + byte)
  except UnicodeDecodeError:
    return False
  return True


class _Matcher:
  """Looks for one string, a character at a time (Knuth, Morris, Pratt).

  Attributes:
    stop: The string.
    matched: How many of its first characters are the text's last.
  """

  def __init__(self, stop: str):
    if not stop:
      raise ValueError("a stop string is empty; leave it out")
    self.stop = stop
    self.matched = 0
    # By the number of matched characters: how many are still matched if the
    # next one does not fit.
    self._fallback = [0, 0]
    for character in stop[1:]:
      self._fallback.append(self._next(self._fallback[-1], character))

  def push(self, character: str) -> bool:
    """Whether the string ends with this character."""
    matched = self.matched
    if matched == len(self.stop):
      matched = self._fallback[matched]
    self.matched = self._next(matched, character)
    return self.matched == len(self.stop)

  def _next(self, matched: int, character: str) -> int:
    while matched and self.stop[matched] != character:
      matched = self._fallback[matched]
    return matched + (self.stop[matched] == character)


@functools.cache
def _bytes_by_letter() -> Mapping[str, int]:
  """GPT-2's letters for bytes: themselves, if they can be printed."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = {chr(byte): byte for byte in printable}
  rest = [byte for byte in range(256) if byte not in set(printable)]
  return letters | {chr(256 + i): byte for i, byte in enumerate(rest)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules:
  """What a decoder of tokenizer.json does with one token's name.

  Attributes:
    replacements: Strings and what stands for them.
    byte_level: Letters stand for bytes.
    byte_fallback: `<0xE4>` is a byte.
    space: Stands for a space, and is dropped from the first token.
    joined: Spaces are put between tokens.
    num_stripped: Spaces dropped from the beginning of a text.
  """

  replacements: tuple[tuple[str, str], ...] = ()
  byte_level: bool = False
  byte_fallback: bool = False
  space: str = ""
  joined: bool = False
  num_stripped: int = 0

  @classmethod
  def read(cls, decoder: dict[str, Any] | None) -> "_Rules":
    """Of tokenizer.json's `decoder`."""
    if decoder is None:
      return cls(joined=True)
    steps = [decoder]
    if decoder["type"] == "Sequence":
      steps = decoder["decoders"]
    rules: dict[str, Any] = {"replacements": ()}
    fused = False
    for step in steps:
      match step:
        case {"type": "Fuse"}:
          fused = True
        case {"type": "ByteLevel"}:
          rules["byte_level"] = True
        case {"type": "ByteFallback"}:
          rules["byte_fallback"] = True
        case {
          "type": "Replace",
          "pattern": {"String": old},
          "content": new,
        } if len(old) == 1 or not fused:
          rules["replacements"] += ((old, new),)
        case {"type": "Strip", "content": " ", "start": start, "stop": 0} if (
          fused
        ):
          rules["num_stripped"] = start
        case {"type": "Metaspace", "replacement": space, **options}:
          if options.get("prepend_scheme") == "never":
            rules["replacements"] += ((space, " "),)
          else:
            rules["space"] = space
        case _:
          raise ValueError(
            f"decoder has {json.dumps(step)}, which cannot be done token by"
            " token; use ByteLevel, Metaspace, or Replace, ByteFallback, Fuse"
            " and Strip from the left"
          )
    return cls(**rules)

  def encode(self, name: str) -> bytes:
    """The bytes of a token in the midst of a text."""
    return self._encode(" " + name if self.joined else name, " ")

  def encode_first(self, name: str) -> bytes:
    """The bytes of a text's first token."""
    return self._encode(name, "")

  def _encode(self, name: str, space: str) -> bytes:
    for old, new in self.replacements:
      name = name.replace(old, new)
    if self.space:
      name = name.replace(self.space, space)
    if self.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(name)):
      return bytes([int(byte[1], 16)])
    if self.byte_level:
      letters = _bytes_by_letter()
      if all(letter in letters for letter in name):
        return bytes(letters[letter] for letter in name)
    return name.encode()
