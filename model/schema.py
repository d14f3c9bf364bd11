"""Frozen dataclasses to and from plain dicts, with errors a user can act on.

Config files, checkpoints and tools all describe a model or a run as nested
mappings; below `main` everything is a frozen dataclass. This is the one place
that turns the first into the second. A key that no field has, a missing
required key and a value of the wrong type are errors that name the dotted
path, the value and the fix; nothing is converted silently except an int where
a float is wanted and a list where a tuple is.

Where a field may be one of several dataclasses, each has a class variable
`KIND`, and its mapping carries it under "kind".
"""

from collections.abc import Mapping
import dataclasses
import difflib
import enum
import types
import typing
from typing import Any

# Under which a mapping says which dataclass of a union it is.
KIND_KEY = "kind"


def from_dict[T](cls: type[T], mapping: Mapping[str, Any], *, path: str) -> T:
  """Builds the frozen dataclass `cls` from a nested mapping.

  Args:
    cls: A dataclass type; its field annotations are the schema.
    mapping: Field values; nested dataclasses are nested mappings.
    path: Dotted name of `mapping` for error messages, such as `model`.

  Returns:
    The instance. The dataclass's own `__post_init__` has validated it.

  Raises:
    ValueError: A key is unknown or missing, or a value has the wrong type.
  """
  if not isinstance(mapping, Mapping):
    raise ValueError(
      f"{path}={mapping!r} must be a mapping with the fields of {cls.__name__}."
    )
  hints = typing.get_type_hints(cls)
  dataclass: Any = cls
  own_kind = kind(cls)
  if own_kind is not None and KIND_KEY in mapping:
    if mapping[KIND_KEY] != own_kind:
      raise ValueError(
        f"{path}.{KIND_KEY}={mapping[KIND_KEY]!r} must be {own_kind!r}."
      )
    mapping = {k: v for k, v in mapping.items() if k != KIND_KEY}
  fields = {f.name: f for f in dataclasses.fields(dataclass) if f.init}
  for key in mapping:
    if key not in fields:
      close = difflib.get_close_matches(key, fields, n=1)
      hint = f"; did you mean {path}.{close[0]}?" if close else "."
      raise ValueError(
        f"{path}.{key} is not a setting (value {mapping[key]!r}){hint} "
        f"{path} has: {', '.join(sorted(fields))}."
      )
  values = {}
  for name, field in fields.items():
    if name in mapping:
      values[name] = _convert(hints[name], mapping[name], f"{path}.{name}")
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise ValueError(f"{path}.{name} is missing; {cls.__name__} requires it.")
  return cls(**values)


def kind(cls: Any) -> str | None:
  """What a dataclass is called in a union; None if it is in none."""
  return vars(cls).get("KIND")


def to_dict(value: Any) -> Any:
  """The nested dicts, lists and scalars that `from_dict` reads (JSON-able)."""
  if dataclasses.is_dataclass(value):
    own_kind = kind(type(value))
    head = {} if own_kind is None else {KIND_KEY: own_kind}
    return head | {
      f.name: to_dict(getattr(value, f.name))
      for f in dataclasses.fields(value)
      if f.init
    }
  if isinstance(value, enum.Enum):
    return value.value
  if isinstance(value, (tuple, list)):
    return [to_dict(v) for v in value]
  return value


def flatten(value: Any, *, path: str = "") -> dict[str, Any]:
  """Dotted path -> scalar, for a nested value as `to_dict` returns it."""
  if isinstance(value, Mapping):
    items = value.items()
  elif isinstance(value, (list, tuple)):
    items = ((str(i), v) for i, v in enumerate(value))
  else:
    return {path: value}
  flat = {}
  for key, child in items:
    flat |= flatten(child, path=f"{path}.{key}" if path else key)
  return flat


def _choose(options: list[Any], value: Any, path: str) -> Any:
  """The dataclass of a union that `value` is, or says it is."""
  if type(value) in options:
    return type(value)
  kinds = {kind(option): option for option in options}
  given = value.get(KIND_KEY) if isinstance(value, Mapping) else None
  if not isinstance(given, str) or given not in kinds:
    shown = ", ".join(map(repr, kinds))
    raise ValueError(
      f"{path}={value!r} must be a mapping whose {KIND_KEY!r} is one of "
      f"{shown}."
    )
  return kinds[given]


def _convert(hint: Any, value: Any, path: str) -> Any:
  """`value` as the annotated type `hint`, or a ValueError naming `path`."""
  origin = typing.get_origin(hint)
  if origin in (types.UnionType, typing.Union):
    options = typing.get_args(hint)
    if value is None and type(None) in options:
      return None
    inner = [o for o in options if o is not type(None)]
    if len(inner) > 1:
      return _convert(_choose(inner, value, path), value, path)
    return _convert(inner[0], value, path)
  if origin is typing.Literal:
    options = typing.get_args(hint)
    if value not in options:
      raise ValueError(
        f"{path}={value!r} must be one of {', '.join(map(repr, options))}."
      )
    return value
  if origin is tuple:
    inner, _ = typing.get_args(hint)
    if not isinstance(value, (list, tuple)):
      raise ValueError(f"{path}={value!r} must be a list.")
    return tuple(
      _convert(inner, v, f"{path}[{i}]") for i, v in enumerate(value)
    )
  if issubclass(hint, enum.Enum):
    options = [option.value for option in hint]
    if value not in options:
      raise ValueError(
        f"{path}={value!r} must be one of {', '.join(map(repr, options))}."
      )
    return hint(value)
  if dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    return from_dict(hint, value, path=path)
  if hint is float and type(value) is int:
    return float(value)
  if type(value) is not hint:
    raise ValueError(
      f"{path}={value!r} is {type(value).__name__}; it must be {hint.__name__}."
    )
  return value
