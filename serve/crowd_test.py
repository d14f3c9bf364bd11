"""Many requests at once are each what they are alone, whatever the engine does.

The oracle of greedy text is model/decode.py: one text after another, with a
cache of its own. Texts of which a token had a close rival are left out as the
requests are made: there rounding would decide.
"""

import dataclasses
import functools
import threading
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import decode
from model import sharding
from model import transformer
from serve import assembly
from serve import checkpoints
from serve import config as config_lib
from serve import fixtures
from serve import random_model
from serve import request as request_lib
from serve import stats as stats_lib

_Reason = request_lib.FinishReason

_VOCAB_SIZE = 64
_PROMPT_TOKENS = 48
_NEW_TOKENS = 24
_NUM_REQUESTS = 200
# Logits of a chosen token and of its closest rival.
_GAP = 1e-2

_MLP = model_config.MlpConfig(dim=32)
_ATTENTION = model_config.AttentionConfig(
  num_heads=4, num_kv_heads=2, head_dim=8
)


def _block(mixer=_ATTENTION, feed_forward=_MLP):
  return model_config.BlockConfig(mixer=mixer, feed_forward=feed_forward)


_BLOCKS = {
  "dense": (_block(), _block()),
  "windowed": (
    _block(dataclasses.replace(_ATTENTION, window=10)),
    _block(),
    _block(dataclasses.replace(_ATTENTION, window=23, sinks=True)),
  ),
  "moe": (
    _block(),
    _block(
      feed_forward=model_config.MoeConfig(
        num_experts=4, experts_per_token=2, dim=16
      )
    ),
  ),
  "mla": (
    _block(
      model_config.MlaConfig(
        num_heads=4,
        kv_rank=16,
        nope_head_dim=8,
        rope_head_dim=4,
        value_head_dim=8,
      )
    ),
    _block(),
  ),
  "gated_delta_net": (
    _block(
      model_config.GatedDeltaNetConfig(
        num_key_heads=2, num_value_heads=4, key_head_dim=8, value_head_dim=8
      )
    ),
    _block(),
  ),
}


def _model(kind, *, seed=0, num_layers=None):
  """A model of random weights that are large enough to have opinions."""
  blocks = _BLOCKS[kind][:num_layers]
  config = model_config.ModelConfig(
    name=kind,
    vocab_size=_VOCAB_SIZE,
    dim=16,
    groups=model_config.group_layers(blocks, period=1),
    tie_embeddings=False,
    max_seq_len=128,
    init_std=0.5,
  )
  execution = model_config.ExecutionConfig(compute_dtype="float32")
  return checkpoints.Model(
    name=kind,
    config=config,
    execution=execution,
    params=random_model.params(config, execution, seed=seed),
    mesh=sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]),
  )


def _make_prompts(rng, num):
  """Of any length; half of them begin like others."""
  beginnings = [rng.integers(0, _VOCAB_SIZE, 37).tolist() for _ in range(3)]
  prompts = []
  for i in range(num):
    length = int(rng.integers(1, _PROMPT_TOKENS + 1))
    prompt = rng.integers(0, _VOCAB_SIZE, length).tolist()
    if i % 2:
      begin = beginnings[i % 3][: int(rng.integers(1, 38))]
      prompt = (begin + prompt)[:_PROMPT_TOKENS]
    prompts.append(tuple(prompt))
  return prompts


def _continue(model, prompts):
  """The greedy continuation of each prompt, and the smallest gap of each."""
  graphdef, _ = transformer.abstract(model.config, model.execution)
  tokens = np.zeros((len(prompts), _PROMPT_TOKENS), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt)] = prompt
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)

  @jax.jit
  def run(params):
    found = decode.greedy(
      params,
      jnp.asarray(tokens),
      jnp.asarray(lengths),
      graphdef=graphdef,
      num_tokens=_NEW_TOKENS,
    )
    best = jax.lax.top_k(found.logits, 2)[0]
    return found.tokens, best[..., 0] - best[..., 1]

  chosen, gaps = jax.device_get(run(model.params))
  return chosen.tolist(), gaps.tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
  """A request and what must come of it.

  Attributes:
    request: It.
    tokens: What must come; of sampled text nothing is known.
    aborted_after: So many tokens; None: not at all.
  """

  request: request_lib.Request
  tokens: tuple[int, ...] | None
  aborted_after: int | None = None


