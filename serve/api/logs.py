"""One line about each HTTP request: never what was asked, never a key."""

from collections.abc import Callable
import datetime
import json
import re
import secrets
import sys
import time
from typing import Any, Literal

from aiohttp import typedefs
from aiohttp import web

from serve.api import health
from serve.api import refusals
from serve.api import trace

HEADER = "x-request-id"
# What a client may call its request: nothing that could break a log.
_ID = re.compile(r"[A-Za-z0-9_.:=/+-]{1,128}")
# The client went away before the answer was complete (nginx's number).
_CLIENT_CLOSED = 499
# Asked every few seconds by machines; not worth a line.
_QUIET = (*health.ROUTES, "/metrics", "/stats")

Observe = Callable[[str, int], None]


def _to_stderr(line: str) -> None:
  sys.stderr.write(line + "\n")
  sys.stderr.flush()


class Logs:
  """The outermost middleware: gives requests their ids and writes the lines."""

  def __init__(
    self,
    log_format: Literal["json", "text"],
    *,
    model_name: Callable[[], str],
    observe: Observe = lambda route, status: None,
    write: Callable[[str], None] = _to_stderr,
  ):
    """Lines go to standard error.

    Args:
      log_format: One JSON object a line, or `name=value` words.
      model_name: Under which the model is served.
      observe: Gets every request's route and status, quiet ones too.
      write: What is done with a line.
    """
    self._format = _as_json if log_format == "json" else _as_text
    self._model_name = model_name
    self._observe = observe
    self._write = write

  @web.middleware
  async def middleware(
    self, request: web.Request, handler: typedefs.Handler
  ) -> web.StreamResponse:
    """Goes on, and writes the line when all is sent."""
    given = request.headers.get(HEADER, "")
    call = trace.Call(
      id=given if _ID.fullmatch(given) else secrets.token_hex(16)
    )
    trace.begin(call)
    status = _CLIENT_CLOSED
    try:
      response = await handler(request)
      status = response.status
      return response
    except web.HTTPException as error:
      status = error.status
      raise
    except ConnectionError:
      raise
    except Exception:
      status = 500
      raise
    finally:
      self._finish(request, call, status)

  def _finish(
    self, request: web.Request, call: trace.Call, status: int
  ) -> None:
    route = refusals.route(request)
    self._observe(route, status)
    if route in _QUIET and status < 400:
      return
    fields: dict[str, Any] = {
      "time": datetime.datetime.now(datetime.UTC).isoformat(
        timespec="milliseconds"
      ),
      "request_id": call.id,
      "method": request.method if request.method.isalpha() else "?",
      "route": route,
      "status": status,
      "seconds": time.monotonic() - call.arrived,
    }
    if call.user:
      fields["user"] = call.user
    if call.traces:
      fields |= {
        "model": self._model_name(),
        "prompt_tokens": call.num_prompt,
        "cached_tokens": call.num_cached,
        "generated_tokens": call.num_generated,
        "ttft": call.time_to_first,
        "tpot": call.time_per_token,
        "finish_reason": call.finish,
      }
    self._write(
      self._format(
        {
          name: round(value, 6) if isinstance(value, float) else value
          for name, value in fields.items()
        }
      )
    )


async def add_headers(
  request: web.Request, response: web.StreamResponse
) -> None:
  """Before the head of any response is sent: which request it answers."""
  del request
  response.headers["Server"] = "cacao"  # Not which version of what.
  call = trace.current()
  if call is not None:
    response.headers[HEADER] = call.id


def _as_json(fields: dict[str, Any]) -> str:
  return json.dumps(fields)


def _as_text(fields: dict[str, Any]) -> str:
  head = f"{fields['time']} {fields['method']} {fields['route']}"
  rest = (
    f"{name}={value}"
    for name, value in fields.items()
    if name not in ("time", "method", "route")
  )
  return " ".join((head, *rest))
