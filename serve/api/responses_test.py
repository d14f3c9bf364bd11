from typing import Any

from absl.testing import absltest
import msgspec
from openai import types
from openai.types import chat

from serve.api import responses


class ResponsesTest(absltest.TestCase):
  def test_the_client_understands_them(self):
    usage = responses.Usage(
      prompt_tokens=1,
      completion_tokens=2,
      total_tokens=3,
      prompt_tokens_details=responses.PromptDetails(cached_tokens=0),
    )
    head: Any = {
      "id": "a",
      "created": 1,
      "model": "m",
      "system_fingerprint": "step-1",
    }
    call = responses.ToolCall(
      id="b", function=responses.FunctionCall(name="f", arguments="{}")
    )
    message = responses.Message(content=None, tool_calls=[call])
    choice = responses.ChatChoice(
      index=0, message=message, logprobs=None, finish_reason="tool_calls"
    )
    completion = responses.CompletionChoice(
      index=0, text="", logprobs=None, finish_reason="stop"
    )
    delta = responses.ChatChunkChoice(
      index=0, delta=responses.Delta(), logprobs=None, finish_reason=None
    )
    made: list[Any] = [
      (
        responses.Chat(**head, choices=[choice], usage=usage),
        chat.ChatCompletion,
      ),
      (
        responses.Completion(**head, choices=[completion], usage=usage),
        types.Completion,
      ),
      (
        responses.ChatChunk(**head, choices=[delta]),
        chat.ChatCompletionChunk,
      ),
      (responses.Model(id="m", created=1, max_model_len=8), types.Model),
    ]
    for body, kind in made:
      kind.model_validate_json(msgspec.json.encode(body), strict=True)

  def test_what_was_not_asked_for_is_not_there(self):
    self.assertEqual(msgspec.json.encode(responses.Delta()), b"{}")


if __name__ == "__main__":
  absltest.main()