def _ask(model, num):
  """Mixed requests."""
  rng = np.random.default_rng(0)
  prompts = _make_prompts(rng, 2 * num)
  asked = []
  for prompt, tokens, gaps in zip(
    prompts, *_continue(model, prompts), strict=True
  ):
    max_tokens = int(rng.integers(1, _NEW_TOKENS + 1))
    is_greedy = rng.random() < 0.7
    end = max_tokens
    stop_ids = frozenset()
    if rng.random() < 0.3:
      stop_ids = frozenset(rng.integers(0, _VOCAB_SIZE, 3).tolist())
      stops = [i for i, t in enumerate(tokens[:end]) if t in stop_ids]
      end = stops[0] + 1 if stops else end
    if is_greedy and min(gaps[:end]) < _GAP:
      continue
    index = len(asked)
    sampling = request_lib.Sampling(temperature=0.0)
    if not is_greedy:
      sampling = request_lib.Sampling(
        temperature=float(rng.choice([0.5, 1.0])),
        top_k=[None, 5][index % 2],
        top_p=[1.0, 0.8][index % 3 == 0],
        seed=int(rng.integers(2**32)),
      )
    is_aborted = rng.random() < 0.15
    asked.append(
      _Asked(
        request=request_lib.Request(
          id=str(index),
          prompt=prompt,
          max_tokens=max_tokens,
          stop_ids=stop_ids,
          sampling=sampling,
          priority=int(rng.integers(3)),
          user=str(index % 5),
        ),
        tokens=tuple(tokens[:end]) if is_greedy else None,
        aborted_after=int(rng.integers(0, max_tokens)) if is_aborted else None,
      )
    )
    if len(asked) == num:
      return asked
  raise AssertionError("too few texts without close rivals")


