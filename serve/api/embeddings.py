"""POST /v1/embeddings: texts as vectors, the means of their hidden states."""

import base64
import itertools

from aiohttp import web
import numpy as np

from serve.api import answers
from serve.api import bodies
from serve.api import choices as choices_lib
from serve.api import context as context_lib
from serve.api import errors
from serve.api import parameters as parameters_lib
from serve.api import prompts as prompts_lib
from serve.api import requests
from serve.api import responses

# All at once would fill the queue, which is there for everyone.
_NUM_AT_A_TIME = 16


async def create(http: web.Request) -> web.Response:
  """The handler."""
  context = http.app[context_lib.KEY]
  body = await bodies.read(http, requests.Embedding)
  context.check_model(body.model)
  size = context.embedding_size
  if body.dimensions is not None and body.dimensions != size:
    raise errors.refused(
      "dimensions",
      f"dimensions is {body.dimensions}; this model's embeddings have {size}.",
      code="unsupported_value",
    )
  parameters = parameters_lib.of_embedding(body, context, user=answers.user())
  prompts = await prompts_lib.encode(
    body.input,
    context,
    add_special_tokens=body.add_special_tokens is not False,
    param="input",
    most=context.config.max_inputs,
  )
  for prompt in prompts:
    prompts_lib.max_tokens(prompt.tokens, 0, context, usual=None, param="input")
  found: list[np.ndarray] = []
  step = 0
  for some in itertools.batched(prompts, _NUM_AT_A_TIME):
    vectors: dict[int, np.ndarray] = {}
    with choices_lib.Run(context, http, id_=answers.new_id("embd")) as run:
      for prompt in some:
        run.add(
          prompt,
          max_tokens=0,
          parameters=parameters,
          constraints=[None],
          pools=True,
        )
      async for choice, output in run.outputs():
        if output.pooled is not None:
          vectors[choice.index] = output.pooled
    if len(vectors) < len(some):
      raise errors.failed("The model has made no embedding.")
    found += [vectors[index] for index in range(len(some))]
    step = run.step
  num = sum(len(prompt.tokens) for prompt in prompts)
  embeddings = responses.Embeddings(
    data=[
      responses.Embedding(
        index=index, embedding=_encode(vector, body.encoding_format)
      )
      for index, vector in enumerate(found)
    ],
    model=context.model_name,
    usage=responses.EmbeddingUsage(prompt_tokens=num, total_tokens=num),
  )
  return answers.json(embeddings, step=step)


def _encode(vector: np.ndarray, kind: str | None) -> list[float] | str:
  values = np.asarray(vector, "<f4")
  if kind == "base64":
    return base64.b64encode(values.tobytes()).decode()
  return values.tolist()
