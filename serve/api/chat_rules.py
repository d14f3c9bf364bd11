"""Which tools a chat offers, and what its answer must obey because of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from serve import grammar
from serve.api import constraints
from serve.api import context as context_lib
from serve.api import conversations
from serve.api import errors
from serve.api import messages as messages_lib
from serve.api import requests
from serve.api import tool_formats
from serve.api import xml_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
  """How calls are found in an answer.

  Attributes:
    kind: How they are written.
    names: Of the functions.
    is_parallel: More than one call may be made.
    has_special_marks: They begin with a special token.
    schemas: Of the functions' arguments, by name.
  """

  kind: tool_formats.Format
  names: tuple[str, ...]
  is_parallel: bool
  has_special_marks: bool
  schemas: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def offered(body: requests.Chat) -> Sequence[messages_lib.Tool]:
  """The tools that the model may call.

  Raises:
    errors.ApiError: Two have one name, or one is chosen that is not there.
  """
  tools = body.tools or []
  names = [tool.function.name for tool in tools]
  for name in names:
    if names.count(name) > 1:
      raise errors.refused(
        "tools", f"tools has {name!r} twice; name each once."
      )
  choice = body.tool_choice
  if choice == "required" and not tools:
    raise errors.refused(
      "tool_choice", "tool_choice is 'required', but there are no tools."
    )
  if (
    isinstance(choice, messages_lib.NamedTool)
    and choice.function.name not in names
  ):
    raise errors.refused(
      "tool_choice",
      f"tool_choice names {choice.function.name!r}, which is not in tools.",
    )
  return [] if choice == "none" else tools


def read(
  body: requests.Chat,
  tools: Sequence[messages_lib.Tool],
  kind: tool_formats.Format,
  context: context_lib.Context,
) -> tuple[constraints.Rule | None, Tools | None]:
  """The rule of a chat's answers, and how calls are found in them.

  Args:
    body: The request.
    tools: That may be called.
    kind: How the model writes calls.
    context: What is served.

  Raises:
    errors.ApiError: Rules contradict each other, or cannot be enforced.
  """
  rule = constraints.read(body)
  if not tools:
    return rule, None

  def literal(text: str) -> str:
    return conversations.literal(text, context)

  is_named = isinstance(body.tool_choice, messages_lib.NamedTool)
  # What is named is called, once.
  is_parallel = body.parallel_tool_calls is not False and not is_named
  functions = [tool.function for tool in tools]
  opening = tool_formats.MARKS[kind].opening
  found = Tools(
    kind=kind,
    names=tuple(function.name for function in functions),
    is_parallel=is_parallel,
    has_special_marks=bool(opening) and literal(opening).startswith("<["),
    schemas={function.name: function.parameters for function in functions},
  )
  choice = body.tool_choice
  must_call = choice == "required"
  if isinstance(choice, messages_lib.NamedTool):
    must_call = True
    functions = [f for f in functions if f.name == choice.function.name]
  if rule is None and not must_call:
    if not any(function.strict for function in functions):
      return None, found
    if kind is tool_formats.Format.XML:
      return _lark(xml_rules.allowed(functions)), found
    source = tool_formats.allowed(kind, functions)
    if source is None:
      raise errors.refused(
        "tools",
        "strict is enforced for this model's way of writing calls only where a"
        " tool must be called: leave strict out, or set tool_choice to"
        " 'required'.",
        code="unsupported_value",
      )
    return _lark(source), found
  if kind is tool_formats.Format.XML:
    source = xml_rules.forced(
      functions, is_parallel=is_parallel, literal=literal
    )
  else:
    source = tool_formats.forced(
      kind, functions, is_parallel=is_parallel, literal=literal
    )
  if rule is None:
    return _lark(source), found
  if must_call:
    raise errors.refused(
      rule.param,
      f"{rule.param} is a rule for what is said, but tool_choice wants a tool"
      " to be called; choose one.",
    )
  return _either(rule, source), found


def _either(rule: constraints.Rule, calls: str) -> constraints.Rule:
  """What follows a schema, or calls."""
  if not isinstance(rule.rule, grammar.JsonSchema):
    raise errors.refused(
      rule.param,
      f"{rule.param} and tools can be had together only if the rule is a JSON"
      " schema; leave out one.",
    )
  schema = tool_formats.json_rule(
    rule.rule.schema, is_strict=rule.rule.is_strict, is_spaced=False
  )
  start, _, rest = calls.partition("\n")
  return _lark(
    f"start: said | calls\nsaid: {schema}\n"
    f"calls{start.removeprefix('start')}\n{rest}"
  )


def _lark(source: str) -> constraints.Rule:
  return constraints.Rule(rule=grammar.Lark(grammar=source), param="tools")
