from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import transformer

_LENGTH = 11


def block(*, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12):
  return model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      rope=model_config.RopeConfig(theta=100.0),
    ),
    feed_forward=model_config.MlpConfig(dim=mlp_dim),
  )


def two_groups(*, tie_embeddings=False):
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
    tie_embeddings=tie_embeddings,
    init_std=0.4,
  )


def execution(**overrides):
  settings: dict[str, Any] = {"compute_dtype": "float32"}
  return model_config.ExecutionConfig(**settings | overrides)


def make_batch(config):
  """Tokens; row 1 is packed from documents of four tokens."""
  rng = np.random.default_rng(0)
  index = np.arange(_LENGTH)
  return {
    "tokens": rng.integers(0, config.vocab_size, size=(2, _LENGTH)),
    "positions": np.stack([index, index % 4]),
    "segment_ids": np.stack([np.ones(_LENGTH, int), index // 4]),
  }


def make_params(config, **overrides):
  """Initial parameters, the norms' scales among them changed from 1."""
  params = transformer.init(config, execution(**overrides), seed=0)
  rng = np.random.default_rng(0)

  def perturb(path, leaf):
    if path[-1].key == "scale_D":
      leaf = leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    return leaf

  return jax.tree_util.tree_map_with_path(perturb, params)


# The same decoder in NumPy and float64: every layer in turn, every pair of
# tokens, nothing shared with the code under test.


def reference_norm(x, scale, eps):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def reference_rotate(x, positions, theta):
  half = x.shape[-1] // 2
  angle = positions[..., None, None] * theta ** (-np.arange(half) / half)
  turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
  return np.concatenate([turned.real, turned.imag], axis=-1)


def reference_attention(x, params, config, positions, segment_ids):
  theta = config.rope.theta
  q = np.einsum("btd,dnh->btnh", x, params["q_DNH"])
  k = np.einsum("btd,dnh->btnh", x, params["k_DKH"])
  v = np.einsum("btd,dnh->btnh", x, params["v_DKH"])
  q = reference_rotate(q, positions, theta)
  k = reference_rotate(k, positions, theta)
  share = config.num_heads // config.num_kv_heads
  k, v = np.repeat(k, share, axis=2), np.repeat(v, share, axis=2)
  scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(config.head_dim)
  visible = np.tri(x.shape[1], dtype=bool) & (
    segment_ids[:, :, None] == segment_ids[:, None, :]
  )
  weights = np.where(visible[:, None], np.exp(scores), 0)
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum("bnts,bsnh->btnh", weights, v)
  return np.einsum("btnh,nhd->btd", out, params["o_NHD"])


def reference_mlp(x, params):
  gate = x @ params["gate_DF"]
  return (gate / (1 + np.exp(-gate)) * (x @ params["up_DF"])) @ (
    params["down_FD"]
  )


def reference_logits(config, params, batch):
  positions, segment_ids = batch["positions"], batch["segment_ids"]
  eps = config.norm_eps
  x = params["embed_VD"][batch["tokens"]]
  for i, group in enumerate(config.groups):
    for repeat in range(group.repeats):
      for j, block_config in enumerate(group.pattern):
        stacked = params[f"group_{i}"][f"block_{j}"]
        layer = jax.tree.map(lambda p, n=repeat: p[n], stacked)
        x = x + reference_attention(
          reference_norm(x, layer["mixer_norm"]["scale_D"], eps),
          layer["mixer"],
          block_config.mixer,
          positions,
          segment_ids,
        )
        x = x + reference_mlp(
          reference_norm(x, layer["feed_forward_norm"]["scale_D"], eps),
          layer["feed_forward"],
        )
  x = reference_norm(x, params["final_norm"]["scale_D"], eps)
  head = params["embed_VD"].T if config.tie_embeddings else params["head_DV"]
  return x @ head


def reference_loss(config, params, batch):
  logits = reference_logits(config, params, batch)[:, :-1]
  log_z = np.log(np.exp(logits).sum(-1))
  targets = batch["tokens"][:, 1:, None]
  return np.mean(log_z - np.take_along_axis(logits, targets, -1)[..., 0])


def make_loss(config, **overrides):
  graphdef, _ = transformer.abstract(config, execution(**overrides))

  def loss(params, batch):
    model = transformer.bind(graphdef, params)
    logits = model.logits(model(**batch))[:, :-1]
    targets = batch["tokens"][:, 1:, None]
    hit = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - hit)

  return loss


def to_float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


class TransformerTest(parameterized.TestCase):
  @parameterized.product(
    tie_embeddings=(False, True),
    attention=("reference", "blockwise", "dot_product"),
  )
  def test_equals_the_reference(self, tie_embeddings, attention):
    config = two_groups(tie_embeddings=tie_embeddings)
    params, batch = make_params(config), make_batch(config)
    inputs = jax.tree.map(jnp.asarray, batch)
    graphdef, _ = transformer.abstract(config, execution(attention=attention))

    @jax.jit
    def logits(params):
      model = transformer.bind(graphdef, params)
      return model.logits(model(**inputs))

    wanted = reference_logits(config, to_float64(params), batch)
    np.testing.assert_allclose(logits(params), wanted, rtol=1e-4, atol=2e-5)

  @parameterized.product(tie_embeddings=(False, True), remat=("none", "full"))
  def test_gradient_by_differences(self, tie_embeddings, remat):
    config = two_groups(tie_embeddings=tie_embeddings)
    params, batch = make_params(config), make_batch(config)
    gradient = jax.jit(jax.grad(make_loss(config, remat=remat)))(params, batch)
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
    config = two_groups()
    params, batch = make_params(config), make_batch(config)
    value, gradient = {}, {}
    for remat in ("none", "full"):
      loss = make_loss(config, remat=remat)
      value[remat], gradient[remat] = jax.jit(jax.value_and_grad(loss))(
        params, batch
      )
    np.testing.assert_allclose(value["full"], value["none"], rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      gradient["full"],
      gradient["none"],
    )

  def test_defaults_are_one_segment_from_position_0(self):
    config = two_groups()
    graphdef, _ = transformer.abstract(config, execution())
    model = transformer.bind(graphdef, make_params(config))
    tokens = jnp.asarray(make_batch(config)["tokens"])
    given = model(
      tokens,
      positions=jnp.broadcast_to(jnp.arange(_LENGTH), tokens.shape),
      segment_ids=jnp.full_like(tokens, 3),
    )
    np.testing.assert_array_equal(model(tokens), given)

  @parameterized.product(
    compute_dtype=("float32", "bfloat16"), param_dtype=("float32", "bfloat16")
  )
  def test_dtypes(self, compute_dtype, param_dtype):
    config = two_groups()
    run = execution(compute_dtype=compute_dtype, param_dtype=param_dtype)
    graphdef, params = transformer.abstract(config, run)
    for leaf in jax.tree.leaves(params):
      self.assertEqual(leaf.dtype, param_dtype)

    def hidden_and_logits(params, tokens):
      model = transformer.bind(graphdef, params)
      hidden = model(tokens)
      return hidden, model.logits(hidden)

    tokens = jax.ShapeDtypeStruct((2, _LENGTH), jnp.int32)
    hidden, logits = jax.eval_shape(hidden_and_logits, params, tokens)
    self.assertEqual((hidden.dtype, hidden.shape), (compute_dtype, (2, 11, 8)))
    self.assertEqual((logits.dtype, logits.shape), ("float32", (2, 11, 19)))

  def test_abstract_is_what_init_makes(self):
    config = two_groups()
    _, shapes = transformer.abstract(config, execution())
    params = transformer.init(config, execution(), seed=0)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    self.assertEqual(describe(shapes), describe(params))
    self.assertEqual(
      set(shapes), {"embed_VD", "group_0", "group_1", "final_norm", "head_DV"}
    )
    self.assertEqual(
      shapes["group_0"]["block_1"]["mixer"]["q_DNH"].shape, (3, 8, 4, 4)
    )
    tied = transformer.abstract(two_groups(tie_embeddings=True), execution())[1]
    self.assertNotIn("head_DV", tied)

  def test_initial_scales(self):
    config = model_config.dense(
      name="test",
      vocab_size=512,
      dim=64,
      num_layers=8,
      num_heads=4,
      num_kv_heads=2,
      head_dim=16,
      mlp_dim=128,
      tie_embeddings=False,
    )
    params = transformer.init(config, execution(), seed=3)
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
      transformer.init(config, execution(), seed=seed) for seed in (0, 0, 1)
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
      _, shapes = transformer.abstract(config, execution())
      loss = make_loss(config)
      return str(
        jax.make_jaxpr(jax.grad(loss))(shapes, make_batch(config))
      ).count("\n")

    self.assertEqual(num_equations(2), num_equations(40))


if __name__ == "__main__":
  absltest.main()
