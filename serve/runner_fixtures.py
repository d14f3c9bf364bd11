"""Small models, and texts that a runner goes on with, for tests.

Most programs are compiled when they are first called, which `warm_up` would
not allow: tests only pay for the shapes that they use.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from model import config as model_config
from model import decode
from model import fixtures
from model import sharding
from model import transformer
from serve import batch as batch_lib
from serve import config as serve_config
from serve import request as request_lib
from serve import runner as runner_lib

PAGE = 4
MAX_LEN = 32
NUM_TOKENS = 6
GREEDY = request_lib.Sampling(temperature=0.0)

ATTENTION = model_config.AttentionConfig(
  num_heads=4, num_kv_heads=2, head_dim=8
)
WINDOW = dataclasses.replace(ATTENTION, window=6)
MLA = model_config.MlaConfig(
  num_heads=2,
  kv_rank=8,
  nope_head_dim=6,
  rope_head_dim=4,
  value_head_dim=5,
)
GATED_DELTA_NET = model_config.GatedDeltaNetConfig(
  num_key_heads=2, num_value_heads=4, key_head_dim=4, value_head_dim=6
)
_MLP = model_config.MlpConfig(dim=32)
MOE = model_config.MoeConfig(num_experts=4, experts_per_token=2, dim=16)


def make_config(
  *mixers: model_config.Mixer,
  feed_forward: model_config.FeedForward = _MLP,
  tie_embeddings: bool = False,
) -> model_config.ModelConfig:
  """A model of one group, whose pattern is repeated."""
  pattern = tuple(
    model_config.BlockConfig(mixer=mixer, feed_forward=feed_forward)
    for mixer in mixers
  )
  return model_config.ModelConfig(
    name="test",
    vocab_size=64,
    dim=16,
    max_seq_len=64,
    tie_embeddings=tie_embeddings,
    groups=(
      model_config.LayerGroup(pattern=pattern, repeats=2 // len(pattern)),
    ),
  )


DENSE = make_config(ATTENTION, tie_embeddings=True)
KINDS = (
  ("dense", make_config(ATTENTION)),
  ("windows", make_config(WINDOW, ATTENTION)),
  ("moe", make_config(ATTENTION, feed_forward=MOE)),
  ("mla", make_config(MLA)),
  ("gated_delta_net", make_config(GATED_DELTA_NET, ATTENTION)),
)
# Of models whose head is another matrix: a text with it is not finite.
POISON = 63


@functools.cache
def make_params(config: model_config.ModelConfig, seed: int = 0) -> Any:
  """Random numbers, large enough to matter."""
  _, shapes = transformer.abstract(config, fixtures.execution())
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 3, shapes
  )
  if not config.tie_embeddings:
    params["embed_VD"][POISON] = np.nan
    params["head_DV"][:, POISON] = 0  # It is never the likeliest.
  return params


def make_prompts(*lengths: int) -> list[list[int]]:
  """Random ones, without POISON."""
  rng = np.random.default_rng(1)
  return [rng.integers(0, POISON, n).tolist() for n in lengths]


@functools.cache
def _greedy(config: model_config.ModelConfig, num_tokens: int):
  graphdef, _ = transformer.abstract(config, fixtures.execution())
  return jax.jit(
    functools.partial(decode.greedy, graphdef=graphdef, num_tokens=num_tokens)
  )


def expected(
  config: model_config.ModelConfig,
  prompts: Sequence[Sequence[int]],
  num_tokens: int = NUM_TOKENS,
  params: Any = None,
) -> list[list[int]]:
  """What decode.greedy says."""
  tokens = np.zeros((len(prompts), 16), np.int32)
  for i, prompt in enumerate(prompts):
    tokens[i, : len(prompt)] = prompt
  lengths = np.array([len(prompt) for prompt in prompts])
  greedy = _greedy(config, num_tokens)
  said = greedy(
    make_params(config) if params is None else params, tokens, lengths
  )
  return np.asarray(said.tokens).tolist()


def source(
  config: model_config.ModelConfig, *, params: Any = None, mesh: Any = None
) -> runner_lib.Source:
  """The model, its parameters on the mesh."""
  params = make_params(config) if params is None else params
  return runner_lib.Source(
    config=config,
    execution=fixtures.execution(),
    params=jax.device_put(
      params, sharding.param_shardings(params, mesh or make_mesh())
    ),
  )


def make_mesh(num: int = 1, **axes: int) -> jax.sharding.Mesh:
  """Of so many devices."""
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[:num])


def make_runner(
  config: model_config.ModelConfig,
  *,
  params: Any = None,
  mesh: Any = None,
  draft: runner_lib.Source | None = None,
  num_drafts: int = 0,
  **settings: Any,
) -> runner_lib.Runner:
  """A small one that computes in float32."""
  defaults: dict[str, Any] = {
    "compute_dtype": "float32",
    "page_size": PAGE,
    "max_rows": 2,
    "max_len": MAX_LEN,
    "prefill_tokens": 16,
    "compilation_cache": "",
  }
  return runner_lib.Runner(
    source(config, params=params, mesh=mesh),
    serve_config.RunnerConfig(**(defaults | settings)),
    mesh=mesh or make_mesh(),
    draft=draft,
    num_drafts=num_drafts,
  )


class Anything:
  """A constraint; what it allows, tests say themselves."""

  is_complete = False

  def masks(self, drafts: list[int]) -> np.ndarray:
    raise NotImplementedError

  def accept(self, tokens: list[int]) -> None:
    raise NotImplementedError


def constrained(prompt: Sequence[int]) -> request_lib.Request:
  """A request that wants the next token to be one of some."""
  return request_lib.Request(
    id="0",
    prompt=tuple(prompt),
    max_tokens=1,
    sampling=GREEDY,
    constraint=Anything(),
  )


class Texts:
  """Texts in the slots of a runner, and the rows of their next steps.

  Pages of all windows are handed out in an order of their own.
  """

  def __init__(
    self,
    runner: runner_lib.Runner,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: request_lib.Sampling = GREEDY,
    **settings: Any,
  ):
    self.runner = runner
    self.prompts = prompts
    self.start = [0] * len(prompts)
    self.said: list[list[int]] = [[] for _ in prompts]
    rng = np.random.default_rng(2)
    num = MAX_LEN // PAGE
    self.tables = []
    pages = {
      w: 1 + rng.permutation(total - 1)
      for w, total in runner.cache_pages.items()
    }
    for i, prompt in enumerate(prompts):
      self.tables.append(
        {w: tuple(p[i * num : (i + 1) * num]) for w, p in pages.items()}
      )
      request = request_lib.Request(
        id=str(i),
        prompt=tuple(prompt),
        max_tokens=NUM_TOKENS,
        sampling=sampling,
        **settings,
      )
      runner.admit(1 + i, request, prompt)

  def row(self, i: int, num: int | None = None, **settings) -> batch_lib.Row:
    """The next `num` tokens of a prompt; None: the next one of the text."""
    start, prompt = self.start[i], self.prompts[i]
    tokens = () if num is None else tuple(prompt[start : start + num])
    self.start[i] += max(1, len(tokens))
    return batch_lib.Row(
      request_id=str(i),
      slot=1 + i,
      start=start,
      length=len(prompt) if tokens else start + 1,
      tokens=tokens,
      tables=self.tables[i],
      samples=start + len(tokens) >= len(prompt),
      **settings,
    )

  def run(self, *rows: batch_lib.Row) -> runner_lib.Handle:
    return self.runner.run(batch_lib.Batch(rows=rows))

  def add(self, results: Sequence[batch_lib.RowResult], *texts: int) -> None:
    for i, result in zip(texts, results, strict=True):
      self.said[i] += result.tokens

  def draft(self, num: int) -> None:
    """A step in which the draft model makes so many drafts for each text."""
    texts = range(len(self.prompts))
    rows = [self.row(i, num_drafts=num) for i in texts]
    results = self.run(*rows).result()
    self.add(results, *texts)
    for i, result in enumerate(results):
      self.start[i] += len(result.tokens) - 1

  def finish(self) -> list[list[int]]:
    """Reads all prompts, then goes on with all; no result is waited for."""
    handles = []
    everyone = range(len(self.prompts))
    handles.append(self.run(*(self.row(i, 16) for i in everyone)))
    for _ in range(NUM_TOKENS - 1):
      handles.append(self.run(*(self.row(i) for i in everyone)))
    for handle in handles:
      self.add(handle.result(), *everyone)
    return self.said


@functools.cache
def shared_runner(config: model_config.ModelConfig) -> runner_lib.Runner:
  """One for several tests: none may leave anything behind."""
  return make_runner(config)
