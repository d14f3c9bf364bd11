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
from model import transformer

_LENGTH = 11


def block(
  *,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  mlp_dim=12,
  norms: Any = "pre",
  **options,
):
  rope = model_config.RopeConfig(theta=100.0)
  options: dict[str, Any] = {"rope": rope} | options
  return model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      **options,
    ),
    feed_forward=model_config.MlpConfig(dim=mlp_dim),
    norms=norms,
  )


def two_groups():
  """Three repeats of a pattern of two blocks, then two of another block."""
  return model_config.ModelConfig(
    name="test",
    vocab_size=19,
    dim=8,
    groups=(
      model_config.LayerGroup(
        pattern=(block(), block(num_heads=4, num_kv_heads=2, mlp_dim=10)),
        repeats=3,
      ),
      model_config.LayerGroup(pattern=(block(head_dim=6),), repeats=2),
    ),
    tie_embeddings=False,
    init_std=0.4,
  )


def all_placements():
  """Norms before, after and on both sides, with an offset; bounded logits."""
  return model_config.ModelConfig(
    name="test",
    vocab_size=19,
    dim=8,
    groups=(
      model_config.LayerGroup(
        pattern=(
          block(norms="post"),
          block(norms="sandwich", window=4),
          block(norms="pre"),
        ),
        repeats=2,
      ),
    ),
    tie_embeddings=True,
    norm="rms_offset",
    embed_scale=8**0.5,
    logit_softcap=5.0,
    init_std=0.4,
  )


def learned_positions():
  """LayerNorm, and positions from a table instead of rotations."""
  return model_config.ModelConfig(
    name="test",
    vocab_size=19,
    dim=8,
    groups=(model_config.LayerGroup(pattern=(block(rope=None),), repeats=2),),
    tie_embeddings=False,
    norm="layer",
    max_seq_len=_LENGTH,
    learned_positions=True,
    init_std=0.4,
  )


def make_batch() -> dict[str, Any]:
  return fixtures.batch(vocab_size=19, rows=2, length=_LENGTH)


@functools.cache
def run(make_config, *, attention="auto", remat="none"):
  """Parameters; loss and logits of `make_batch`; the gradient."""
  config = make_config()
  execution = fixtures.execution(attention=attention, remat=remat)
  params = fixtures.params(config, execution)
  graphdef, _ = transformer.abstract(config, execution)
  batch = jax.tree.map(jnp.asarray, make_batch())

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss_and_logits(params):
    model = transformer.bind(graphdef, params)
    logits = model.logits(model(**batch).hidden)
    return next_token_loss(jnp, logits, batch["tokens"]), logits

  (loss, logits), gradient = loss_and_logits(params)
  return params, loss, logits, gradient


def next_token_loss(library, logits, tokens):
  log_z = library.log(library.exp(logits[:, :-1]).sum(-1))
  hit = library.take_along_axis(logits[:, :-1], tokens[:, 1:, None], -1)
  return library.mean(log_z - hit[..., 0])


# The same decoder in NumPy and float64: every layer in turn, every pair of
# tokens, nothing shared with the code under test.


def reference_norm(x, params, config):
  if config.norm == "layer":
    x = x - x.mean(-1, keepdims=True)
  normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps)
  offset = 1 if config.norm == "rms_offset" else 0
  return normed * (offset + params["scale_D"]) + params.get("bias_D", 0)


def reference_rotate(x, positions, theta):
  half = x.shape[-1] // 2
  angle = positions[..., None, None] * theta ** (-np.arange(half) / half)
  turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
  return np.concatenate([turned.real, turned.imag], axis=-1)


def reference_attention(x, params, config, positions, segment_ids):
  q = np.einsum("btd,dnh->btnh", x, params["q_DNH"])
  k = np.einsum("btd,dnh->btnh", x, params["k_DKH"])
  v = np.einsum("btd,dnh->btnh", x, params["v_DKH"])
  if config.rope is not None:
    q = reference_rotate(q, positions, config.rope.theta)
    k = reference_rotate(k, positions, config.rope.theta)
  share = config.num_heads // config.num_kv_heads
  k, v = np.repeat(k, share, axis=2), np.repeat(v, share, axis=2)
  scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(config.head_dim)
  visible = np.tri(x.shape[1], dtype=bool) & (
    segment_ids[:, :, None] == segment_ids[:, None, :]
  )
  if config.window is not None:
    visible &= ~np.tri(x.shape[1], k=-config.window, dtype=bool)
  weights = np.where(visible[:, None], np.exp(scores), 0)
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum("bnts,bsnh->btnh", weights, v)
  return np.einsum("btnh,nhd->btd", out, params["o_NHD"])


