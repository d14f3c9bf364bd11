"""openapi.json: what the structs of requests and responses say, and the limits.

The limits of this server (its model's vocabulary, context and name) are in it,
so that what the document allows is not refused for what it could have said.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import msgspec

from serve.api import context as context_lib
from serve.api import conversations
from serve.api import errors
from serve.api import requests

_REFERENCE = "#/components/schemas/{name}"
# By status: what is documented of every route.
_ERRORS = {
  400: "The request cannot be served as it is; `param` says why.",
  401: "An API key is needed.",
  403: "Web pages of other hosts may not ask.",
  404: "There is no such model.",
  408: "The request was not finished in time.",
  413: "The body is too long.",
  415: "The body is not JSON.",
  429: "Too many requests wait; Retry-After says when to come again.",
  500: "The request, or the server, has failed.",
  503: "The server does not take requests now.",
}
# Fields of which one can be given.
_RULES = (
  "response_format",
  "structured_outputs",
  "guided_json",
  "guided_regex",
  "guided_choice",
  "guided_grammar",
)
_WITHOUT_BODY = (401, 403, 404, 500, 503)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
  """A route of the API.

  Attributes:
    method: Of HTTP.
    path: As aiohttp has it.
    handler: Answers.
    answer: The body of its response.
    summary: What it is for.
    body: Of the request; None: there is none.
    chunk: What a stream has; None: it does not stream.
  """

  method: str
  path: str
  handler: errors.Handler
  answer: type[msgspec.Struct]
  summary: str
  body: type[msgspec.Struct] | None = None
  chunk: type[msgspec.Struct] | None = None


def document(
  routes: Sequence[Route], context: context_lib.Context
) -> dict[str, Any]:
  """The document as JSON."""
  kinds = [
    kind
    for route in routes
    for kind in (route.body, route.answer, route.chunk)
    if kind is not None
  ]
  kinds += [errors.ErrorResponse, requests.StructuredOutputs]
  # Several routes can have one.
  kinds = list(dict.fromkeys(kinds))
  found, components = msgspec.json.schema_components(
    kinds, ref_template=_REFERENCE
  )
  references = dict(zip(kinds, found, strict=True))
  _limit(components, context)
  _add_conditions(components, references)
  paths: dict[str, Any] = {}
  for route in routes:
    path = route.path.replace("{model:.+}", "{model}")
    operation = _operation(route, references, context)
    paths.setdefault(path, {})[route.method.lower()] = operation
  return {
    "openapi": "3.1.0",
    "info": {
      "title": "Cacao",
      "version": "1",
      "description": "OpenAI's API for a model that Cacao serves.",
    },
    "paths": paths,
    "components": {
      "schemas": components,
      "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    },
    # With a key, or where none is needed without.
    "security": [{}, {"key": []}],
  }


def _operation(
  route: Route,
  references: dict[type[msgspec.Struct], Any],
  context: context_lib.Context,
) -> dict[str, Any]:
  content = {"application/json": {"schema": references[route.answer]}}
  if route.chunk is not None:
    failed = references[errors.ErrorResponse]
    content["text/event-stream"] = {
      "schema": _event([references[route.chunk], failed])
    }
  operation: dict[str, Any] = {
    "summary": route.summary,
    "operationId": f"{route.handler.__module__}.{route.handler.__name__}",
    "responses": {"200": {"description": "The answer.", "content": content}},
  }
  error = references[errors.ErrorResponse]
  for status, description in _ERRORS.items():
    if route.body is not None or status in _WITHOUT_BODY:
      operation["responses"][str(status)] = {
        "description": description,
        "content": {"application/json": {"schema": error}},
      }
  if route.body is not None:
    operation["requestBody"] = {
      "required": True,
      "content": {"application/json": {"schema": references[route.body]}},
    }
  if "{model" in route.path:
    name = {"type": "string", "enum": [context.model_name]}
    operation["parameters"] = [
      {"name": "model", "in": "path", "required": True, "schema": name}
    ]
  return operation


def _event(data: list[dict[str, str]]) -> dict[str, Any]:
  """What a stream is made of."""
  json = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"anyOf": data},
  }
  return {
    "type": "object",
    "properties": {"data": {"anyOf": [{"const": "[DONE]"}, json]}},
    "required": ["data"],
  }


def _limit(components: dict[str, Any], context: context_lib.Context) -> None:
  """Writes this server's limits to where the structs have left room."""
  limits: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ModelName": lambda s: s.update(enum=[context.model_name]),
    "TokenId": lambda s: s.update(
      type="integer", minimum=0, maximum=context.vocab_size - 1
    ),
    "TokenKey": lambda s: s.update(pattern=up_to(context.vocab_size - 1)),
    "Stops": lambda s: s.update(maxItems=context.config.max_stops),
    "NumChoices": lambda s: s.update(maximum=context.config.max_choices),
    "NumTokens": lambda s: s.update(maximum=context.max_len - 1),
    **_template_limits(context),
    "Prompt": lambda s: s.update(
      anyOf=_prompts(context, context.config.max_choices)
    ),
    "Inputs": lambda s: s.update(
      anyOf=_prompts(context, context.config.max_inputs)
    ),
    "Dimensions": lambda s: s.update(
      minimum=context.embedding_size, maximum=context.embedding_size
    ),
  }

  def visit(node: Any) -> None:
    if isinstance(node, dict):
      title = node.get("title")
      if isinstance(title, str) and title in limits:
        limits[title](node)
      for value in node.values():
        visit(value)
    elif isinstance(node, list):
      for value in node:
        visit(value)

  visit(components)


