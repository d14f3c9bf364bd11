r"""Grammars of calls of tools between XML tags, in Lark's syntax.

What xml_calls.py reads, as Qwen3-Coder's template writes it. Parameters come in
the order of the schema; those that are not required may be left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.api import errors
from serve.api import messages as messages_lib
from serve.api import tool_formats
from serve.api import xml_values

_END = "</parameter>"
_MAX_DEPTH = 16
# Keywords that a strict schema may have: those that say nothing of values, and
# for arguments those that are enforced.
_ANNOTATIONS = (
  "$comment",
  "$defs",
  "$id",
  "$schema",
  "default",
  "definitions",
  "deprecated",
  "description",
  "examples",
  "title",
)
_SAID_OF_ALL = (
  "$ref",
  "additionalProperties",
  "properties",
  "required",
  "type",
)
_UNIONS = ("anyOf", "oneOf")
# Whatever a text is, it ends at the first such mark. Between a key's tags is a
# line, and no `>`.
_SHARED = f"""text[suffix={tool_formats.quoted(_END)}]: /(.|\\n)*/
key[suffix=">"]: /[^>\\n]+/
"""


def forced(
  functions: Sequence[messages_lib.Function],
  *,
  is_parallel: bool,
  literal: Callable[[str], str],
) -> str:
  """One call or several; the arguments as of `tool_formats.forced`.

  Raises:
    errors.ApiError: What a function wants cannot be enforced.
  """
  marks = tool_formats.MARKS[tool_formats.Format.XML]
  line = tool_formats.quoted("\n")
  begin = tool_formats.quoted(f"\n{tool_formats.FUNCTION}")
  start = f"call ({line} call)*" if is_parallel else "call"
  return (
    f"start: {start}\n"
    f"call: {literal(marks.opening)} {begin} function {line}"
    f" {literal(marks.closing)}\n{_functions(functions)}"
  )


def allowed(functions: Sequence[messages_lib.Function]) -> str:
  """A text with calls, if any.

  Raises:
    errors.ApiError: As of `forced`.
  """
  marks = tool_formats.MARKS[tool_formats.Format.XML]
  # With its last letter it would be a special token, which it is not.
  trigger = tool_formats.quoted(marks.opening[:-1])
  rest = tool_formats.quoted(f"{marks.opening[-1:]}\n{tool_formats.FUNCTION}")
  closing = tool_formats.quoted(f"\n{marks.closing}")
  return (
    "start: (marked | bare)* SAID\n"
    "SAID: /(.|\\n)*/\n"
    f"mark[lazy]: SAID {trigger}\n"
    f"marked: mark {rest} function {closing}\n"
    f"name[lazy]: SAID {tool_formats.quoted(tool_formats.FUNCTION)}\n"
    f"bare: name function\n{_functions(functions)}"
  )


def _functions(functions: Sequence[messages_lib.Function]) -> str:
  """Rules of what follows `<function=`."""
  names = [f"function_{number}" for number in range(len(functions))]
  rules = [f"function: {' | '.join(names)}\n"]
  for name, function in zip(names, functions, strict=True):
    rules += _function(name, function)
  return "".join(rules) + _SHARED


def _function(name: str, function: messages_lib.Function) -> list[str]:
  root = function.parameters or {}
  target = _target(root, function.name)
  if function.strict:
    _check_strict({**root, **target}, function.name)
  parameters = xml_values.parameters(root)
  begin = tool_formats.quoted(f"{function.name}>\n")
  end = tool_formats.quoted("</function>")
  line = tool_formats.quoted("\n")
  if not parameters and "properties" not in target:
    mark = tool_formats.quoted(tool_formats.PARAMETER)
    return [f"{name}: {begin} ({mark} key {line} text {line})* {end}\n"]
  required = xml_values.required(root)
  parts, rules = [], []
  for number, (key, schema) in enumerate(parameters.items()):
    if ">" in key or "\n" in key:
      raise _refused(f"has a parameter {key!r}, whose tag", function.name)
    mark = tool_formats.quoted(f"{tool_formats.PARAMETER}{key}>\n")
    rule = f"{name}_{number}"
    value = _value(schema, root, function)
    rules.append(f"{rule}: {mark} {value} {line}\n")
    parts.append(rule if key in required else f"{rule}?")
  return [f"{name}: {begin} {' '.join(parts)} {end}\n", *rules]


def _value(
  schema: Any, root: Mapping[str, Any], function: messages_lib.Function
) -> str:
  """A value, with the mark at its end."""
  end = tool_formats.quoted(f"\n{_END}")
  if texts := xml_values.options(schema, root):
    for text in texts:
      if _END in text:
        raise _refused(f"has the option {text!r}, which", function.name)
    return f"({' | '.join(map(tool_formats.quoted, texts))}) {end}"
  names = xml_values.types(schema, root)
  if not names or "string" in names:
    if function.strict:
      _check_strict_text(schema, root, function.name)
    return "text"
  shared = {k: root[k] for k in ("$defs", "definitions") if k in root}
  rule = tool_formats.json_rule(
    {**schema, **shared}, is_strict=bool(function.strict)
  )
  return f"{rule} {end}"


def _target(root: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """What a function's schema is, or refers to; refuses what is no schema."""
  target = xml_values.target(root, root)
  if not isinstance(target, Mapping):
    raise _refused("has a schema whose $ref leads nowhere, which", name)
  if not isinstance(target.get("properties", {}), Mapping):
    raise _refused("has 'properties' that are no object, which", name)
  required = target.get("required", [])
  is_list = isinstance(required, list)
  if not is_list or not all(isinstance(key, str) for key in required):
    raise _refused("has 'required' that is no list of names, which", name)
  return target


def _check_strict(root: Mapping[str, Any], name: str) -> None:
  """Refuses what is said of the arguments as a whole."""
  for key in root:
    if key not in _SAID_OF_ALL and key not in _ANNOTATIONS:
      raise _refused(f"is strict, but its keyword {key!r}", name)


def _check_strict_text(
  schema: Any, root: Mapping[str, Any], name: str, depth: int = 0
) -> None:
  """Refuses what is said of a string: any may stand there."""
  schema = xml_values.target(schema, root)
  if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
    if schema is True:
      return
    raise _refused(f"is strict, but the schema {schema!r}", name)
  for key, value in schema.items():
    if key in _UNIONS and isinstance(value, list):
      for option in value:
        _check_strict_text(option, root, name, depth + 1)
    elif key != "type" and key not in _ANNOTATIONS:
      raise _refused(f"is strict, but the keyword {key!r} of a text", name)


def _refused(what: str, name: str) -> errors.ApiError:
  return errors.refused(
    "tools",
    f"The function {name!r} {what} cannot be enforced in this model's form of"
    " calls, texts between XML tags; leave it out.",
    code="unsupported_value",
  )
