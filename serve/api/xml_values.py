"""What a text between XML tags stands for, by the schema of its parameter.

Templates write strings as they are, and all else as JSON or as Python does
(`True`, `None`): only the schema tells `5` from `"5"`.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

_MAX_DEPTH = 16
_NAMES: tuple[tuple[type, str], ...] = (
  # A bool is an int in Python.
  (bool, "boolean"),
  (int, "integer"),
  (float, "number"),
  (str, "string"),
  (list, "array"),
  (dict, "object"),
)


def types(schema: Any, root: Any, depth: int = 0) -> frozenset[str]:
  """Names of the types that a schema allows; empty: it does not say.

  Args:
    schema: Of a value.
    root: What its references begin at.
    depth: Of the recursion.
  """
  schema = target(schema, root)
  if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
    return frozenset()
  match schema.get("type"):
    case str() as name:
      return frozenset([name])
    case list() as names:
      return frozenset(name for name in names if isinstance(name, str))
  if "const" in schema:
    return frozenset([_type(schema["const"])])
  if isinstance(values := schema.get("enum"), list):
    return frozenset(map(_type, values))
  for key in ("anyOf", "oneOf", "allOf"):
    if isinstance(options := schema.get(key), list):
      found = [types(option, root, depth + 1) for option in options]
      return frozenset().union(*found)
  if "properties" in schema:
    return frozenset(["object"])
  return frozenset(["array"]) if "items" in schema else frozenset()


def target(schema: Any, root: Any) -> Any:
  """What a schema is, or refers to; None: that is nowhere."""
  for _ in range(_MAX_DEPTH):
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    if not isinstance(reference, str):
      return schema
    schema = _resolve(reference, root)
  return None


def parameters(root: Any) -> Mapping[str, Any]:
  """The schemas of a function's parameters, by name, the required included."""
  root = target(root, root)
  if not isinstance(root, Mapping):
    return {}
  known = root.get("properties")
  found = dict(known) if isinstance(known, Mapping) else {}
  for key in required(root):
    found.setdefault(key, {})
  return found


def required(root: Any) -> Sequence[str]:
  """The parameters that may not be left out."""
  root = target(root, root)
  keys = root.get("required") if isinstance(root, Mapping) else None
  if not isinstance(keys, list):
    return []
  return [key for key in keys if isinstance(key, str)]


def options(schema: Any, root: Any, depth: int = 0) -> list[str] | None:
  """All texts that a value may have; None: they are not listed.

  Args:
    schema: Of the value.
    root: What its references begin at.
    depth: Of the recursion.
  """
  schema = target(schema, root)
  if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
    return None
  values = schema.get("enum")
  if "const" in schema:
    values = [schema["const"]]
  if isinstance(values, list):
    return [v if isinstance(v, str) else json.dumps(v) for v in values]
  match schema.get("type"):
    case "null":
      return ["null"]
    case "boolean":
      return ["true", "false"]
  for key in ("anyOf", "oneOf", "allOf"):
    given = schema.get(key)
    if isinstance(given, list) and (key != "allOf" or len(given) == 1):
      found: list[str] = []
      for option in given:
        texts = options(option, root, depth + 1)
        if texts is None:
          return None
        found += texts
      return found
  return None


def is_text(schema: Any, root: Any) -> bool:
  """Whether any text is a string, so that it need not be seen as a whole."""
  return types(schema, root) <= {"string"}


def to_json(text: str, schema: Any, root: Any) -> str:
  """The JSON of a value; what is not of its type is a string."""
  names = types(schema, root)
  word = text.strip()
  if "null" in names and word in ("null", "None"):
    return "null"
  if "boolean" in names and word.lower() in ("true", "false"):
    return word.lower()
  try:
    value = json.loads(word, parse_constant=_refuse)
  except (ValueError, RecursionError):
    return json.dumps(text, ensure_ascii=False)
  name = _type(value)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  fits = name in names or (is_number and names & {"integer", "number"})
  if fits and name != "string":
    return word
  return json.dumps(text, ensure_ascii=False)


def _type(value: Any) -> str:
  return next((n for kind, n in _NAMES if isinstance(value, kind)), "null")


def _resolve(reference: str, root: Any) -> Any:
  """What a reference within the schema names; None: there is nothing."""
  start, *path = reference.split("/")
  found = root if start == "#" else None
  for key in path:
    key = key.replace("~1", "/").replace("~0", "~")
    found = found.get(key) if isinstance(found, Mapping) else None
  return found


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is no JSON")