def _run(engine, asked):
  """All of it; a third at once, and another one whenever one ends."""
  listener = fixtures.Listener()
  rest = iter(asked)
  lock = threading.Lock()

  def submit():
    with lock:
      one = next(rest, None)
    if one is not None:
      engine.submit(one.request, functools.partial(on_output, one))
      if one.aborted_after == 0:
        engine.abort(one.request.id)

  def on_output(one, output):
    listener(output)
    num = len(listener.tokens(one.request.id))
    if one.aborted_after is not None and num >= one.aborted_after:
      engine.abort(one.request.id)
    if output.finish is not None:
      submit()

  for _ in range(len(asked) // 3):
    submit()
  engine.start()
  listener.wait_for(
    lambda: (
      all(listener.finish(one.request.id) for one in asked)
      or engine.stats().phase is stats_lib.Phase.DEAD
    ),
    timeout=300,
  )
  return listener


class CrowdTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.models = {}
    cls.asked = {}

  def prepare(self, kind):
    """The model and its requests, once for all tests of it."""
    if kind not in self.asked:
      self.models[kind] = _model(kind)
      self.asked[kind] = _ask(self.models[kind], _NUM_REQUESTS)
    # A runner takes the parameters.
    params = jax.tree.map(jnp.array, self.models[kind].params)
    model = dataclasses.replace(self.models[kind], params=params)
    return model, self.asked[kind]

  def make(self, model, *, drafts=(), speculation=None, **settings):
    runner: dict[str, Any] = {
      "compute_dtype": "float32",
      "page_size": 4,
      "max_rows": 4,
      "max_len": 80,
      # For two and a half texts.
      "cache_tokens": 200,
      "prefill_tokens": 16,
      "compilation_cache": "",
    }
    config = config_lib.ServeConfig(
      runner=config_lib.RunnerConfig(**(runner | settings)),
      engine=config_lib.EngineConfig(
        speculation=speculation or config_lib.SpeculationConfig()
      ),
    )
    made = assembly.assemble([model], config, drafts=drafts, warms_up=False)
    self.addCleanup(made.engine.stop)
    return made, config

  def check(self, listener, asked):
    """Everything came as it must."""
    num_stops = 0
    for one in asked:
      name, found = one.request.id, listener.tokens(one.request.id)
      finish = listener.finish(name)
      self.assertIsNot(finish, _Reason.ERROR, listener.outputs[name][-1])
      ends = one.request.stop_ids
      self.assertTrue(all(token not in ends for token in found[:-1]))
      if finish is _Reason.ABORTED:
        self.assertIsNotNone(one.aborted_after)
        self.assertGreaterEqual(len(found), one.aborted_after)
      elif finish is _Reason.STOP:
        self.assertIn(found[-1], ends)
        num_stops += 1
      else:
        self.assertLen(found, one.request.max_tokens)
      if one.tokens is not None:
        self.assertEqual(tuple(found), one.tokens[: len(found)], name)
        if finish is not _Reason.ABORTED:
          self.assertLen(found, len(one.tokens))
    self.assertGreater(num_stops, 0)

  def check_nothing_leaked(self, engine):
    stats = engine.stats()
    self.assertEqual(stats.num_running, 0)
    self.assertEqual(stats.num_waiting, 0)
    self.assertEqual(stats.num_waiting_tokens, 0)
    self.assertEqual(stats.pages_used, 0)
    self.assertEqual(engine.num_requests, 0)
    return stats

  def check_alone(self, made, config, model, crowd, asked):
    """What was sampled is the same alone, without guesses or earlier texts."""
    sampled = [
      one for one in asked if one.tokens is None and one.aborted_after is None
    ]
    (runner,) = made.runners
    plain = dataclasses.replace(
      config, engine=config_lib.EngineConfig(prefix_caching=False)
    )
    made.engine.stop()
    for one in sampled[:8]:
      engine = assembly.make_engine(model, runner, plain)
      found = _run_alone(engine, one.request)
      self.assertEqual(found, crowd.tokens(one.request.id))

  @parameterized.parameters(*_BLOCKS)
  def test_crowd(self, kind):
    model, asked = self.prepare(kind)
    made, config = self.make(model)
    crowd = _run(made.engine, asked)
    self.check(crowd, asked)
    stats = self.check_nothing_leaked(made.engine)
    self.assertGreater(stats.num_preemptions, 0)
    self.assertGreater(stats.num_decode_rows, 2 * stats.num_decode_steps)
    if kind != "gated_delta_net":
      self.assertGreater(stats.prefix_hits, 0)
    self.check_alone(made, config, model, crowd, asked)

  @parameterized.parameters("dense", "windowed", "mla")
  def test_ngram(self, kind):
    model, asked = self.prepare(kind)
    made, config = self.make(
      model,
      speculation=config_lib.SpeculationConfig(
        method="ngram", num_tokens=3, min_ngram=1, max_ngram=3
      ),
    )
    crowd = _run(made.engine, asked)
    self.check(crowd, asked)
    stats = self.check_nothing_leaked(made.engine)
    self.assertGreater(stats.num_accepted_tokens, 0)
    self.assertGreater(stats.num_drafted_tokens, stats.num_accepted_tokens)
    self.check_alone(made, config, model, crowd, asked)

  def test_draft_model(self):
    kind = "dense"
    model, asked = self.prepare(kind)
    # The model's own first layer, which is right at times.
    draft = _model(kind, num_layers=1)
    params = jax.tree.map(jnp.array, draft.params)
    draft = dataclasses.replace(draft, params=params)
    made, config = self.make(
      model,
      drafts=[draft],
      speculation=config_lib.SpeculationConfig(
        method="draft", num_tokens=3, checkpoint="unused"
      ),
    )
    crowd = _run(made.engine, asked)
    self.check(crowd, asked)
    stats = self.check_nothing_leaked(made.engine)
    self.assertGreater(stats.num_accepted_tokens, 0)
    self.assertGreater(stats.num_drafted_tokens, stats.num_accepted_tokens)
    self.check_alone(made, config, model, crowd, asked)


def _run_alone(engine, request):
  listener = fixtures.Listener()
  engine.submit(request, listener)
  engine.start()
  listener.wait(request.id)
  engine.stop()
  return listener.tokens(request.id)


if __name__ == "__main__":
  absltest.main()
