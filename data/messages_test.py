import json

from absl.testing import absltest
from absl.testing import parameterized

from data import conversation_fixtures as fixtures
from data import messages

_CHAT = fixtures.chat("a", "b", system="s")


def roles(conversation):
  return [(m["role"], m["content"]) for m in conversation.messages]


class ConversationTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"messages": _CHAT}, ""),
    ({"messages": json.dumps(_CHAT)}, ""),
    ({"conversations": _CHAT, "messages": None}, ""),
    ({"said": _CHAT, "messages": [{}]}, "said"),
    ({"messages": _CHAT, "system": "not this"}, ""),
    ({"messages": _CHAT[1:], "system": "s"}, ""),
    (
      {
        "conversations": [
          {"from": "system", "value": "s"},
          {"from": "human", "value": "a", "weight": None},
          {"from": "gpt", "value": "b"},
        ]
      },
      "",
    ),
    (
      {
        "messages": [
          _CHAT[0],
          {"role": "user", "content": [{"type": "text", "text": "a"}]},
          {**_CHAT[2], "tool_calls": None, "weight": 1},
        ]
      },
      "",
    ),
  )
  def test_reads(self, row, field):
    found = messages.conversation(row, field=field)
    self.assertEqual(
      roles(found), [("system", "s"), ("user", "a"), ("assistant", "b")]
    )
    self.assertEqual(found.is_trained, (False, False, True))
    for message in found.messages:
      self.assertSameElements(message, ("role", "content"))

  def test_what_an_assistant_has_besides(self):
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": null}'}}
    bad = {"type": "x", "function": {"name": "g", "arguments": "not JSON"}}
    message = {
      "role": "assistant",
      "content": None,
      "reasoning": "why",
      "tool_calls": [call, bad, {"name": "h", "arguments": None}],
      "weight": 0,
    }
    found = messages.conversation({"messages": [message]}, field="")
    (plain,) = found.messages
    self.assertEqual(found.is_trained, (False,))
    self.assertEqual(
      (plain["content"], plain["reasoning_content"]), ("", "why")
    )
    self.assertEqual(
      [call["function"]["arguments"] for call in plain["tool_calls"]],
      [{"a": None}, "not JSON", {}],
    )
    self.assertEqual(plain["tool_calls"][0]["id"], "1")

  @parameterized.parameters(
    ({"text": "x"}, "", "it has none of messages, conversations .* text"),
    ({"messages": [], "conversations": []}, "", "messages, conversations of"),
    ({"messages": _CHAT}, "said", "no field 'said', but messages"),
    ({"messages": 1}, "", "no list of messages"),
    ({"messages": []}, "", "has no messages"),
    ({"messages": "hello"}, "", "is no JSON"),
    ({"messages": ["hello"]}, "", "no message"),
    ({"messages": [{"content": "a"}]}, "", "without a role"),
    ({"messages": [{"from": "bing", "value": "a"}]}, "", "from 'bing'"),
    (
      {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
      "",
      "only text can be trained on",
    ),
    ({"messages": [{**_CHAT[2], "weight": 0.5}]}, "", "weight .* is 0.5"),
    ({"messages": [{**_CHAT[2], "tool_calls": ["f"]}]}, "", "no tool call"),
    ({"messages": _CHAT, "tools": "{}"}, "", "tools are not a list"),
    (
      {"messages": _CHAT, "chat_template_kwargs": [1]},
      "",
      "chat_template_kwargs are not",
    ),
  )
  def test_refuses(self, row, field, message):
    with self.assertRaisesRegex(ValueError, message):
      messages.conversation(row, field=field)


class PairTest(parameterized.TestCase):
  @parameterized.parameters(
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": fixtures.chat("a"), "chosen": "b", "rejected": "c"},
    {
      "prompt": "a",
      "chosen": [{"role": "assistant", "content": "b"}],
      "rejected": {"role": "assistant", "content": "c"},
    },
    # UltraFeedback has the prompt three times.
    {
      "prompt": "a",
      "chosen": fixtures.chat("a", "b"),
      "rejected": fixtures.chat("a", "c"),
    },
    {"chosen": fixtures.chat("a", "b"), "rejected": fixtures.chat("a", "c")},
  )
  def test_reads(self, **row):
    for system in ("", "s"):
      chosen, rejected = messages.pair({**row, "system": system})
      prompt = [("system", "s")] if system else []
      prompt.append(("user", "a"))
      self.assertEqual(roles(chosen), [*prompt, ("assistant", "b")])
      self.assertEqual(roles(rejected), [*prompt, ("assistant", "c")])
      for side in (chosen, rejected):
        self.assertEqual(side.is_trained, (*[False] * len(prompt), True))

  def test_only_where_they_differ(self):
    chosen, rejected = messages.pair(
      {
        "chosen": fixtures.chat("a", "b", "c", "d"),
        "rejected": fixtures.chat("a", "b", "c", "e", "f", "g"),
      }
    )
    self.assertEqual(chosen.is_trained, (False, False, False, True))
    self.assertEqual(
      rejected.is_trained, (False, False, False, True, False, True)
    )
    # One is the beginning of the other: the last shared answer is the first.
    chosen, rejected = messages.pair(
      {
        "chosen": fixtures.chat("a", "b"),
        "rejected": fixtures.chat("a", *"bcd"),
      }
    )
    self.assertEqual(chosen.is_trained, (False, True))
    self.assertEqual(rejected.is_trained, (False, True, False, True))

  @parameterized.parameters(
    ({"prompt": "a", "chosen": "b"}, "no field 'rejected', but prompt, chosen"),
    ({"chosen": "b", "rejected": "c"}, "do not go on from the same prompt"),
    (
      {"chosen": fixtures.chat("a", "b"), "rejected": fixtures.chat("x", "b")},
      "do not go on from the same prompt",
    ),
    (
      {
        "prompt": "x",
        "chosen": fixtures.chat("a", "b"),
        "rejected": fixtures.chat("a", "c"),
      },
      "'chosen' neither begins with its prompt nor answers it",
    ),
  )
  def test_refuses(self, row, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      messages.pair(row)
    self.assertNotIsInstance(caught.exception, messages.UntrainableError)

  def test_equal_answers(self):
    with self.assertRaises(messages.UntrainableError):
      messages.pair({"prompt": "a", "chosen": "b", "rejected": "b"})


if __name__ == "__main__":
  absltest.main()
