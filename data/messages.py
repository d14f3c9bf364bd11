"""Rows of chat and preference data to messages as chat templates expect them.

Two forms of messages are read: `{"role": ..., "content": ...}` as in OpenAI's
API, and ShareGPT's `{"from": ..., "value": ...}`. What the row says besides, of
tools or to the template, is kept. Tables fill up missing fields with nulls,
which templates would take for values: they are left out.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

# Columns with the messages, if the config names none.
_USUAL_FIELDS = ("messages", "conversations")
_SHARE_GPT_ROLES = {
  "system": "system",
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "tool": "tool",
  "observation": "tool",
}
ASSISTANT = "assistant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
  """What a template renders.

  Attributes:
    messages: Each with its `role` and `content`.
    is_trained: Of each message, whether the model learns to write it: it is the
      assistant's, and its `weight` is not 0.
    tools: Functions that the model may call; empty if none.
    arguments: What else the template asks for.
  """

  messages: tuple[Mapping[str, Any], ...]
  is_trained: tuple[bool, ...]
  tools: tuple[Any, ...] = ()
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def part(self, *pieces: slice) -> "Conversation":
    """The messages of the slices, one after another."""
    return dataclasses.replace(
      self,
      messages=sum((self.messages[piece] for piece in pieces), ()),
      is_trained=sum((self.is_trained[piece] for piece in pieces), ()),
    )


class UntrainableError(ValueError):
  """There is nothing to learn from a row."""


def conversation(row: Mapping[str, Any], *, field: str) -> Conversation:
  """The conversation of a row.

  Args:
    row: Has messages, and may have `system` (a string), `tools` (a list, or
      JSON of one) and `chat_template_kwargs`.
    field: With the messages; empty: `messages` or `conversations`.

  Raises:
    UntrainableError: There are no messages.
    ValueError: They cannot be read.
  """
  if not field:
    present = [name for name in _USUAL_FIELDS if row.get(name) is not None]
    if len(present) != 1:
      raise ValueError(
        f"it has {', '.join(present) or 'none'} of {', '.join(_USUAL_FIELDS)}"
        f" (its fields are {', '.join(row)}); set data.sources[...].field to"
        " the one with the messages"
      )
    (field,) = present
  if row.get(field) is None:
    raise ValueError(
      f"it has no field {field!r}, but {', '.join(row)}; set"
      " data.sources[...].field to the one with the messages"
    )
  return _conversation(_with_system(_messages(row[field], field), row), row)


def pair(row: Mapping[str, Any]) -> tuple[Conversation, Conversation]:
  """The preferred and the other conversation of a row.

  Only their answers, in which they differ, are trained.

  Args:
    row: `chosen` and `rejected` are answers or whole conversations, and
      `prompt` is what they answer, if it is not in them: messages, or a string
      for one message of the user or of the assistant.

  Raises:
    UntrainableError: The two are equal, or empty.
    ValueError: They cannot be read, or do not answer the same prompt.
  """
  prompt = []
  if row.get("prompt") is not None:
    prompt = _messages_or_string(row["prompt"], "prompt", "user")
  sides = []
  for field in ("chosen", "rejected"):
    if row.get(field) is None:
      raise ValueError(
        f"it has no field {field!r}, but {', '.join(row)}; preference data has"
        " `chosen` and `rejected`, and may have `prompt`"
      )
    side = _messages_or_string(row[field], field, ASSISTANT)
    # Some data sets repeat the prompt in the conversations.
    if side[: len(prompt)] != prompt:
      if side[0]["role"] != ASSISTANT:
        raise ValueError(
          f"its field {field!r} neither begins with its prompt nor answers it;"
          " correct the row"
        )
      side = prompt + side
    sides.append(_with_system(side, row))
  chosen, rejected = sides
  if chosen == rejected:
    raise UntrainableError("its chosen and rejected are equal")
  # An answer begins with the assistant: what tools say is in the middle of it.
  shared = _num_shared(chosen, rejected)
  while shared and not all(
    side[shared:] and side[shared]["role"] == ASSISTANT for side in sides
  ):
    shared -= 1
  if not shared:
    raise ValueError(
      "its chosen and rejected do not go on from the same prompt with a message"
      " of the assistant; correct the row"
    )
  made = []
  for side in sides:
    found = _conversation(side, row)
    trained = [False] * shared + list(found.is_trained[shared:])
    made.append(dataclasses.replace(found, is_trained=tuple(trained)))
  return made[0], made[1]


def _conversation(
  messages: list[dict[str, Any]], row: Mapping[str, Any]
) -> Conversation:
  plain, is_trained = [], []
  for message in messages:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
      raise ValueError(
        f"the weight of a message is {weight}; it must be 0 or 1"
      )
    is_trained.append(message["role"] == ASSISTANT and bool(weight))
    plain.append({k: v for k, v in message.items() if k != "weight"})
  arguments = _json(row.get("chat_template_kwargs") or {})
  if not isinstance(arguments, dict):
    raise ValueError("its chat_template_kwargs are not an object")
  tools = _json(row.get("tools") or [])
  if not isinstance(tools, list):
    raise ValueError("its tools are not a list, nor JSON of one")
  return Conversation(
    messages=tuple(plain),
    is_trained=tuple(is_trained),
    tools=tuple(tools),
    arguments=_without_nulls(arguments),
  )


def _messages_or_string(
  value: Any, field: str, role: str
) -> list[dict[str, Any]]:
  if isinstance(value, str):
    return [{"role": role, "content": value}]
  return _messages(value, field)


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
  value = _json(value)
  if isinstance(value, dict):
    value = [value]
  if value == []:
    raise UntrainableError(f"its field {field!r} has no messages")
  if not isinstance(value, list):
    raise ValueError(
      f"its field {field!r} is {str(value)[:60]!r}, which is no list of"
      " messages; correct the row, or set data.sources[...].field"
    )
  return [_message(message, field) for message in value]


def _message(message: Any, field: str) -> dict[str, Any]:
  if not isinstance(message, dict):
    raise ValueError(
      f"its field {field!r} has {str(message)[:60]!r}, which is"
      " no message; correct the row"
    )
  message = _without_nulls(message)
  if "from" in message and "role" not in message:
    if message["from"] not in _SHARE_GPT_ROLES:
      raise ValueError(
        f"a message is from {message['from']!r}, which is none of"
        f" {', '.join(_SHARE_GPT_ROLES)}; give it as a role and content"
      )
    message["role"] = _SHARE_GPT_ROLES[message.pop("from")]
    message["content"] = message.pop("value", "")
  if not isinstance(message.get("role"), str):
    raise ValueError(
      f"its field {field!r} has a message without a role; its fields are"
      f" {', '.join(message)}"
    )
  message["content"] = _text(message.get("content", ""))
  if "reasoning" in message:
    message.setdefault("reasoning_content", message.pop("reasoning"))
  if calls := message.pop("tool_calls", None):
    message["tool_calls"] = [_call(call) for call in calls]
  return message


def _text(content: Any) -> str:
  """As one string, a line for each piece: some templates read nothing else."""
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list) else [content]
  for part in parts:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
      raise ValueError(
        f"the content of a message is {str(part)[:60]!r}; only text can be"
        " trained on"
      )
  return "\n".join(part["text"] for part in parts)


def _call(call: Any) -> dict[str, Any]:
  """A tool call, its arguments as a value: templates write them as JSON."""
  function = call.get("function", call) if isinstance(call, dict) else None
  if not isinstance(function, dict) or "name" not in function:
    raise ValueError(f"{str(call)[:60]!r} is no tool call; give its function")
  arguments = function.get("arguments") or {}
  try:
    found = _json(arguments)
  except ValueError:
    found = arguments
  function = {
    "name": function["name"],
    "arguments": found if isinstance(found, dict) else arguments,
  }
  made = {"type": "function", "function": function}
  return {"id": call["id"], **made} if call.get("id") is not None else made


def _json(value: Any) -> Any:
  """The value itself, or that of a string with JSON."""
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except ValueError as error:
    raise ValueError(f"{value[:60]!r} is no JSON ({error})") from error


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
  return {key: item for key, item in value.items() if item is not None}


def _with_system(
  messages: list[dict[str, Any]], row: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The messages after the system's, which some data sets have in a column."""
  system = row.get("system")
  if not isinstance(system, str) or not system:
    return messages
  if messages[0]["role"] == "system":
    return messages
  return [{"role": "system", "content": system}, *messages]


def _num_shared(one: list[dict], other: list[dict]) -> int:
  """How many messages the two begin with alike."""
  pairs = enumerate(zip(one, other, strict=False))
  different = (index for index, (a, b) in pairs if a != b)
  return next(different, min(len(one), len(other)))
