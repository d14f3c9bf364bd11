r"""Tools for chat templates that do not know any: as text within messages.

What may be called is told in front of the conversation. Calls and what came of
them are written as Hermes models have them, `tool_formats.Format.HERMES`; no
role is used that a template may refuse.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from serve.api import tool_formats

FORMAT = tool_formats.Format.HERMES

_MARKS = tool_formats.MARKS[FORMAT]
_TOLD = f"""\
You may call functions. Each line is one, with a JSON schema of its parameters:
{{lines}}
To call one, answer with its name and arguments as JSON, like this:
{_MARKS.opening}
{{{{"name": "...", "{_MARKS.arguments}": {{{{...}}}}}}}}
{_MARKS.closing}"""
_RESULT = "<tool_response>\n{content}\n</tool_response>"


def tell(
  messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """The conversation without `tool_calls` and messages of tools.

  Args:
    messages: As `messages.to_template` gives them.
    tools: As `messages.tools_to_template` does; empty: nothing may be called.
  """
  told: list[dict[str, Any]] = []
  is_result = False
  for message in messages:
    role = message["role"]
    # Roles of many templates must alternate.
    joins = is_result and role in ("tool", "user")
    is_result = role == "tool"
    plain = _plain(message)
    if joins:
      told[-1]["content"] += "\n" + plain["content"]
    else:
      told.append(plain)
  if not tools:
    return told
  lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
  text = _TOLD.format(lines="\n".join(lines))
  for message in told:
    if message["role"] != "assistant":
      parts = [message["content"], text]
      if message["role"] == "user":
        parts.reverse()
      message["content"] = "\n\n".join(filter(None, parts))
      return told
  return [{"role": "user", "content": text}, *told]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message with its content and role alone, and its name."""
  content = message["content"]
  if message["role"] == "tool":
    return {"role": "user", "content": _RESULT.format(content=content)}
  plain = {key: message[key] for key in message if key != "tool_calls"}
  calls = [
    f"{_MARKS.opening}\n{_call(call['function'])}\n{_MARKS.closing}"
    for call in message.get("tool_calls", ())
  ]
  plain["content"] = "\n".join(part for part in (content, *calls) if part)
  return plain


def _call(function: Mapping[str, Any]) -> str:
  call = {"name": function["name"], _MARKS.arguments: function["arguments"]}
  return json.dumps(call, ensure_ascii=False)
