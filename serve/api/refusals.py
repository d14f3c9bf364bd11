"""Errors in the form in which OpenAI's API gives them, whoever raised them.

Handlers answer what they can explain. Here is what all routes share: what
aiohttp refuses by itself, and what nobody foresaw.
"""

import logging

from aiohttp import typedefs
from aiohttp import web

from serve.api import errors

_LOG = logging.getLogger(__name__)

# What OpenAI's clients read in `type`, by status.
_KINDS = {404: "not_found_error", 429: "rate_limit_error"}


@web.middleware
async def middleware(
  request: web.Request, handler: typedefs.Handler
) -> web.StreamResponse:
  """Turns exceptions into errors of the API."""
  try:
    return await handler(request)
  except errors.ApiError as error:
    return error.response()
  except web.HTTPException as error:
    if error.status < 400:  # Nothing went wrong.
      raise
    # With a method that a route has not come those that it has.
    headers = {k: v for k, v in error.headers.items() if k == "Allow"}
    return errors.ApiError(
      _explain(request, error),
      status=error.status,
      kind=_KINDS.get(error.status, "invalid_request_error"),
      headers=headers,
    ).response()
  except ConnectionError:  # Whoever asked has left.
    raise
  except RecursionError:
    return errors.ApiError("The body is nested too deeply.").response()
  except Exception:
    _LOG.exception("%s %s failed.", request.method, route(request))
    if request.writer.output_size:
      # The answer has begun: to break off is all that can still be said.
      raise
    return errors.failed("The server made a mistake.").response()


def route(request: web.Request) -> str:
  """The route, never the path: clients write what they like there."""
  resource = request.match_info.route.resource
  return "none" if resource is None else resource.canonical


def _explain(request: web.Request, error: web.HTTPException) -> str:
  if error.status == 404:
    return "There is no such route; GET /openapi.json lists them."
  if isinstance(error, web.HTTPMethodNotAllowed):
    allowed = " or ".join(sorted(error.allowed_methods))
    return f"This route takes {allowed}."
  if isinstance(error, web.HTTPRequestEntityTooLarge):
    return "The body is longer than api.max_body_bytes allows."
  return error.reason
