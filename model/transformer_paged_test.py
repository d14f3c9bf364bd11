"""Texts in pages become what they become alone, whoever they are called with.

Three texts are read piece by piece, in calls whose rows come in any order and
among them padding, from pages in any order. What the pages held before is not a
number. Each hidden state is compared with that of a call without a cache, and
for some models of one with a contiguous cache.

Dims: B rows, T new tokens, P pages.
"""

import dataclasses
import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import fixtures
from model import kv_cache
from model import sharding
from model import transformer
from model import unrolled

_PAGE, _PIECES = 4, 4
_LENGTHS = (13, 6, 10)
# Calls of (text, tokens), at most 4 tokens each; None is padding. The last
# text begins in the middle of the others, and one goes on over a page's end.
_CALLS = (
  ((0, 4), None, (2, 3)),
  ((2, 4), (0, 4), (1, 4)),
  (None, (1, 2), (0, 3)),
  # One token each.
  ((0, 1), (2, 1), None),
  (None, (0, 1), (2, 1)),
  ((2, 1), None, None),
)

_ATTENTION = model_config.AttentionConfig(
  num_heads=4, num_kv_heads=2, head_dim=8
)
_MLA = model_config.MlaConfig(
  num_heads=2,
  kv_rank=8,
  nope_head_dim=6,
  rope_head_dim=4,
  value_head_dim=5,
)
_GATED_DELTA_NET = model_config.GatedDeltaNetConfig(
  num_key_heads=2, num_value_heads=4, key_head_dim=4, value_head_dim=6
)
_MLP = model_config.MlpConfig(dim=32)
_MOE = model_config.MoeConfig(num_experts=4, experts_per_token=2, dim=16)
_LONG_ROPE = model_config.RopeConfig(
  scaling=model_config.LongRopeScaling(
    short_factor=(1.0, 1.1, 1.2, 1.3),
    long_factor=(2.0, 3.0, 4.0, 6.0),
    original_max_seq_len=8,
    factor=4.0,
  )
)


def attention(**settings) -> model_config.AttentionConfig:
  return dataclasses.replace(_ATTENTION, **settings)


def make_config(
  *mixers: model_config.Mixer,
  feed_forward: model_config.FeedForward = _MLP,
  repeats: int = 1,
  **settings: Any,
) -> model_config.ModelConfig:
  """A model of one group with these mixers."""
  pattern = tuple(
    model_config.BlockConfig(mixer=mixer, feed_forward=feed_forward)
    for mixer in mixers
  )
  return model_config.ModelConfig(
    name="test",
    vocab_size=64,
    dim=16,
    tie_embeddings=True,
    groups=(model_config.LayerGroup(pattern=pattern, repeats=repeats),),
    **settings,
  )


@functools.cache
def make_params(config: model_config.ModelConfig) -> Any:
  """Random numbers, large enough to matter."""
  _, shapes = transformer.abstract(config, fixtures.execution())
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 3, shapes
  )


class Texts:
  """Three texts and where they lie; the calls of `_CALLS` one by one."""

  def __init__(
    self, config: model_config.ModelConfig, *, dtype=None, mesh=None
  ):
    rng = np.random.default_rng(0)
    self.tokens = [rng.integers(0, 64, n).astype(np.int32) for n in _LENGTHS]
    self.start = [0, 0, 0]
    windows = transformer.cache_windows(config)
    num_pages = len(_LENGTHS) * _PIECES + 1
    self.tables = {
      window: 1 + rng.permutation(num_pages - 1).reshape(len(_LENGTHS), -1)
      for window in windows
    }
    self.rows = np.array([4, 1, 3])
    self.graphdef, shapes = transformer.abstract(config, fixtures.execution())
    layers = transformer.bind(self.graphdef, shapes).make_pages(
      num_pages=dict.fromkeys(windows, num_pages),
      page_size=_PAGE,
      rows=5,
      dtype=dtype,
    )
    self.layers = jax.tree.map(
      lambda x: x if x.dtype == jnp.int8 else jnp.full_like(x, jnp.nan), layers
    )
    if mesh is not None:
      self.layers = jax.device_put(
        self.layers, kv_cache.page_shardings(self.layers, mesh)
      )
    # One compilation for each of two shapes.
    self.step = jax.jit(self._step, donate_argnums=1)

  def _step(self, params, layers, tables, places, tokens, segment_ids):
    model = transformer.bind(self.graphdef, params)
    output = model(
      tokens,
      segment_ids=segment_ids,
      cache=kv_cache.PagedCache(layers=layers, tables=tables, **places),
    )
    assert isinstance(output.cache, kv_cache.PagedCache)
    return output.hidden, output.cache.layers

  def call(self, params, rows) -> dict[int, np.ndarray]:
    """By text, the hidden states of its next tokens."""
    length = 4 if max(row[1] for row in rows if row is not None) > 1 else 1
    tokens = np.zeros((len(rows), length), np.int32)
    segment_ids = np.zeros_like(tokens)
    tables = {
      window: np.zeros((len(rows), _PIECES), np.int32) for window in self.tables
    }
    places = {
      name: np.zeros(len(rows), np.int32)
      for name in ("start", "rows", "length")
    }
    for b, row in enumerate(rows):
      if row is None:
        continue
      text, num = row
      start = self.start[text]
      tokens[b, :num] = self.tokens[text][start : start + num]
      segment_ids[b, :num] = 1
      for window, table in self.tables.items():
        tables[window][b] = table[text]
      places["start"][b] = start
      places["rows"][b] = self.rows[text]
      places["length"][b] = _LENGTHS[text]
      self.start[text] += num
    hidden, self.layers = self.step(
      params, self.layers, tables, places, tokens, segment_ids
    )
    hidden = np.asarray(hidden)
    return {
      row[0]: hidden[b, : row[1]]
      for b, row in enumerate(rows)
      if row is not None
    }