def reference_mlp(x, params):
  gate = x @ params["gate_DF"]
  return (gate / (1 + np.exp(-gate)) * (x @ params["up_DF"])) @ (
    params["down_FD"]
  )


def reference_block(x, params, block_config, config, batch):
  """x + post(f(pre(x))), where `norms` says which of the norms there are."""

  def sublayer(x, name, compute):
    normed = x
    if block_config.norms != "post":
      normed = reference_norm(x, params[f"{name}_norm"], config)
    out = compute(normed, params[name])
    if block_config.norms != "pre":
      out = reference_norm(out, params[f"{name}_post_norm"], config)
    return x + out

  def mix(x, params):
    return reference_attention(
      x, params, block_config.mixer, batch["positions"], batch["segment_ids"]
    )

  return sublayer(sublayer(x, "mixer", mix), "feed_forward", reference_mlp)


def reference_layers(config, params, batch):
  """What enters each layer, and what leaves the last."""
  x = config.embed_scale * params["embed_VD"][batch["tokens"]]
  if config.learned_positions:
    x = x + params["position_PD"][batch["positions"]]
  entered = []
  for i, group in enumerate(config.groups):
    for repeat in range(group.repeats):
      for j, block_config in enumerate(group.pattern):
        stacked = params[f"group_{i}"][f"block_{j}"]
        layer = jax.tree.map(lambda p, n=repeat: p[n], stacked)
        entered.append(x)
        x = reference_block(x, layer, block_config, config, batch)
  return np.stack(entered), x


def reference_logits(config, params, batch):
  _, x = reference_layers(config, params, batch)
  x = reference_norm(x, params["final_norm"], config)
  head = params["embed_VD"].T if config.tie_embeddings else params["head_DV"]
  logits = x @ head
  cap = config.logit_softcap
  return logits if cap is None else cap * np.tanh(logits / cap)


def reference_loss(config, params, batch):
  logits = reference_logits(config, params, batch)
  return next_token_loss(np, logits, batch["tokens"])


def to_float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


