"""Settings between a file and the program: what the command line may override.

A config file builds a frozen dataclass and returns `to_config_dict` of it,
flags override single fields, and `to_plain` gives schema.py what it makes a
dataclass of again. The trainer's and the server's settings both go this way.
"""

import dataclasses
import os
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from model import schema


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
  """A dataclass as a locked ConfigDict.

  An unset optional field becomes a typed placeholder, so that
  `--config.mesh.fsdp=8` is an int and nothing else.
  """
  return ml_collections.ConfigDict(_to_overridable(config)).lock()


def to_plain(value: Any) -> Any:
  """A ConfigDict as nested dicts and lists."""
  if isinstance(value, ml_collections.ConfigDict):
    return {key: to_plain(value[key]) for key in value}
  if isinstance(value, (list, tuple)):
    return [to_plain(v) for v in value]
  return value


def absolute_path(path: str, base_dir: str) -> str:
  """A path that is meant relative to `base_dir`; empty ones and URLs stay."""
  if not path or "://" in path:
    return path
  return os.path.normpath(os.path.join(base_dir, os.path.expanduser(path)))


def _to_overridable(value: Any) -> Any:
  """Nested dicts for a ConfigDict, with placeholders where a field is None."""
  if dataclasses.is_dataclass(value):
    hints = typing.get_type_hints(type(value))
    own_kind = schema.kind(type(value))
    out: dict[str, Any] = {}
    if own_kind is not None:
      out[schema.KIND_KEY] = own_kind
    for field in dataclasses.fields(value):
      child = getattr(value, field.name)
      if child is None:
        out[field.name] = _placeholder(hints[field.name])
      else:
        out[field.name] = _to_overridable(child)
    return out
  if isinstance(value, tuple):
    return tuple(
      ml_collections.ConfigDict(_to_overridable(v))
      if dataclasses.is_dataclass(v)
      else v
      for v in value
    )
  return schema.to_dict(value)


def _placeholder(hint: Any) -> Any:
  """A typed placeholder for an optional scalar, None for anything else."""
  if typing.get_origin(hint) is types.UnionType:
    inner = [t for t in typing.get_args(hint) if t is not type(None)]
    if len(inner) == 1 and inner[0] in (int, float, str, bool):
      return config_dict.placeholder(inner[0])
  return None