def read_in_pages(config, params, **settings) -> list[np.ndarray]:
  """Every hidden state of each text [T, D]."""
  texts = Texts(config, **settings)
  pieces: list[list[np.ndarray]] = [[], [], []]
  for rows in _CALLS:
    for text, hidden in texts.call(params, rows).items():
      pieces[text].append(hidden)
  assert tuple(texts.start) == _LENGTHS
  return [np.concatenate(p) for p in pieces]


def in_a_block(texts) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and segment ids of all texts [B, T], padded."""
  tokens = np.zeros((len(texts), max(_LENGTHS)), np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = text
  is_token = np.arange(max(_LENGTHS)) < np.array(_LENGTHS)[:, None]
  return tokens, is_token.astype(np.int32)


def read_alone(config) -> list[np.ndarray]:
  """Every hidden state of each text [T, D], without a cache."""
  graphdef, _ = transformer.abstract(config, fixtures.execution())

  @jax.jit
  def read(params, tokens, segment_ids):
    model = transformer.bind(graphdef, params)
    return model(tokens, segment_ids=segment_ids).hidden

  hidden = read(make_params(config), *in_a_block(Texts(config).tokens))
  return [np.asarray(hidden[row, :n]) for row, n in enumerate(_LENGTHS)]


def read_with_contiguous_cache(config) -> list[np.ndarray]:
  """The same, with a cache that is not in pages."""
  graphdef, _ = transformer.abstract(config, fixtures.execution())

  @jax.jit
  def read(params, tokens, segment_ids):
    model = transformer.bind(graphdef, params)
    cache = model.make_cache(rows=len(tokens), slots=16)
    first = model(tokens[:, :7], segment_ids=segment_ids[:, :7], cache=cache)
    rest = model(
      tokens[:, 7:], segment_ids=segment_ids[:, 7:], cache=first.cache
    )
    return jnp.concatenate([first.hidden, rest.hidden], axis=1)

  hidden = read(make_params(config), *in_a_block(Texts(config).tokens))
  return [np.asarray(hidden[row, :n]) for row, n in enumerate(_LENGTHS)]


class TransformerPagedTest(parameterized.TestCase):
  def check(self, got, wanted, atol=2e-5):
    for text, (a, b) in enumerate(zip(got, wanted, strict=True)):
      np.testing.assert_allclose(a, b, atol=atol, err_msg=f"text {text}")

  @parameterized.named_parameters(
    ("grouped_queries_scanned", make_config(_ATTENTION, repeats=2)),
    # Gemma 2's, with sinks; two kinds of pages.
    (
      "window_softcap_sinks",
      make_config(
        attention(window=5, softcap=2.0),
        attention(num_kv_heads=1, sinks=True),
      ),
    ),
    ("mla", make_config(_MLA)),
    ("experts", make_config(_ATTENTION, feed_forward=_MOE)),
    (
      "gated_delta_net",
      make_config(_GATED_DELTA_NET, attention(output_gate=True)),
    ),
    (
      "learned_positions",
      make_config(attention(rope=None), learned_positions=True, max_seq_len=16),
    ),
  )
  def test_reads_as_without_pages(self, config):
    got = read_in_pages(config, make_params(config))
    self.check(got, read_alone(config))

  def test_reads_as_with_a_contiguous_cache(self):
    config = make_config(attention(window=5), _GATED_DELTA_NET)
    got = read_in_pages(config, make_params(config))
    self.check(got, read_with_contiguous_cache(config))

  def test_unrolled(self):
    config = make_config(
      _GATED_DELTA_NET, attention(window=5), feed_forward=_MOE, repeats=2
    )
    layers = unrolled.config(config)
    params = unrolled.params(
      jax.tree.map(jnp.asarray, make_params(config)), config
    )
    self.check(read_in_pages(layers, params), read_alone(config))

  @parameterized.named_parameters(
    ("grouped_queries", make_config(_ATTENTION, repeats=2)),
    ("mla", make_config(_MLA)),
    (
      "gated_delta_net",
      make_config(_GATED_DELTA_NET, attention(output_gate=True)),
    ),
  )
  def test_int8(self, config):
    got = read_in_pages(config, make_params(config), dtype="int8")
    wanted = read_alone(config)
    self.check(got, wanted, atol=0.05)
    largest = max(np.abs(a - b).max() for a, b in zip(got, wanted, strict=True))
    self.assertGreater(largest, 1e-5)

  def test_longrope_goes_by_each_text(self):
    # Two of the texts are longer than the original context, one is not.
    config = make_config(attention(rope=_LONG_ROPE))
    params = make_params(config)
    got, texts = read_in_pages(config, params), Texts(config)
    graphdef, _ = transformer.abstract(config, fixtures.execution())

    @jax.jit
    def read(params, tokens):
      return transformer.bind(graphdef, params)(tokens).hidden

    # Each in a call of its own: without pages the longest decides for all.
    for text, tokens in enumerate(texts.tokens):
      wanted = read(params, tokens[None])[0]
      np.testing.assert_allclose(got[text], wanted, atol=2e-5)

  def test_on_a_mesh(self):
    config = unrolled.config(
      make_config(_GATED_DELTA_NET, _ATTENTION, _MLA, feed_forward=_MOE)
    )
    params = make_params(config)
    alone = read_in_pages(config, params)
    mesh = sharding.make_mesh(
      sharding.MeshConfig(tensor=2, expert=2), jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, sharding.param_shardings(params, mesh))
      texts = Texts(config, mesh=mesh)
      self.check(read_in_pages(config, placed, mesh=mesh), alone)
      texts.call(placed, _CALLS[0])
    specs = {
      name: leaf.sharding.spec
      for name, leaf in sharding.named_leaves(texts.layers).items()
    }
    wanted = jax.tree.map(
      lambda s: s.spec, kv_cache.page_shardings(texts.layers, mesh)
    )
    self.assertEqual(specs, sharding.named_leaves(wanted))
    self.assertIn("tensor", specs["group_1.block_0.k_PKSH"])
    self.assertNotIn("tensor", specs["group_2.block_0.key_PSH"])

  def test_pages_are_updated_in_place(self):
    config = unrolled.config(
      make_config(_ATTENTION, attention(num_kv_heads=1), _MLA, _GATED_DELTA_NET)
    )
    graphdef, shapes = transformer.abstract(config, fixtures.execution())
    texts = Texts(config)
    layers = transformer.bind(graphdef, shapes).make_pages(
      num_pages={0: 1000}, page_size=_PAGE, rows=500
    )
    one = np.zeros((1,), np.int32)
    compiled = texts.step.lower(
      shapes,
      layers,
      {0: np.zeros((1, _PIECES), np.int32)},
      {"start": one, "rows": one, "length": one},
      one[:, None],
      one[:, None],
    ).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(layers))
    self.assertGreaterEqual(memory.alias_size_in_bytes, num_bytes)
    # No copy of any of the pages.
    smallest = min(leaf.nbytes for leaf in jax.tree.leaves(layers))
    self.assertLess(memory.temp_size_in_bytes, smallest)

  def test_what_a_model_keeps(self):
    config = make_config(
      attention(window=5), _GATED_DELTA_NET, attention(window=3), _MLA
    )
    self.assertEqual(transformer.cache_windows(config), (0, 3, 5))
    self.assertTrue(transformer.has_recurrent_state(config))
    self.assertFalse(transformer.has_recurrent_state(make_config(_MLA)))
    recurrent = make_config(_GATED_DELTA_NET)
    self.assertEqual(transformer.cache_windows(recurrent), ())


if __name__ == "__main__":
  absltest.main()
