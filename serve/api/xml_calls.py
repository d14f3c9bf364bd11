r"""One call of a tool written between XML tags, read letter by letter.

  <function=name>
  <parameter=key>
  value
  </parameter>
  </function>

So do Qwen3-Coder and its relatives. Strings stand there as they are, without
escapes, and are given out as they come; other values when they are complete.
"""

from collections.abc import Mapping
import json
import re
from typing import Any

from serve.api import tool_formats
from serve.api import xml_values

_END = "</parameter>"
_END_CALL = "</function>"
_CLOSING = "</tool_call>"
# Some calls lack the end of their last parameter.
_END_ALL = re.compile(rf"{_END_CALL}\s*{_CLOSING}$")
_LONGEST_NAME = 256


class Call:
  """What `tool_calls.Reader` asks of a call.

  Attributes:
    raw: What was read.
    name: Of the function, once it is known.
    arguments: So far, as JSON.
    is_complete: The call has ended.
    is_wrong: It is no call.
  """

  def __init__(self, schemas: Mapping[str, Any]):
    """Nothing is read yet.

    Args:
      schemas: Of each function's arguments, by its name.
    """
    self.raw = ""
    self.name: str | None = None
    self.arguments = ""
    self.is_complete = False
    self.is_wrong = False
    self._schemas = schemas
    self._held = ""
    self._read = self._read_name
    self._root: Any = None
    self._schema: Any = None
    self._is_first = True

  def push(self, text: str) -> int:
    """Takes letters until the call ends; how many that were."""
    for count, letter in enumerate(text):
      if self.is_complete or self.is_wrong:
        return count
      self.raw += letter
      self._held += letter
      self._read()
    return len(text)

  def _read_name(self) -> None:
    opening = tool_formats.FUNCTION
    held = self._held
    if len(held) <= len(opening):
      self.is_wrong = not opening.startswith(held)
    elif held.endswith(">"):
      self.name = held[len(opening) : -1].strip()
      self._root = self._schemas.get(self.name)
      self.arguments = "{"
      self._go_to(self._read_between)
    else:
      self.is_wrong = held[-1] in "<\n" or len(held) > _LONGEST_NAME

  def _read_between(self) -> None:
    """What is neither a parameter nor the end says nothing."""
    if self._held.endswith(tool_formats.PARAMETER):
      self._go_to(self._read_key)
    elif self._held.endswith((_END_CALL, _CLOSING)):
      self._end()
    else:
      self._held = self._held[-len(tool_formats.PARAMETER) :]

  def _read_key(self) -> None:
    if not self._held.endswith(">"):
      return
    key, known = self._held[:-1], xml_values.parameters(self._root)
    if key not in known:
      key = key.strip()
    if self.arguments != "{":
      self.arguments += ", "
    self.arguments += f"{json.dumps(key, ensure_ascii=False)}: "
    self._schema = known.get(key)
    self._is_first = True
    if xml_values.is_text(self._schema, self._root):
      self.arguments += '"'
      self._go_to(self._read_text)
    else:
      self._go_to(self._read_value)

  def _read_text(self) -> None:
    """A string, as it comes."""
    if self._drop_first_line_end():
      return
    text = self._value()
    is_end = text is not None
    if text is None:
      text = self._held[: _certain(self._held)]
      self._held = self._held[len(text) :]
    self.arguments += json.dumps(text, ensure_ascii=False)[1:-1]
    if is_end:
      self.arguments += '"'
      self._leave_value()

  def _read_value(self) -> None:
    """Another value, as a whole."""
    if self._drop_first_line_end():
      return
    text = self._value()
    if text is not None:
      self.arguments += xml_values.to_json(text, self._schema, self._root)
      self._leave_value()

  def _drop_first_line_end(self) -> bool:
    is_first, self._is_first = self._is_first, False
    if is_first and self._held == "\n":
      self._held = ""
      return True
    return False

  def _value(self) -> str | None:
    """The value, if it has ended; None: it goes on."""
    if self._held.endswith(_END):
      return self._held.removesuffix(_END).removesuffix("\n")
    if self._held.endswith(_CLOSING) and (end := _END_ALL.search(self._held)):
      return self._held[: end.start()].removesuffix("\n")
    return None

  def _leave_value(self) -> None:
    if self._held.endswith(_CLOSING):
      self._end()
    else:
      self._go_to(self._read_between)

  def _go_to(self, read: Any) -> None:
    self._held = ""
    self._read = read

  def _end(self) -> None:
    self.arguments += "}"
    self.is_complete = True


def _certain(text: str) -> int:
  """How many letters of a string that goes on belong to it for certain."""
  place = text.rfind(_END_CALL)
  rest = text[place + len(_END_CALL) :].strip()
  if place < 0 or not _CLOSING.startswith(rest):
    marks = (_END, _END_CALL)
    kept = max(tool_formats.overlap(text, mark) for mark in marks)
    place = len(text) - kept
  # The line's end before a mark is not the value's.
  return place - text[:place].endswith("\n")
