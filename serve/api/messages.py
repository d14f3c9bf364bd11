"""Messages of a conversation and tools, as requests give them.

A template gets `to_template` of them: plain values as published templates
expect, which were written for Hugging Face's renderer.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_FunctionName = Annotated[
  str, msgspec.Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$", title="FunctionName")
]


class _Struct(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
  pass


class TextPart(_Struct, kw_only=True):
  """A piece of a message; other kinds than text are not read."""

  type: Literal["text"]
  text: str


class SaidPart(_Struct, kw_only=True, tag_field="type", tag="text"):
  """A piece of what a model has said."""

  text: str


class RefusalPart(_Struct, kw_only=True, tag_field="type", tag="refusal"):
  """A piece in which a model has refused."""

  refusal: str


_Parts = Annotated[list[TextPart], msgspec.Meta(min_length=1)]
# Not one struct: a tag is only asked for where there are several.
_AnswerParts = Annotated[
  list[SaidPart | RefusalPart], msgspec.Meta(min_length=1)
]


class _Message(_Struct, tag_field="role"):
  pass


class System(_Message, kw_only=True, tag="system"):
  """What holds for the whole conversation."""

  content: str | _Parts
  name: _Name | None = None


class Developer(_Message, kw_only=True, tag="developer"):
  """The newer name of `system`."""

  content: str | _Parts
  name: _Name | None = None


class User(_Message, kw_only=True, tag="user"):
  """What a user says."""

  content: str | _Parts
  name: _Name | None = None


class FunctionCall(_Struct, kw_only=True):
  """A function and its arguments, which are JSON in a string."""

  name: _FunctionName
  arguments: str


class ToolCall(_Struct, kw_only=True):
  """A call that the model has made."""

  id: _Name
  function: FunctionCall
  type: Literal["function"] = "function"
  index: int | None = None


class Assistant(_Message, kw_only=True, tag="assistant"):
  """What the model has said."""

  content: str | _AnswerParts | None = None
  name: _Name | None = None
  refusal: str | None = None
  reasoning_content: str | None = None
  reasoning: str | None = None
  tool_calls: list[ToolCall] | None = None
  annotations: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
  audio: None = None
  function_call: None = None


class ToolResult(_Message, kw_only=True, tag="tool"):
  """What a function has answered."""

  content: str | _Parts
  tool_call_id: _Name
  name: _Name | None = None


Message = System | Developer | User | Assistant | ToolResult


class Function(_Struct, kw_only=True):
  """A function that the model may call.

  Attributes:
    name: Its name.
    description: What it does.
    parameters: A JSON schema of its arguments; none: any object.
    strict: The arguments follow the schema.
  """

  name: _FunctionName
  description: str | None = None
  parameters: dict[str, Any] | None = None
  strict: bool | None = None


class Tool(_Struct, kw_only=True):
  """A tool: a function."""

  function: Function
  type: Literal["function"] = "function"


class FunctionName(_Struct, kw_only=True):
  """The name of a function."""

  name: _FunctionName


class NamedTool(_Struct, kw_only=True):
  """The tool that must be called."""

  function: FunctionName
  type: Literal["function"] = "function"


def to_template(
  messages: Sequence[Message], *, has_developer: bool
) -> list[dict[str, Any]]:
  """Messages as templates expect them.

  Args:
    messages: The conversation.
    has_developer: The template knows the role; else it is `system`.
  """
  return [_message(message, has_developer) for message in messages]


def tools_to_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
  """Tools as templates expect them."""
  return [
    {
      "type": "function",
      "function": {
        "name": tool.function.name,
        "description": tool.function.description or "",
        "parameters": tool.function.parameters
        or {"type": "object", "properties": {}},
      },
    }
    for tool in tools
  ]


def _message(message: Message, has_developer: bool) -> dict[str, Any]:
  match message:
    case Developer():
      role = "developer" if has_developer else "system"
    case ToolResult():
      role = "tool"
    case System():
      role = "system"
    case User():
      role = "user"
    case Assistant():
      role = "assistant"
  plain: dict[str, Any] = {"role": role, "content": _text(message.content)}
  if message.name is not None:
    plain["name"] = message.name
  if isinstance(message, ToolResult):
    plain["tool_call_id"] = message.tool_call_id
  if isinstance(message, Assistant):
    if message.refusal is not None and message.content is None:
      plain["content"] = message.refusal
    reasoning = message.reasoning_content or message.reasoning
    if reasoning is not None:
      plain["reasoning_content"] = reasoning
    if message.tool_calls:
      plain["tool_calls"] = [
        {
          "id": call.id,
          "type": "function",
          "function": {
            "name": call.function.name,
            "arguments": _arguments(call.function.arguments),
          },
        }
        for call in message.tool_calls
      ]
  return plain


def _text(
  content: str | Sequence[TextPart | SaidPart | RefusalPart] | None,
) -> str:
  """One text, a line for each piece: some templates read nothing else."""
  if content is None:
    return ""
  if isinstance(content, str):
    return content
  return "\n".join(
    part.refusal if isinstance(part, RefusalPart) else part.text
    for part in content
  )


def _arguments(arguments: str) -> dict[str, Any] | str:
  """As a value, which templates expect; what a model wrote may be no JSON."""
  try:
    found = msgspec.json.decode(arguments or "{}")
  except (msgspec.DecodeError, RecursionError):
    return arguments
  return found if isinstance(found, dict) else arguments
