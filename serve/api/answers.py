"""What responses of all kinds of text have: ids, headers, limits."""

import secrets

from aiohttp import web
import msgspec

from serve.api import context as context_lib
from serve.api import errors
from serve.api import trace

STEP_HEADER = "x-checkpoint-step"


def new_id(prefix: str) -> str:
  """An id for a response."""
  return f"{prefix}-{secrets.token_hex(16)}"


def user() -> str:
  """Whose API key the request came with; empty: none is needed."""
  call = trace.current()
  return call.user if call else ""


def headers(step: int) -> dict[str, str]:
  """Which checkpoint has answered."""
  return {STEP_HEADER: str(step)}


def fingerprint(step: int) -> str:
  """The same in OpenAI's field: equal seeds give equal texts under one."""
  return f"step-{step}"


def json(body: msgspec.Struct, *, step: int | None = None) -> web.Response:
  """A response as a whole."""
  return web.Response(
    body=msgspec.json.encode(body),
    content_type="application/json",
    headers={} if step is None else headers(step),
  )


def check_number(
  param: str, num: int, context: context_lib.Context, *, num_prompts: int = 1
) -> None:
  """Refuses more answers than a request may have.

  Raises:
    errors.ApiError: There are more.
  """
  limit = context.config.max_choices
  if num * num_prompts > limit:
    raise errors.refused(
      param,
      f"{param} is {num} for {num_prompts} prompts; a request may have"
      f" {limit} answers (api.max_choices).",
    )
