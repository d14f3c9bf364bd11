from absl.testing import absltest

from serve.api import told_tools

_ADD = {
  "type": "function",
  "function": {"name": "add", "parameters": {"type": "object"}},
}
_SYSTEM = {"role": "system", "content": "Be brief."}
_ASKED = {"role": "user", "content": "1 + 2?"}
_CALLED = {
  "role": "assistant",
  "content": "",
  "tool_calls": [
    {"function": {"name": "add", "arguments": {"a": 1}}},
    {"function": {"name": "add", "arguments": "no JSON"}},
  ],
}
_RESULTS = [
  {"role": "tool", "content": content, "tool_call_id": "1"} for content in "34"
]


class ToldToolsTest(absltest.TestCase):
  def test_functions_are_told_in_front(self):
    system, asked = told_tools.tell([_SYSTEM, _ASKED], [_ADD])
    self.assertStartsWith(system["content"], "Be brief.\n\nYou may call")
    self.assertIn('{"name": "add", "parameters"', system["content"])
    self.assertEndsWith(
      system["content"],
      '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>',
    )
    self.assertEqual(asked, _ASKED)
    (asked,) = told_tools.tell([_ASKED], [_ADD])
    self.assertStartsWith(asked["content"], "You may call")
    self.assertEndsWith(asked["content"], "\n\n1 + 2?")
    first, _ = told_tools.tell([_CALLED], [_ADD])
    self.assertEqual(first["role"], "user")

  def test_calls_and_results_are_text(self):
    told = told_tools.tell([_ASKED, _CALLED, *_RESULTS, _ASKED], [])
    self.assertEqual(
      told,
      [
        _ASKED,
        {
          "role": "assistant",
          "content": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n'
          '</tool_call>\n<tool_call>\n{"name": "add", "arguments": "no JSON"}\n'
          "</tool_call>",
        },
        {
          "role": "user",
          "content": "<tool_response>\n3\n</tool_response>\n<tool_response>\n4"
          "\n</tool_response>\n1 + 2?",
        },
      ],
    )

  def test_what_was_given_stays(self):
    told_tools.tell([_ASKED], [_ADD])
    self.assertEqual(_ASKED, {"role": "user", "content": "1 + 2?"})


if __name__ == "__main__":
  absltest.main()
