"""Rules for answers: from the fields in which they are given to the grammar."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import msgspec

from serve import grammar
from serve import request as request_lib
from serve.api import context as context_lib
from serve.api import errors
from serve.api import requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What an answer must obey.

  Attributes:
    rule: The rule.
    param: The field of the request.
  """

  rule: grammar.Rule
  param: str


def read(body: requests.Generation) -> Rule | None:
  """The rule of a request; None: anything may be said.

  Raises:
    errors.ApiError: There are several.
  """
  rules = [*_response_format(body), *_vllm(body)]
  if len(rules) > 1:
    names = " and ".join(rule.param for rule in rules)
    raise errors.refused(
      rules[1].param, f"{names} are both rules for the answer; give one."
    )
  return rules[0] if rules else None


async def compile_rule(
  rule: Rule | None, context: context_lib.Context, num: int
) -> Sequence[request_lib.Constraint | None]:
  """A constraint for each of `num` answers.

  Raises:
    errors.ApiError: The rule cannot be followed.
  """
  if rule is None:
    return [None] * num
  compiler = context.known_words.compiler
  try:
    return await context.work(
      lambda: [compiler.compile(rule.rule) for _ in range(num)]
    )
  except ValueError as error:
    raise errors.refused(rule.param, f"{rule.param}: {error}.") from error


def _response_format(body: requests.Generation) -> Iterator[Rule]:
  match body.response_format:
    case requests.JsonObjectFormat():
      yield Rule(rule=grammar.JSON_OBJECT, param="response_format")
    case requests.JsonSchemaFormat(json_schema=schema):
      rule = grammar.JsonSchema(
        schema=schema.schema_ or {"type": "object"},
        is_strict=schema.strict is not False,
      )
      yield Rule(rule=rule, param="response_format.json_schema.schema")


def _vllm(body: requests.Generation) -> Iterator[Rule]:
  asked = body.structured_outputs or requests.StructuredOutputs()
  if asked.json_object:
    yield Rule(rule=grammar.JSON_OBJECT, param="structured_outputs.json_object")
  for given, param in (
    (asked.json, "structured_outputs.json"),
    (body.guided_json, "guided_json"),
  ):
    if given is not None:
      rule = grammar.JsonSchema(schema=_schema(given, param))
      yield Rule(rule=rule, param=param)
  for given, param in (
    (asked.regex, "structured_outputs.regex"),
    (body.guided_regex, "guided_regex"),
  ):
    if given is not None:
      yield Rule(rule=grammar.Regex(pattern=given), param=param)
  for given, param in (
    (asked.choice, "structured_outputs.choice"),
    (body.guided_choice, "guided_choice"),
  ):
    if given is not None:
      yield Rule(rule=grammar.Choice(texts=tuple(given)), param=param)
  for given, param in (
    (asked.grammar, "structured_outputs.grammar"),
    (body.guided_grammar, "guided_grammar"),
  ):
    if given is not None:
      yield Rule(rule=grammar.Lark(grammar=given), param=param)


def _schema(given: dict[str, Any] | str, param: str) -> Any:
  if not isinstance(given, str):
    return given
  try:
    return msgspec.json.decode(given)
  except (msgspec.DecodeError, RecursionError) as error:
    raise errors.refused(param, f"{param} is not JSON: {error}.") from error
