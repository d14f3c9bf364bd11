"""Finds calls of tools in the text of an answer, as it comes.

What turns out not to be a call is text: nothing that a model writes is lost.
"""

from collections.abc import Collection, Mapping
import dataclasses
import json
import secrets
import string
from typing import Any

from serve.api import tool_formats
from serve.api import xml_calls

_SPACE = " \t\r\n"
_BETWEEN = _SPACE + "[],;"
_KEYS = ("name", "arguments", "parameters", "type", "id", "function")
_ALPHABET = string.ascii_letters + string.digits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """Text that is no call."""

  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """A call begins."""

  index: int
  id: str
  name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """A piece of a call's arguments, which are JSON."""

  index: int
  text: str


Event = Text | Start | Arguments


class Reader:
  """Reads one answer.

  Attributes:
    num_calls: Begun so far.
    is_done: No more than one call is wanted, and it is complete.
  """

  def __init__(
    self,
    kind: tool_formats.Format,
    names: Collection[str],
    *,
    is_parallel: bool,
    schemas: Mapping[str, Any] | None = None,
  ):
    """Nothing is read yet.

    Args:
      kind: How calls are written.
      names: Of the functions; what calls another is text.
      is_parallel: More than one call is wanted.
      schemas: Of the functions' arguments, by name: XML does not say by itself
        what is a string.
    """
    self.num_calls = 0
    self.is_done = False
    self._marks = tool_formats.MARKS[kind]
    self._names = names
    self._is_parallel = is_parallel
    self._schemas = schemas or {}
    self._is_xml = kind is tool_formats.Format.XML
    self._has_args = kind is tool_formats.Format.MISTRAL_ARGS
    self._id_length = (
      9
      if kind in (tool_formats.Format.MISTRAL, tool_formats.Format.MISTRAL_ARGS)
      else 24
    )
    self._held = ""
    self._is_inside = False
    self._is_start = True
    self._call: _Call | xml_calls.Call | None = None
    self._index = -1
    self._num_given = 0
    self._opened = ""
    self._has_call = False

  def push(self, text: str) -> list[Event]:
    """Takes more of the answer."""
    events: list[Event] = []
    self._held += text
    while not self.is_done and self._step(events):
      pass
    return events

  def finish(self) -> list[Event]:
    """What was held back."""
    events: list[Event] = []
    if self.is_done:
      return events
    if self._call is not None and self._index < 0:
      self._held = self._opened + self._call.raw + self._held
    elif self._opened and self._call is None:
      self._held = self._opened + self._held
    # Between and behind calls white space says nothing.
    if self._held and not (self.num_calls and not self._held.strip()):
      events.append(Text(text=self._held))
    self._held = ""
    return events

  def _step(self, events: list[Event]) -> bool:
    """One move; False: more text is needed."""
    if self._call is not None:
      return self._read_call(events)
    if self._is_inside:
      return self._read_between(events)
    return self._read_text(events)

  def _read_text(self, events: list[Event]) -> bool:
    """Outside of calls."""
    opening = self._marks.opening
    stripped = self._held.lstrip(_SPACE)
    if self._is_start and not stripped:
      return False
    begins = "{" if opening.startswith("[") else "{["
    if self._is_start and not self._marks.closing and stripped[0] in begins:
      self._opened = self._held[: len(self._held) - len(stripped)]
      self._held = stripped
      self._is_inside = True
      return True
    # A call between XML tags may lack the mark before it.
    openings = (opening, tool_formats.FUNCTION) if self._is_xml else (opening,)
    before, found, after = _partition(self._held, openings)
    if found:
      if found == tool_formats.FUNCTION:  # It is the call's own.
        found, after = "", found + after
      self._give(before.rstrip(_SPACE), events)
      self._held = after
      self._opened = found
      self._is_inside = True
      return True
    kept = max(tool_formats.overlap(self._held, o) for o in openings)
    if kept == len(self._held):
      return False
    self._is_start = False
    text = self._held[: len(self._held) - kept]
    # White space may be followed by a call, and then it says nothing.
    text = text.rstrip(_SPACE)
    self._held = self._held[len(text) :]
    self._give(text, events)
    return False

  def _read_between(self, events: list[Event]) -> bool:
    """Inside of the marks, between calls."""
    held = self._held.lstrip(_SPACE if self._has_args else _BETWEEN)
    if not self._has_call:
      self._opened += self._held[: len(self._held) - len(held)]
    self._held = held
    if not held:
      return False
    closing = self._marks.closing
    if closing and held.startswith(closing):
      self._held = held[len(closing) :]
      self._leave()
      return True
    if closing and closing.startswith(held):
      return False
    if self._is_xml:
      if held.startswith(tool_formats.FUNCTION):
        self._call = xml_calls.Call(self._schemas)
        return True
      if tool_formats.FUNCTION.startswith(held):
        return False
    elif held[0] == "{" and not self._has_args:
      self._call = _Call()
      return True
    if self._has_args:
      opening = self._marks.opening
      if held.startswith(opening):
        self._held = held[len(opening) :]
        self._opened = opening
        return True
      name, found, rest = held.partition("{")
      if not found:
        return False
      name = name.strip(_SPACE).removesuffix(tool_formats.ARGS)
      self._call = _Call(name=name)
      self._opened += held[: len(held) - len(rest) - 1]
      self._held = "{" + rest
      return True
    # Something else: text, as it was written.
    self._give(self._opened, events)
    self._leave()
    self._is_start = False
    return True

  def _read_call(self, events: list[Event]) -> bool:
    call = self._call
    assert call is not None
    used = call.push(self._held)
    self._held = self._held[used:]
    if call.is_wrong and self._index < 0:
      self._give(self._opened + call.raw, events)
      self._leave()
      self._is_start = False
      return bool(self._held)
    if self._index < 0 and call.name is not None:
      if call.name not in self._names:
        call.is_wrong = True
        if not call.is_complete:
          return bool(self._held)
        self._give(self._opened + call.raw, events)
        self._leave()
        return bool(self._held)
      self._index = self.num_calls
      self.num_calls += 1
      events.append(
        Start(index=self._index, id=self._make_id(), name=call.name)
      )
    if self._index >= 0 and len(call.arguments) > self._num_given:
      text = call.arguments[self._num_given :]
      events.append(Arguments(index=self._index, text=text))
      self._num_given = len(call.arguments)
    if not call.is_complete:
      return False
    if self._index < 0:  # An object without a name.
      self._give(self._opened + call.raw, events)
      self._leave()
      self._is_start = False
      return bool(self._held)
    if not call.arguments:
      events.append(Arguments(index=self._index, text="{}"))
    self._call = None
    self._index = -1
    self._num_given = 0
    self._opened = ""
    self._has_call = True
    self.is_done = not self._is_parallel
    return bool(self._held)

  def _leave(self) -> None:
    self._is_inside = False
    self._call = None
    self._opened = ""
    self._has_call = False

  def _give(self, text: str, events: list[Event]) -> None:
    if text:
      events.append(Text(text=text))

  def _make_id(self) -> str:
    length = self._id_length
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(length))
    # Templates of Mistral's models want nine letters.
    return letters if length == 9 else f"call_{letters}"


