"""The routes of the API, and the application that has them."""

from collections.abc import Sequence

from aiohttp import typedefs
from aiohttp import web
import msgspec

from serve.api import chat
from serve.api import completions
from serve.api import context as context_lib
from serve.api import embeddings
from serve.api import errors
from serve.api import models
from serve.api import openapi
from serve.api import requests
from serve.api import responses
from serve.api import tokens

OPENAPI = "/openapi.json"

ROUTES = (
  openapi.Route(
    method="POST",
    path="/v1/completions",
    handler=completions.create,
    body=requests.Completion,
    answer=responses.Completion,
    chunk=responses.Completion,
    summary="Texts that go on",
  ),
  openapi.Route(
    method="POST",
    path="/v1/chat/completions",
    handler=chat.create,
    body=requests.Chat,
    answer=responses.Chat,
    chunk=responses.ChatChunk,
    summary="Answers in a conversation",
  ),
  openapi.Route(
    method="POST",
    path="/v1/embeddings",
    handler=embeddings.create,
    body=requests.Embedding,
    answer=responses.Embeddings,
    summary="Texts as vectors: the means of their hidden states",
  ),
  openapi.Route(
    method="GET",
    path="/v1/models",
    handler=models.show_all,
    answer=responses.Models,
    summary="What is served",
  ),
  openapi.Route(
    method="GET",
    # The name of a model may have slashes.
    path="/v1/models/{model:.+}",
    handler=models.show,
    answer=responses.Model,
    summary="A model",
  ),
  openapi.Route(
    method="POST",
    path="/tokenize",
    handler=tokens.tokenize,
    body=requests.Tokenize,
    answer=responses.Tokens,
    summary="A prompt or a conversation as token ids",
  ),
  openapi.Route(
    method="POST",
    path="/detokenize",
    handler=tokens.detokenize,
    body=requests.Detokenize,
    answer=responses.Text,
    summary="Token ids as text",
  ),
  openapi.Route(
    method="GET",
    path="/tokenizer_info",
    handler=tokens.info,
    answer=responses.TokenizerInfo,
    summary="Special tokens and chat templates",
  ),
  openapi.Route(
    method="GET",
    path="/version",
    handler=models.version,
    answer=responses.Version,
    summary="Of the server",
  ),
)


def routes(context: context_lib.Context) -> list[web.RouteDef]:
  """The API's routes; the application needs the context under its key."""
  document = msgspec.json.encode(openapi.document(ROUTES, context))

  async def show_document(http: web.Request) -> web.Response:
    del http
    return web.Response(body=document, content_type="application/json")

  own = [
    web.route(route.method, route.path, errors.handled(route.handler))
    for route in ROUTES
  ]
  return [*own, web.route("GET", OPENAPI, show_document)]


def make(
  context: context_lib.Context,
  *,
  middlewares: Sequence[typedefs.Middleware] = (),
  more: Sequence[web.AbstractRouteDef] = (),
) -> web.Application:
  """The application.

  Args:
    context: What is served.
    middlewares: Around every handler, the outermost first.
    more: Routes beside the API's.
  """
  app = web.Application(
    middlewares=middlewares, client_max_size=context.config.max_body_bytes
  )
  app[context_lib.KEY] = context
  app.add_routes([*routes(context), *more])
  return app
