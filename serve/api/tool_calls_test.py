import json

from absl.testing import absltest
from absl.testing import parameterized

from serve.api import tool_calls
from serve.api import tool_formats

_F = tool_formats.Format
_NAMES = ("add", "look_up")
_ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}'
_ADD_ARGUMENTS = '{"a": 1, "b": [2, {"c": "}"}]}'
_LOOK_UP = '{"arguments": {"q": "\\"한\\" ]"}, "name": "look_up"}'
_LOOK_UP_ARGUMENTS = '{"q": "\\"한\\" ]"}'
_BOTH = [("add", _ADD_ARGUMENTS), ("look_up", _LOOK_UP_ARGUMENTS)]


def _read(kind, pieces, *, is_parallel=True):
  """The text and the calls of an answer that comes in pieces."""
  reader = tool_calls.Reader(kind, _NAMES, is_parallel=is_parallel)
  events = [event for piece in pieces for event in reader.push(piece)]
  events += reader.finish()
  text = ""
  calls = []
  for event in events:
    match event:
      case tool_calls.Text():
        text += event.text
      case tool_calls.Start():
        assert event.index == len(calls)
        calls.append([event.name, ""])
      case tool_calls.Arguments():
        calls[event.index][1] += event.text
  return text, [(name, arguments) for name, arguments in calls]


class ToolCallsTest(parameterized.TestCase):
  @parameterized.parameters(
    (_F.HERMES, f"<tool_call>\n{_ADD}\n</tool_call>", "", _BOTH[:1]),
    (
      _F.HERMES,
      f"Let me see.\n<tool_call>\n{_ADD}\n</tool_call>\n<tool_call>{_LOOK_UP}"
      "</tool_call>\n",
      "Let me see.",
      _BOTH,
    ),
    (_F.MISTRAL, f"[TOOL_CALLS] [{_ADD}, {_LOOK_UP}]", "", _BOTH),
    (_F.MISTRAL, f"Now[TOOL_CALLS][{_ADD}]", "Now", _BOTH[:1]),
    (
      _F.MISTRAL_ARGS,
      f"[TOOL_CALLS]add[ARGS]{_ADD_ARGUMENTS}[TOOL_CALLS]look_up"
      f"{_LOOK_UP_ARGUMENTS}",
      "",
      _BOTH,
    ),
    (_F.LLAMA, f"<|python_tag|>{_ADD}; {_LOOK_UP}", "", _BOTH),
    (_F.LLAMA, _ADD.replace("arguments", "parameters"), "", _BOTH[:1]),
    (_F.JSON, f" {_ADD}", "", _BOTH[:1]),
    (_F.JSON, f"[{_ADD},\n{_LOOK_UP}]", "", _BOTH),
    (_F.JSON, '{"name": "add"}', "", [("add", "{}")]),
    (
      _F.JSON,
      '{"name": "add", "arguments": "{\\"a\\": 1}"}',
      "",
      [("add", '{"a": 1}')],
    ),
  )
  def test_finds_calls(self, kind, answer, text, calls):
    self.assertEqual(_read(kind, [answer]), (text, calls))
    self.assertEqual(_read(kind, list(answer)), (text, calls))

  @parameterized.product(
    kind=tuple(_F),
    answer=(
      "Hello, world!\n",
      "",
      "  indented",
      "a < b <tool_cal and [TOOL_",
      '{"answer": {"name": "add"}}',
      '{"name": "unknown", "arguments": {"a": 1}} ',
      '{"name": 3}',
      "<tool_call>no JSON</tool_call>",
      "[1, 2]",
      '{"type": "x", "arguments": {}}',
    ),
  )
  def test_all_else_is_text(self, kind, answer):
    for pieces in ([answer], list(answer)):
      text, calls = _read(kind, pieces)
      self.assertEmpty(calls)
      self.assertEqual(text.strip(), answer.strip())

  def test_a_call_that_is_cut_off_is_a_beginning(self):
    whole = f"<tool_call>\n{_ADD}"
    cut = whole[: whole.index('"b"')]
    self.assertEqual(_read(_F.HERMES, [cut]), ("", [("add", '{"a": 1, ')]))
    cut = whole[: whole.index("add")]
    self.assertEqual(_read(_F.HERMES, list(cut)), (cut, []))

  def test_one_call_only(self):
    reader = tool_calls.Reader(_F.HERMES, _NAMES, is_parallel=False)
    events = reader.push(f"<tool_call>{_ADD}</tool_call><tool_call>{_ADD}")
    self.assertTrue(reader.is_done)
    self.assertEqual(reader.num_calls, 1)
    self.assertLen(events, 2)
    self.assertEmpty(reader.push("more"))
    self.assertEmpty(reader.finish())

  def test_arguments_come_piece_by_piece(self):
    reader = tool_calls.Reader(_F.HERMES, _NAMES, is_parallel=True)
    pieces = []
    for letter in f"<tool_call>{_ADD}":
      pieces += [
        event.text
        for event in reader.push(letter)
        if isinstance(event, tool_calls.Arguments)
      ]
    self.assertEqual("".join(pieces), _ADD_ARGUMENTS)
    self.assertLen(pieces, len(_ADD_ARGUMENTS))
    self.assertEqual(json.loads("".join(pieces))["a"], 1)

  def test_ids(self):
    for kind, pattern in (
      (_F.MISTRAL, "^[a-zA-Z0-9]{9}$"),
      (_F.JSON, "^call_"),
    ):
      reader = tool_calls.Reader(kind, _NAMES, is_parallel=True)
      (start, _) = reader.push(
        _ADD if kind is _F.JSON else f"[TOOL_CALLS]{_ADD}"
      )
      assert isinstance(start, tool_calls.Start)
      self.assertRegex(start.id, pattern)


if __name__ == "__main__":
  absltest.main()
