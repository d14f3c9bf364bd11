from absl.testing import absltest
import msgspec

from serve import grammar
from serve.api import chat_rules
from serve.api import errors
from serve.api import fixtures
from serve.api import requests
from serve.api import tool_formats

_HELLO = [{"role": "user", "content": "Hi"}]
_ADD = {"type": "function", "function": {"name": "add"}}


def _strict():
  return {"type": "function", "function": {"name": "add", "strict": True}}


def _read(template=fixtures.TEMPLATE, **fields):
  body = msgspec.convert(
    {"model": "m", "messages": _HELLO, **fields}, requests.Chat
  )
  tools = chat_rules.offered(body)
  context = fixtures.context(fixtures.FakeEngine())
  kind = tool_formats.detect(template)
  return chat_rules.read(body, tools, kind, context)


class ChatRulesTest(absltest.TestCase):
  def test_nothing_to_obey(self):
    self.assertEqual(_read(), (None, None))
    self.assertEqual(_read(tools=[_ADD], tool_choice="none"), (None, None))
    for choice in (None, "auto"):
      rule, tools = _read(tools=[_ADD], tool_choice=choice)
      self.assertIsNone(rule)
      assert tools is not None
      self.assertEqual(tools.names, ("add",))
      self.assertIs(tools.kind, tool_formats.Format.HERMES)
      self.assertTrue(tools.is_parallel)
      self.assertFalse(tools.has_special_marks)

  def test_what_must_be_called(self):
    for fields in (
      {"tool_choice": "required"},
      {"tool_choice": {"type": "function", "function": {"name": "add"}}},
    ):
      rule, _ = _read(tools=[_ADD], **fields)
      assert rule is not None and isinstance(rule.rule, grammar.Lark)
      self.assertStartsWith(rule.rule.grammar, "start: call")

  def test_what_is_named_is_called_once(self):
    named = {"type": "function", "function": {"name": "add"}}
    for choice, start in (("required", "call ("), (named, "call\n")):
      rule, _ = _read(tools=[_ADD], tool_choice=choice)
      assert rule is not None and isinstance(rule.rule, grammar.Lark)
      self.assertStartsWith(rule.rule.grammar, f"start: {start}")

  def test_strict(self):
    rule, _ = _read(tools=[_strict()])
    self.assertIsNotNone(rule)
    rule, _ = _read("<function=f><parameter=p>", tools=[_strict()])
    self.assertIsNotNone(rule)
    with self.assertRaisesRegex(errors.ApiError, "strict"):
      _read("<|python_tag|>", tools=[_strict()])

  def test_a_schema_or_calls(self):
    rule, _ = _read(tools=[_ADD], response_format={"type": "json_object"})
    assert rule is not None and isinstance(rule.rule, grammar.Lark)
    self.assertIn("start: said | calls", rule.rule.grammar)
    with self.assertRaisesRegex(errors.ApiError, "JSON schema"):
      _read(tools=[_ADD], guided_regex="a")

  def test_refuses(self):
    for fields in (
      {"tools": [_ADD, _ADD]},
      {"tool_choice": "required"},
      {
        "tools": [_ADD],
        "tool_choice": {"type": "function", "function": {"name": "sub"}},
      },
    ):
      with self.assertRaises(errors.ApiError):
        _read(**fields)


if __name__ == "__main__":
  absltest.main()
