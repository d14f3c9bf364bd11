"""What goes wrong with a request, as OpenAI's API says it.

Every error is `{"error": {"message", "type", "param", "code"}}`: the message is
for people and names the fix, the code for programs, `param` is the field.
"""

from collections.abc import Awaitable, Callable, Mapping
import functools
import math

from aiohttp import web
import msgspec

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Error(msgspec.Struct, frozen=True, kw_only=True):
  """What went wrong.

  Attributes:
    message: For people.
    type: A class of errors.
    param: The field of the request.
    code: For programs.
  """

  message: str
  type: str
  param: str | None
  code: str | None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
  """The body of every response that is not 2xx."""

  error: Error


class ApiError(Exception):
  """Ends a request with an error.

  Attributes:
    status: Of HTTP.
    body: Of the response.
    headers: Of the response.
  """

  def __init__(
    self,
    message: str,
    *,
    status: int = 400,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status = status
    self.body = ErrorResponse(
      error=Error(message=message, type=kind, param=param, code=code)
    )
    self.headers = dict(headers or {})

  def response(self) -> web.Response:
    """As JSON."""
    return web.Response(
      body=msgspec.json.encode(self.body),
      status=self.status,
      content_type="application/json",
      headers=self.headers,
    )


def refused(
  param: str, message: str, *, code: str | None = "invalid_value"
) -> ApiError:
  """A field asks for what cannot be."""
  return ApiError(message, param=param, code=code)


def too_long(
  *, num_prompt: int, max_tokens: int, max_len: int, param: str
) -> ApiError:
  """The context has no room for prompt and answer."""
  return ApiError(
    f"This model's context has room for {max_len} tokens, but the prompt has"
    f" {num_prompt} and max_tokens is {max_tokens}: together"
    f" {num_prompt + max_tokens}. Shorten the prompt or ask for fewer.",
    param=param,
    code="context_length_exceeded",
  )


def unknown_model(name: str, known: str) -> ApiError:
  """Another model is served."""
  return ApiError(
    f"The model {name[:200]!r} does not exist; this server has {known!r}.",
    status=404,
    param="model",
    code="model_not_found",
  )


def queue_full(reason: str, seconds: float) -> ApiError:
  """Too many wait; whoever comes again should wait for so long."""
  return ApiError(
    reason or "Too many requests wait; ask again later.",
    status=429,
    kind="rate_limit_error",
    code="queue_full",
    headers={"Retry-After": str(max(1, math.ceil(seconds)))},
  )


def unavailable(reason: str) -> ApiError:
  """The engine takes no requests."""
  return ApiError(
    reason or "The server takes no more requests.",
    status=503,
    kind="unavailable_error",
    code="unavailable",
    headers={"Retry-After": "5"},
  )


def timed_out(seconds: float) -> ApiError:
  """The deadline came first; OpenAI's clients are told not to ask again."""
  return ApiError(
    f"The request was not finished after {seconds:g} seconds. Ask for fewer"
    " tokens, or for more time with `timeout`, up to the server's own limit.",
    status=408,
    kind="timeout_error",
    code="timeout",
    headers={"x-should-retry": "false"},
  )


def failed(message: str | None) -> ApiError:
  """The engine could not serve this request."""
  return ApiError(
    message or "The request failed.",
    status=500,
    kind="server_error",
    code="request_failed",
    headers={"x-should-retry": "false"},
  )


def handled(handler: Handler) -> Handler:
  """The handler, with an ApiError answered rather than raised."""

  @functools.wraps(handler)
  async def wrapped(request: web.Request) -> web.StreamResponse:
    try:
      return await handler(request)
    except ApiError as error:
      return error.response()

  return wrapped
