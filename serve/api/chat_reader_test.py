from typing import Any

from absl.testing import absltest
import msgspec

from serve.api import chat_reader
from serve.api import chat_rules
from serve.api import tool_formats

_TOOLS = chat_rules.Tools(
  kind=tool_formats.Format.HERMES,
  names=("add",),
  is_parallel=True,
  has_special_marks=False,
)
_CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def _read(reader, text, step):
  deltas = []
  pieces = [text[i : i + step] for i in range(0, len(text), step)]
  for number, piece in enumerate(pieces):
    is_last = number == len(pieces) - 1
    deltas.append(reader.push(piece, is_last=is_last))
  return deltas


class ChatReaderTest(absltest.TestCase):
  def test_thinks_says_and_calls(self):
    text = f"<think>Hm.</think>\nSo:\n{_CALL}"
    for step in (1, 3, len(text)):
      reader = chat_reader.Reader(_TOOLS, thought_prompt="")
      deltas = _read(reader, text, step)
      message: Any = reader.message(True)
      self.assertEqual(message.reasoning_content, "Hm.")
      self.assertEqual(message.content, "So:")
      (call,) = message.tool_calls
      self.assertEqual(call.function.name, "add")
      self.assertEqual(call.function.arguments, '{"a": 1}')
      self.assertTrue(reader.has_calls)
      for field in ("content", "reasoning_content"):
        parts = [getattr(delta, field) or "" for delta in deltas]
        self.assertEqual("".join(parts), getattr(message, field))
      hidden = reader.message(False)
      self.assertIs(hidden.reasoning_content, msgspec.UNSET)

  def test_text_alone(self):
    reader = chat_reader.Reader(None, thought_prompt=None)
    _read(reader, "<think>" + _CALL, 5)
    message = reader.message(True)
    self.assertEqual(message.content, "<think>" + _CALL)
    self.assertIs(message.tool_calls, msgspec.UNSET)

  def test_what_is_not_shown(self):
    reader = chat_reader.Reader(
      None, thought_prompt=None, skipped=("<s>", "[TOOL_CALLS]")
    )
    reader.push("a<s>b", is_last=False)
    reader.push("[TOOL_CALLS]", is_last=True)
    self.assertEqual(reader.message(True).content, "ab")

  def test_calls_alone_have_no_content(self):
    reader = chat_reader.Reader(_TOOLS, thought_prompt=None)
    _read(reader, _CALL, 7)
    self.assertIsNone(reader.message(True).content)


if __name__ == "__main__":
  absltest.main()