class _Call:
  """One call, written as a JSON object, read letter by letter.

  Attributes:
    raw: What was read.
    name: Of the function, once it is known.
    arguments: So far, as they are written.
    is_complete: The object has ended.
    is_wrong: It is no call.
  """

  def __init__(self, name: str | None = None):
    """Reads an object; with a name, the object is the arguments."""
    self.raw = ""
    self.name = name
    self.arguments = ""
    self.is_complete = False
    self.is_wrong = False
    self._is_bare = name is not None
    self._depth = 0
    self._in_string = False
    self._is_escaped = False
    self._word = ""  # The key or value at depth 1 that is being read.
    self._key: str | None = None

  def push(self, text: str) -> int:
    """Takes letters until the object ends; how many that were."""
    for count, letter in enumerate(text):
      if self.is_complete or self.is_wrong:
        return count
      self._push(letter)
    return len(text)

  def _push(self, letter: str) -> None:
    self.raw += letter
    if self._is_bare:
      self.arguments += letter
    if self._in_string:
      self._word += letter
      self._stream(letter)
      if self._is_escaped:
        self._is_escaped = False
      elif letter == "\\":
        self._is_escaped = True
      elif letter == '"':
        self._in_string = False
        if self._depth == 1 and self._key is not None:
          self._end_value()
      return
    if letter == '"':
      self._in_string = True
      self._word += letter
      self._stream(letter)
    elif letter in "{[":
      self._depth += 1
      if self._depth > 1:
        self._word += letter
        self._stream(letter)
    elif letter in "}]":
      if self._depth == 1 and self._key is not None and self._word:
        self._end_value()
      self._depth -= 1
      if self._depth == 0:
        self.is_complete = True
      else:
        self._word += letter
        self._stream(letter)
        if self._depth == 1:
          self._end_value()
    elif self._depth == 1 and letter == ":" and self._key is None:
      self._begin_value()
    elif self._depth == 1 and letter == ",":
      if self._key is not None and self._word:
        self._end_value()
      self._key = None
      self._word = ""
    elif self._depth > 1 or letter not in _SPACE:
      self._word += letter
      self._stream(letter)

  def _begin_value(self) -> None:
    try:
      key = json.loads(self._word)
    except ValueError:
      key = None
    self._key = key
    self._word = ""
    if not self._is_bare and key not in _KEYS:
      self.is_wrong = True

  def _stream(self, letter: str) -> None:
    """Arguments are given out as they come, if they are an object."""
    is_arguments = self._key in ("arguments", "parameters")
    if is_arguments and not self._is_bare and self._word[0] == "{":
      self.arguments += letter

  def _end_value(self) -> None:
    key, word = self._key, self._word
    self._word = ""
    if self._is_bare or key is None:
      return
    self._key = ""  # A value was read; the next key follows a comma.
    if key == "name":
      try:
        name = json.loads(word)
      except ValueError:
        name = None
      self.name = name if isinstance(name, str) else None
      self.is_wrong = self.name is None
    elif key in ("arguments", "parameters") and not word.startswith("{"):
      # Some models write the JSON of the arguments into a string.
      try:
        value = json.loads(word)
      except ValueError:
        value = word
      self.arguments += value if isinstance(value, str) else json.dumps(value)


def _partition(text: str, marks: tuple[str, ...]) -> tuple[str, str, str]:
  """What is before the first of some marks, the mark, and what is behind."""
  found = [mark for mark in marks if mark and mark in text]
  if not found:
    return text, "", ""
  return text.partition(min(found, key=text.index))
