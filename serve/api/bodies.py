"""Reads the body of a request into its struct, or says what is wrong."""

import functools
import re
import typing
from typing import Any

from aiohttp import web
import msgspec
from msgspec import inspect

from serve.api import errors
from serve.api import fields
from serve.api import requests

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


async def read[T: requests.Body](request: web.Request, kind: type[T]) -> T:
  """The body.

  Raises:
    errors.ApiError: It is not JSON, or not such a body.
  """
  if request.content_type != "application/json":
    raise errors.ApiError(
      f"The content type is {request.content_type[:80]!r}; send JSON, with the"
      " header `Content-Type: application/json`.",
      status=415,
      code="unsupported_media_type",
    )
  try:
    body = await request.read()
  except web.HTTPRequestEntityTooLarge as error:
    raise errors.ApiError(
      "The body is longer than this server reads (api.max_body_bytes).",
      status=413,
      code="body_too_large",
    ) from error
  except (web.RequestPayloadError, ValueError) as error:
    raise _malformed(str(error)) from error
  return decode(body, kind)


def decode[T: requests.Body](body: bytes, kind: type[T]) -> T:
  """`read`, of bytes.

  Raises:
    errors.ApiError: They are not JSON, or not such a body.
  """
  try:
    decoded = _decode(body, kind)
  except msgspec.ValidationError as error:
    raise _invalid(str(error)) from error
  except (msgspec.DecodeError, UnicodeError) as error:
    raise _malformed(str(error)) from error
  except RecursionError as error:
    raise _malformed("it is nested too deeply") from error
  for field, values in _only(kind).items():
    value = getattr(decoded, field)
    if value is not None and value not in values:
      allowed = " or ".join(map(_as_json, values))
      raise errors.refused(
        field,
        f"{field} is {_as_json(value)}, which this server does not do; leave it"
        f" out or give {allowed}.",
        code="unsupported_value",
      )
  return decoded


def _decode[T: requests.Body](body: bytes, kind: type[T]) -> T:
  try:
    return _decoder(kind).decode(body)
  except msgspec.ValidationError as error:
    # To JSON, 1.0 is a whole number; some clients write it so.
    if "got `float`" not in str(error):
      raise
  return msgspec.convert(_with_integers(msgspec.json.decode(body)), kind)


def _with_integers(value: Any) -> Any:
  if isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, dict):
    return {key: _with_integers(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_with_integers(item) for item in value]
  return value


@functools.cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
  return msgspec.json.Decoder(kind)


@functools.cache
def _only(kind: type[requests.Body]) -> dict[str, tuple[Any, ...]]:
  """The fields with few allowed values, and these."""
  info = inspect.type_info(kind)
  assert isinstance(info, inspect.StructType)
  return {
    field.name: values
    for field in info.fields
    if isinstance(field.type, inspect.Metadata)
    and (values := fields.allowed(field.type.extra)) is not None
  }


def _malformed(reason: str) -> errors.ApiError:
  return errors.ApiError(
    f"The body is not valid JSON: {reason}.", code="invalid_json"
  )


def _invalid(message: str) -> errors.ApiError:
  """From msgspec's words: `Expected ..., got ... - at `$.field[0]``."""
  path = ""
  if found := _PATH.search(message):
    path = found[1]
    message = message[: found.start()]
  if found := _UNKNOWN.fullmatch(message):
    param = _join(path, found[1])
    return errors.refused(
      param,
      f"Unknown field: {param}. Nothing is ignored; leave it out.",
      code="unknown_parameter",
    )
  if found := _MISSING.fullmatch(message):
    param = _join(path, found[1])
    return errors.refused(
      param, f"Missing field: {param}.", code="missing_required_parameter"
    )
  if message.startswith("Expected `null`"):
    return errors.refused(
      path,
      f"{path} is not supported by this server; leave it out.",
      code="unsupported_parameter",
    )
  if path.endswith("].type") and "content" in path:
    message += ", only text is read"
  return errors.ApiError(
    f"{path or 'The body'}: {message}.", param=path or None, code="invalid_type"
  )


def _join(path: str, field: str) -> str:
  field = field[:100]
  return f"{path}.{field}" if path else field


def _as_json(value: Any) -> str:
  return typing.cast(bytes, msgspec.json.encode(value)).decode()
