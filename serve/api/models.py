"""GET /v1/models, /v1/models/{id} and /version: what is served."""

from aiohttp import web

from serve.api import answers
from serve.api import context as context_lib
from serve.api import responses


async def show_all(http: web.Request) -> web.Response:
  """The one that is served."""
  context = http.app[context_lib.KEY]
  return answers.json(responses.Models(data=[_model(context)]))


async def show(http: web.Request) -> web.Response:
  """The one of this name."""
  context = http.app[context_lib.KEY]
  context.check_model(http.match_info["model"])
  return answers.json(_model(context))


async def version(http: web.Request) -> web.Response:
  """Of the server."""
  del http
  return answers.json(responses.Version(version=_VERSION))


def _model(context: context_lib.Context) -> responses.Model:
  return responses.Model(
    id=context.model_name,
    created=context.created,
    max_model_len=context.max_len,
  )


# There are no releases yet.
_VERSION = "unreleased"
