import json
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from serve.api import tool_calls
from serve.api import tool_formats
from serve.api import xml_calls

_SCHEMAS: dict[str, Any] = {
  "write": {
    "type": "object",
    "properties": {
      "path": {"type": "string"},
      "lines": {"type": "array", "items": {"type": "integer"}},
      "mode": {"$ref": "#/$defs/mode"},
      "is_new": {"type": "boolean"},
    },
    "$defs": {"mode": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
  },
  "now": None,
  "odd": {"properties": {" key ": {"type": "integer"}}},
}
_CODE = 'if a < b and b > "c":\n\tprint("한", </param)  # </function>\n'
_WRITE = f"""\
<function=write>
<parameter=path>
{_CODE}
</parameter>
<parameter=lines>
[1, 2]
</parameter>
<parameter=mode>
None
</parameter>
<parameter=is_new>
True
</parameter>
<parameter=other>
5
</parameter>
</function>"""
_WRITTEN = {
  "path": _CODE,
  "lines": [1, 2],
  "mode": None,
  "is_new": True,
  "other": "5",
}
_NOW = "<function=now>\n</function>"


def _marked(call):
  return f"<tool_call>\n{call}\n</tool_call>"


def _read(pieces, *, is_parallel=True):
  """The text and the calls of an answer that comes in pieces."""
  reader = tool_calls.Reader(
    tool_formats.Format.XML,
    tuple(_SCHEMAS),
    is_parallel=is_parallel,
    schemas=_SCHEMAS,
  )
  events = [event for piece in pieces for event in reader.push(piece)]
  events += reader.finish()
  text, calls = "", []
  for event in events:
    match event:
      case tool_calls.Text():
        text += event.text
      case tool_calls.Start():
        assert event.index == len(calls)
        calls.append([event.name, ""])
      case tool_calls.Arguments():
        calls[event.index][1] += event.text
  return text, calls


def _splits(text):
  """As one piece, letter by letter, and in two at each place."""
  yield [text]
  yield list(text)
  for place in range(1, len(text)):
    yield [text[:place], text[place:]]


class XmlCallsTest(parameterized.TestCase):
  @parameterized.parameters(
    (_marked(_WRITE), "", [("write", _WRITTEN)]),
    (
      f"Let me see.\n\n{_marked(_WRITE)}\n{_marked(_NOW)}\n",
      "Let me see.",
      [("write", _WRITTEN), ("now", {})],
    ),
    # Without the mark before it, or the one behind it.
    (
      f"So: {_WRITE}\n{_marked(_NOW)}",
      "So:",
      [("write", _WRITTEN), ("now", {})],
    ),
    (f"<tool_call>\n{_NOW}", "", [("now", {})]),
    (
      "<tool_call>\n<function=odd>\n<parameter= key >\n1\n</parameter>\n"
      "<parameter= b >\n1\n</parameter>\n</function>\n</tool_call>",
      "",
      [("odd", {" key ": 1, "b": "1"})],
    ),
    # On one line, and without the end of a parameter or a function.
    (
      "<tool_call><function=write><parameter=path>a</parameter></tool_call>.",
      ".",
      [("write", {"path": "a"})],
    ),
    (
      _marked("<function=write>\n<parameter=path>\na</b>\n</function>"),
      "",
      [("write", {"path": "a</b>"})],
    ),
    (
      _marked("<function=write>\n<parameter=path>\n\n</parameter></function>"),
      "",
      [("write", {"path": ""})],
    ),
  )
  def test_finds_calls(self, answer, text, calls):
    for pieces in _splits(answer):
      said, found = _read(pieces)
      self.assertEqual(said, text)
      self.assertEqual([(n, json.loads(a)) for n, a in found], calls)

  @parameterized.parameters(
    "a < b <tool_cal and <function",
    "<tool_call>no call</tool_call>",
    _marked("<function=unknown>\n<parameter=a>\n1\n</parameter>\n</function>"),
    "<function=\n>",
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "<tool_call>\n<functional>",
  )
  def test_all_else_is_text(self, answer):
    for pieces in _splits(answer):
      self.assertEqual(_read(pieces), (answer, []))

  def test_a_call_that_is_cut_off_is_a_beginning(self):
    cut = _marked(_WRITE)[: _marked(_WRITE).index("[1") + 2]
    for pieces in _splits(cut):
      _, ((name, arguments),) = _read(pieces)
      self.assertEqual(name, "write")
      self.assertEqual(
        arguments,
        '{"path": ' + json.dumps(_CODE, ensure_ascii=False) + ', "lines": ',
      )

  def test_strings_come_letter_by_letter(self):
    call = xml_calls.Call(_SCHEMAS)
    call.push("<function=write><parameter=path>\n")
    for letter in "one\ntwo":
      call.push(letter)
    self.assertEqual(call.arguments, '{"path": "one\\ntwo')
    call.push("\n</pa")  # This may be the end.
    self.assertEqual(call.arguments, '{"path": "one\\ntwo')
    call.push("ge>")
    self.assertEqual(call.arguments, '{"path": "one\\ntwo\\n</page>')

  def test_one_call_only(self):
    text, calls = _read([_marked(_NOW) * 2], is_parallel=False)
    self.assertEqual((text, calls), ("", [["now", "{}"]]))


if __name__ == "__main__":
  absltest.main()