class TransformerTest(parameterized.TestCase):
  @parameterized.parameters(
    (two_groups, "reference"),
    (two_groups, "auto"),
    (all_placements, "auto"),
    (learned_positions, "auto"),
  )
  def test_equals_the_reference(self, make_config, attention):
    params, _, logits, _ = run(make_config, attention=attention)
    wanted = reference_logits(make_config(), to_float64(params), make_batch())
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=2e-5)

  @parameterized.parameters(two_groups, all_placements, learned_positions)
  def test_gradient_by_differences(self, make_config):
    config, batch = make_config(), make_batch()
    params, _, _, gradient = run(make_config)
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(to_float64(params))
    paths = jax.tree_util.tree_leaves_with_path(gradient)
    # The reference is float64, so that central differences are right to
    # step^2 f''' / 6 + 1e-16 f / step, below 1e-8 here; what is left is the
    # float32 of the gradient.
    step = 1e-5
    for i, (path, got) in enumerate(paths):
      direction = rng.normal(size=leaves[i].shape)
      direction /= np.linalg.norm(direction)
      loss = [
        reference_loss(
          config,
          structure.unflatten(
            [*leaves[:i], leaves[i] + s * direction, *leaves[i + 1 :]]
          ),
          batch,
        )
        for s in (step, -step)
      ]
      np.testing.assert_allclose(
        np.sum(np.asarray(got, np.float64) * direction),
        (loss[0] - loss[1]) / (2 * step),
        rtol=1e-4,
        atol=2e-7 + 1e-5 * float(jnp.linalg.norm(got.ravel())),
        err_msg=jax.tree_util.keystr(path),
      )

  def test_remat_changes_nothing(self):
    _, loss, _, gradient = run(two_groups)
    _, full_loss, _, full_gradient = run(two_groups, remat="full")
    np.testing.assert_allclose(full_loss, loss, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      full_gradient,
      gradient,
    )

  def test_what_enters_each_layer(self):
    config, batch = all_placements(), make_batch()
    execution = fixtures.execution()
    params = fixtures.params(config, execution)
    graphdef, _ = transformer.abstract(config, execution)

    @jax.jit
    def call(params):
      model = transformer.bind(graphdef, params)
      output = model(**batch, capture=True)
      return output, model.final_norm(output.residual)

    output, normed = call(params)
    entered, left = reference_layers(config, to_float64(params), batch)
    self.assertEqual(output.inputs.shape, (6, 2, _LENGTH, 8))
    np.testing.assert_allclose(output.inputs, entered, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(output.residual, left, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(output.hidden, normed, rtol=1e-5, atol=1e-6)
    self.assertIsNone(output.cache)
    self.assertEmpty(output.router)

  def test_nothing_is_captured_unasked(self):
    graphdef, params = transformer.abstract(two_groups(), fixtures.execution())

    def call(params):
      return transformer.bind(graphdef, params)(**make_batch())

    output = jax.eval_shape(call, params)
    self.assertIsNone(output.inputs)
    self.assertIsNone(output.cache)

  @parameterized.parameters(all_placements, learned_positions)
  def test_cached_equals_uncached(self, make_config):
    """Prompts of 3 and 5 tokens, padded, then a token of each at a time."""
    config, execution = make_config(), fixtures.execution()
    params = fixtures.params(config, execution)
    graphdef, _ = transformer.abstract(config, execution)
    tokens = make_batch()["tokens"]
    lengths = np.array([3, 5])
    index = np.arange(_LENGTH)
    whole = {
      "tokens": tokens,
      "positions": np.tile(index, (2, 1)),
      "segment_ids": np.ones_like(tokens),
    }
    wanted = reference_logits(config, to_float64(params), whole)

    @jax.jit
    def call(cache, tokens, segment_ids):
      model = transformer.bind(graphdef, params)
      output = model(tokens, segment_ids=segment_ids, cache=cache)
      return model.logits(output.hidden), output.cache

    cache = transformer.bind(graphdef, params).make_cache(rows=2, slots=_LENGTH)
    prompt = np.where(index[:5] < lengths[:, None], tokens[:, :5], 7)
    prompt_ids = (index[:5] < lengths[:, None]).astype(np.int32)
    logits, cache = call(cache, prompt, prompt_ids)
    for row, length in enumerate(lengths):
      np.testing.assert_allclose(
        logits[row, :length], wanted[row, :length], rtol=1e-4, atol=2e-5
      )
    rows = np.arange(2)
    for _ in range(_LENGTH - 5):
      np.testing.assert_array_equal(cache.lengths, lengths)
      token = tokens[rows, lengths][:, None]
      logits, cache = call(cache, token, np.ones((2, 1), np.int32))
      np.testing.assert_allclose(
        logits[:, 0], wanted[rows, lengths], rtol=1e-4, atol=2e-5
      )
      lengths = lengths + 1

  def test_shapes_of_a_cache(self):
    graphdef, params = transformer.abstract(two_groups(), fixtures.execution())
    cache = jax.eval_shape(
      lambda p: transformer.bind(graphdef, p).make_cache(
        rows=3, slots=7, dtype="bfloat16"
      ),
      params,
    )
    self.assertEqual(cache.segment_ids.shape, (3, 7))
    self.assertEqual(cache.lengths.shape, (3,))
    keys = cache.layers["group_0"]["block_1"]["k"]
    self.assertEqual((keys.shape, keys.dtype), ((3, 3, 7, 2, 4), "bfloat16"))
    values = cache.layers["group_1"]["block_0"]["v"]
    self.assertEqual(values.shape, (2, 3, 7, 1, 6))

  def test_defaults_are_one_segment_from_position_0(self):
    execution = fixtures.execution()
    config = learned_positions()
    graphdef, _ = transformer.abstract(config, execution)
    params = fixtures.params(config, execution)
    tokens = jnp.asarray(make_batch()["tokens"])

    @jax.jit
    def hidden(params, **where):
      return transformer.bind(graphdef, params)(tokens, **where).hidden

    given = hidden(
      params,
      positions=jnp.broadcast_to(jnp.arange(_LENGTH), tokens.shape),
      segment_ids=jnp.full_like(tokens, 3),
    )
    np.testing.assert_allclose(hidden(params), given, rtol=1e-6, atol=1e-6)

  @parameterized.product(
    compute_dtype=("float32", "bfloat16"), param_dtype=("float32", "bfloat16")
  )
  def test_dtypes(self, compute_dtype, param_dtype):
    execution = fixtures.execution(
      compute_dtype=compute_dtype, param_dtype=param_dtype
    )
    graphdef, params = transformer.abstract(two_groups(), execution)
    for leaf in jax.tree.leaves(params):
      self.assertEqual(leaf.dtype, param_dtype)

    def hidden_and_logits(params, tokens):
      model = transformer.bind(graphdef, params)
      hidden = model(tokens).hidden
      return hidden, model.logits(hidden)

    tokens = jax.ShapeDtypeStruct((2, _LENGTH), jnp.int32)
    hidden, logits = jax.eval_shape(hidden_and_logits, params, tokens)
    self.assertEqual((hidden.dtype, hidden.shape), (compute_dtype, (2, 11, 8)))
    self.assertEqual((logits.dtype, logits.shape), ("float32", (2, 11, 19)))

  def test_abstract_is_what_init_makes(self):
    config = two_groups()
    _, shapes = transformer.abstract(config, fixtures.execution())
    params = transformer.init(config, fixtures.execution(), seed=0)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    self.assertEqual(describe(shapes), describe(params))
    self.assertEqual(
      set(shapes), {"embed_VD", "group_0", "group_1", "final_norm", "head_DV"}
    )
    self.assertEqual(
      shapes["group_0"]["block_1"]["mixer"]["q_DNH"].shape, (3, 8, 4, 4)
    )
    config = dataclasses.replace(config, tie_embeddings=True)
    _, tied = transformer.abstract(config, fixtures.execution())
    self.assertNotIn("head_DV", tied)

  def test_initial_scales(self):
    config = fixtures.config(
      vocab_size=512, dim=64, num_layers=8, head_dim=16, mlp_dim=128
    )
    params = transformer.init(config, fixtures.execution(), seed=3)
    out = 0.02 / np.sqrt(16)
    layers = params["group_0"]["block_0"]
    stds = {
      "o_NHD": (layers["mixer"], out),
      "q_DNH": (layers["mixer"], 0.02),
      "k_DKH": (layers["mixer"], 0.02),
      "v_DKH": (layers["mixer"], 0.02),
      "gate_DF": (layers["feed_forward"], 0.02),
      "up_DF": (layers["feed_forward"], 0.02),
      "down_FD": (layers["feed_forward"], out),
      "embed_VD": (params, 0.02),
      "head_DV": (params, 0.02),
    }
    # At least 16384 samples each: deviations are known to 0.6 %, means to
    # 0.8 % of the deviation.
    for name, (parent, std) in stds.items():
      values = np.asarray(parent[name], np.float64)
      self.assertAlmostEqual(values.std() / std, 1, delta=0.03, msg=name)
      self.assertAlmostEqual(values.mean() / std, 0, delta=0.04, msg=name)
    for scale in (params["final_norm"], layers["mixer_norm"]):
      np.testing.assert_array_equal(scale["scale_D"], 1)
    # No two layers, and no two parameters, begin with the same numbers.
    flat = [
      np.asarray(parent[name]).ravel()[:256] / std
      for name, (parent, std) in stds.items()
    ]
    flat += [
      np.asarray(q).ravel()[:256] / 0.02 for q in stds["q_DNH"][0]["q_DNH"][1:]
    ]
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    self.assertLess(np.abs(correlation).max(), 0.35)

  def test_seed(self):
    config = two_groups()
    a, b, c = (
      transformer.init(config, fixtures.execution(), seed=seed)
      for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)
    self.assertGreater(float(jnp.abs(a["embed_VD"] - c["embed_VD"]).max()), 0.1)

  def test_compile_time_does_not_grow_with_depth(self):
    def num_equations(num_layers):
      config = model_config.ModelConfig(
        name="test",
        vocab_size=19,
        dim=8,
        groups=(
          model_config.LayerGroup(pattern=(block(),), repeats=num_layers),
        ),
        tie_embeddings=True,
      )
      execution = fixtures.execution()
      _, shapes = transformer.abstract(config, execution)
      loss = fixtures.make_loss(config, execution)
      return str(jax.make_jaxpr(jax.grad(loss))(shapes, make_batch())).count(
        "\n"
      )

    self.assertEqual(num_equations(2), num_equations(40))


if __name__ == "__main__":
  absltest.main()
