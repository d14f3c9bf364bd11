from absl.testing import absltest
import msgspec

from serve.api import messages


def _read(*plain):
  return msgspec.convert(list(plain), list[messages.Message])


class MessagesTest(absltest.TestCase):
  def test_roles_and_contents(self):
    given = _read(
      {"role": "developer", "content": "a"},
      {
        "role": "user",
        "name": "n",
        "content": [{"type": "text", "text": "b"}] * 2,
      },
      {"role": "assistant", "refusal": "no"},
      {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "never"}],
        "reasoning_content": "hm",
      },
      {"role": "tool", "tool_call_id": "1", "content": "c"},
    )
    wanted = [
      {"role": "system", "content": "a"},
      {"role": "user", "content": "b\nb", "name": "n"},
      {"role": "assistant", "content": "no"},
      {"role": "assistant", "content": "never", "reasoning_content": "hm"},
      {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]
    self.assertEqual(messages.to_template(given, has_developer=False), wanted)
    developer = messages.to_template(given, has_developer=True)[0]
    self.assertEqual(developer["role"], "developer")

  def test_tool_calls(self):
    for arguments, wanted in (
      ('{"a": 1}', {"a": 1}),
      ("", {}),
      ("[1]", "[1]"),
      ("{broken", "{broken"),
    ):
      call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
      (plain,) = messages.to_template(
        _read({"role": "assistant", "tool_calls": [call]}),
        has_developer=False,
      )
      self.assertEqual(plain["content"], "")
      (made,) = plain["tool_calls"]
      self.assertEqual(made["function"], {"name": "f", "arguments": wanted})

  def test_tools(self):
    tools = msgspec.convert(
      [{"type": "function", "function": {"name": "f", "strict": True}}],
      list[messages.Tool],
    )
    function = {
      "name": "f",
      "description": "",
      "parameters": {"type": "object", "properties": {}},
    }
    self.assertEqual(
      messages.tools_to_template(tools),
      [{"type": "function", "function": function}],
    )

  def test_refuses(self):
    for plain in (
      {"role": "user"},
      {"role": "user", "content": None},
      {"role": "user", "content": []},
      {"role": "user", "content": [{"text": "a"}]},
      {"role": "user", "content": "a", "tool_calls": []},
      {"role": "tool", "content": "a"},
      {"role": "assistant", "function_call": {}},
    ):
      with self.assertRaises(msgspec.ValidationError):
        _read(plain)


if __name__ == "__main__":
  absltest.main()