def _template_limits(
  context: context_lib.Context,
) -> dict[str, Callable[[dict[str, Any]], Any]]:
  """What the chat template does not ask for cannot be given."""
  if context.words is None:
    return {}
  templates = context.words.prompts.templates
  if not templates.sources:
    return {}
  known = templates.variables() | templates.variables(has_tools=True)
  limits: dict[str, Callable[[dict[str, Any]], Any]] = {
    "TemplateArguments": lambda s: s.update(
      propertyNames={"enum": sorted(known - conversations.OWN_ARGUMENTS)}
    )
  }
  if "documents" not in known:
    limits["Documents"] = lambda s: s.update(maxItems=0)
  if "reasoning_effort" not in known:
    limits["ReasoningEffort"] = lambda s: (
      s.clear() or s.update(type="null", title="None")
    )
  return limits


def _prompts(context: context_lib.Context, num: int) -> list[dict[str, Any]]:
  """A text, up to `num`, token ids, or lists of them: not mixed."""

  def some(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": most, "items": items}

  text = {"type": "string"}
  ids = some({"title": "TokenId"}, context.max_len)
  return [text, some(text, num), ids, some(ids, num)]


def _add_conditions(
  components: dict[str, Any],
  references: dict[type[msgspec.Struct], Any],
) -> None:
  """What one field says of another.

  Not all of it: programs that make requests of a schema multiply these out.
  """

  def add(kind: type[msgspec.Struct], *options: dict[str, Any]) -> None:
    name = references[kind]["$ref"].rpartition("/")[2]
    conditions = components[name].setdefault("allOf", [])
    conditions.append({"anyOf": [_given(option) for option in options]})

  add(requests.Chat, {"top_logprobs": [None, 0]}, {"logprobs": [True]})
  add(
    requests.Completion,
    {"stream": [None, False], "stream_options": [None]},
    {"stream": [True], "best_of": [None, 1]},
  )
  for kind in (requests.Completion, requests.Chat):
    add(kind, *_one_of(_RULES))
  inner = msgspec.structs.fields(requests.StructuredOutputs)
  add(requests.StructuredOutputs, *_one_of([f.name for f in inner]))
  name = references[requests.Tokenize]["$ref"].rpartition("/")[2]
  of_messages = ("tools", "add_generation_prompt", "continue_final_message")
  components[name]["anyOf"] = [
    {
      "required": ["prompt"],
      "properties": {
        "prompt": {"type": "string"},
        **{
          field: {"type": "null"}
          for field in (*of_messages, "messages", "chat_template_kwargs")
        },
      },
    },
    {
      "required": ["messages"],
      "properties": {
        "messages": {"type": "array"},
        "prompt": {"type": "null"},
        "add_special_tokens": {"enum": [None, False]},
        "continue_final_message": {"enum": [None, False]},
      },
    },
  ]


def _one_of(names: Sequence[str]) -> list[dict[str, list[Any]]]:
  """Of these fields, one can be given."""
  return [{name: [None] for name in names if name != given} for given in names]


def _given(values: dict[str, list[Any]]) -> dict[str, Any]:
  """Fields with few values; without None among these, they are required."""
  return {
    "properties": {name: {"enum": found} for name, found in values.items()},
    "required": [name for name, found in values.items() if None not in found],
  }


def up_to(largest: int) -> str:
  """The regular expression of whole numbers from 0 to `largest`."""
  digits = str(largest)
  options = ["0"] if largest == 0 else []
  # Fewer digits.
  if len(digits) > 1:
    options += ["0", f"[1-9][0-9]{{0,{len(digits) - 2}}}"]
  # As many digits: equal up to one of them, and less there.
  for place, digit in enumerate(digits):
    least = 1 if place == 0 and len(digits) > 1 else 0
    if int(digit) > least:
      rest = len(digits) - place - 1
      options.append(
        f"{digits[:place]}[{least}-{int(digit) - 1}]"
        + (f"[0-9]{{{rest}}}" if rest else "")
      )
  if largest:
    options.append(digits)
  return f"^({'|'.join(options)})$"
