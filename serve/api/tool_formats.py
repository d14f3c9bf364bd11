r"""How models write that they call a tool: found out from the chat template.

  HERMES    <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>
  XML       <tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>
            ...\n</function>\n</tool_call>, of Qwen3-Coder (xml_rules.py)
  MISTRAL   [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
  MISTRAL_ARGS  [TOOL_CALLS]name[ARGS]{...}, and so on
  LLAMA     {"name": ..., "parameters": {...}}; {...}
  JSON      {"name": ..., "arguments": {...}}, or a list of these

What must be called, a grammar enforces. What may be called and has to follow
its schema (`strict`), one does as well, if the format begins with a mark.
"""

from collections.abc import Callable, Sequence
import dataclasses
import enum
import json
from typing import Any

import llguidance

from serve.api import messages as messages_lib


class Format(enum.Enum):
  """How a call is written."""

  HERMES = "hermes"
  XML = "xml"
  MISTRAL = "mistral"
  MISTRAL_ARGS = "mistral_args"
  LLAMA = "llama"
  JSON = "json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
  """By what calls are found in a text.

  Attributes:
    opening: Before calls; empty: a text is calls if it begins with `{`.
    closing: Behind each; empty: nothing.
    arguments: Their key.
  """

  opening: str
  closing: str
  arguments: str


MARKS = {
  Format.HERMES: Marks(
    opening="<tool_call>", closing="</tool_call>", arguments="arguments"
  ),
  Format.XML: Marks(
    opening="<tool_call>", closing="</tool_call>", arguments=""
  ),
  Format.MISTRAL: Marks(
    opening="[TOOL_CALLS]", closing="", arguments="arguments"
  ),
  Format.MISTRAL_ARGS: Marks(
    opening="[TOOL_CALLS]", closing="", arguments="arguments"
  ),
  Format.LLAMA: Marks(
    opening="<|python_tag|>", closing="", arguments="parameters"
  ),
  Format.JSON: Marks(opening="", closing="", arguments="arguments"),
}
ARGS = "[ARGS]"
FUNCTION = "<function="
PARAMETER = "<parameter="

# As the training data of such models write JSON.
_JSON_STYLE = {
  "whitespace_flexible": False,
  "item_separator": ", ",
  "key_separator": ": ",
}
_ANY_OBJECT = {"type": "object"}


def detect(template: str) -> Format:
  """The format that a template's own examples have."""
  if "[TOOL_CALLS]" in template:
    return Format.MISTRAL_ARGS if ARGS in template else Format.MISTRAL
  if FUNCTION in template and PARAMETER in template:
    return Format.XML
  if "<tool_call>" in template:
    return Format.HERMES
  if "<|python_tag|>" in template or '"parameters"' in template:
    return Format.LLAMA
  return Format.JSON


def forced(
  kind: Format,
  functions: Sequence[messages_lib.Function],
  *,
  is_parallel: bool,
  literal: Callable[[str], str],
) -> str:
  """The grammar, in Lark's syntax, of one call or several of the functions.

  Args:
    kind: How calls are written.
    functions: Of which one is called.
    is_parallel: More than one call may be made.
    literal: A text in Lark's syntax; a special token has its own.
  """
  assert kind is not Format.XML, "xml_rules.py has it."
  marks = MARKS[kind]
  is_strict = any(function.strict for function in functions)

  def body(schema: Any, name: str = "body") -> str:
    return f"{name}: {json_rule(schema, is_strict=is_strict)}\n"

  options = [_call(function, marks.arguments) for function in functions]
  call = options[0] if len(options) == 1 else {"anyOf": options}
  calls = {"type": "array", "items": call, "minItems": 1}
  if not is_parallel:
    calls["maxItems"] = 1
  opening = literal(marks.opening)
  line = quoted("\n")
  match kind:
    case Format.HERMES:
      start = f"call ({line} call)*" if is_parallel else "call"
      closing = literal(marks.closing)
      rule = f"call: {opening} {line} body {line} {closing}\n"
      return f"start: {start}\n{rule}{body(call)}"
    case Format.MISTRAL:
      return f"start: {opening} body\n{body(calls)}"
    case Format.MISTRAL_ARGS:
      rules = [
        f"call_{number}: {opening} {quoted(function.name)} {literal(ARGS)}"
        f" body_{number}\n"
        + body(function.parameters or _ANY_OBJECT, f"body_{number}")
        for number, function in enumerate(functions)
      ]
      names = " | ".join(f"call_{number}" for number in range(len(functions)))
      start = f"({names})+" if is_parallel else f"({names})"
      return f"start: {start}\n{''.join(rules)}"
    case Format.LLAMA:
      start = f"body ({quoted('; ')} body)*" if is_parallel else "body"
      return f"start: {start}\n{body(call)}"
    case Format.JSON:
      return f"start: body\n{body(calls if is_parallel else call)}"


def allowed(
  kind: Format, functions: Sequence[messages_lib.Function]
) -> str | None:
  """The grammar of a text with calls, if any, that follow their schemas.

  Returns:
    None: the format cannot be told from text before it ends.
  """
  if kind is not Format.HERMES:
    return None
  marks = MARKS[kind]
  tags = [
    llguidance.StructTag(
      # With its last letter it would be a special token, which it is not.
      trigger=marks.opening[:-1],
      begin=f'{marks.opening}\n{{"name": "{function.name}", "arguments": ',
      grammar={
        **(function.parameters or _ANY_OBJECT),
        "x-guidance": _JSON_STYLE | {"lenient": not function.strict},
      },
      end=f"}}\n{marks.closing}",
    )
    for function in functions
  ]
  return llguidance.StructTag.to_grammar(tags)


def _call(function: messages_lib.Function, arguments: str) -> dict[str, Any]:
  schema = function.parameters or _ANY_OBJECT
  return {
    "type": "object",
    "properties": {
      "name": {"const": function.name},
      # With an id, it is where its references (`#/$defs/...`) begin.
      arguments: {"$id": f"urn:function:{function.name}", **schema},
    },
    "required": ["name", arguments],
    "additionalProperties": False,
  }


def json_rule(schema: Any, *, is_strict: bool, is_spaced: bool = True) -> str:
  """The right side of a Lark rule for JSON of a schema.

  Args:
    schema: The schema.
    is_strict: Keywords that cannot be enforced are refused, not ignored.
    is_spaced: As in training data; else compact, as answers are.
  """
  style = _JSON_STYLE if is_spaced else {"whitespace_flexible": False}
  options = style | {"lenient": not is_strict}
  if not isinstance(schema, dict):
    schema = {"allOf": [schema]}
  return f"%json {json.dumps(schema | {'x-guidance': options})}"


def overlap(text: str, mark: str) -> int:
  """How much of the text's end could be the mark's beginning."""
  for length in range(min(len(mark) - 1, len(text)), 0, -1):
    if text.endswith(mark[:length]):
      return length
  return 0


def quoted(text: str) -> str:
  """A text in the syntax of Lark."""
  return json.dumps(text, ensure_ascii=False)
