import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import attention
from model import config as model_config
from model import kv_cache
from model import rope

_DIM, _HEADS, _KV_HEADS, _HEAD_DIM = 12, 4, 2, 8
_LENGTH = 9
_EPS = 1e-3
_ROPE = model_config.RopeConfig(theta=100.0)
_CONFIG = model_config.AttentionConfig(
  num_heads=_HEADS, num_kv_heads=_KV_HEADS, head_dim=_HEAD_DIM, rope=_ROPE
)
# Settings that change the function, and the norms' offset.
_OPTIONS = (
  ("plain", {}, 0.0),
  (
    "biases_and_norm_of_heads",
    {"qkv_bias": True, "out_bias": True, "qk_norm": "head"},
    1.0,
  ),
  (
    "norm_of_the_projection_window_sinks",
    {"qk_norm": "projection", "window": 3, "sinks": True},
    0.0,
  ),
  (
    "softcap_scale_gate_biases_no_rope",
    {
      "softcap": 1.5,
      "scale": 0.7,
      "output_gate": True,
      "qkv_bias": True,
      "rope": None,
    },
    0.0,
  ),
  (
    "part_of_the_head_rotates_in_interleaved_pairs",
    {
      "rope": model_config.RopeConfig(
        theta=100.0, fraction=0.5, pairing="interleaved"
      ),
      "window": 2,
    },
    0.0,
  ),
)


def make(
  implementation="auto",
  *,
  dim=_DIM,
  param_dtype="float32",
  norm_offset=0.0,
  **settings,
):
  return attention.Attention(
    dataclasses.replace(_CONFIG, **settings),
    dim=dim,
    init_std=0.5,
    out_std=0.1,
    norm_eps=_EPS,
    norm_offset=norm_offset,
    param_dtype=param_dtype,
    implementation=implementation,
    rngs=nnx.Rngs(0),
  )


def perturb(module):
  """Biases, norms' scales and sinks, which begin equal, made random."""
  rng = np.random.default_rng(0)
  for name in (
    "q_scale_H",
    "k_scale_H",
    "q_scale_NH",
    "k_scale_KH",
    "sinks_N",
    "q_bias_NH",
    "k_bias_KH",
    "v_bias_KH",
    "o_bias_D",
  ):
    if hasattr(module, name):
      param = getattr(module, name)
      param[...] += rng.normal(size=param[...].shape) / 2
  return module


def reference(x, module, positions, segment_ids, *, norm_offset=0.0):
  """Head by head and token by token, in float64."""
  config = module.config
  x = np.asarray(x, np.float64)
  params = {
    name: np.asarray(leaf, np.float64)
    for name, leaf in nnx.to_pure_dict(nnx.state(module)).items()
  }

  def normed(vector, scale):
    rms = np.sqrt((vector**2).mean() + _EPS)
    return vector / rms * (norm_offset + scale)

  def heads(vector, kind, dims):
    """The vector's projections, with bias and norm, one for each head."""
    out = np.einsum("d,dnh->nh", vector, params[f"{kind}_D{dims}"])
    out = out + params.get(f"{kind}_bias_{dims}", 0)
    if f"{kind}_scale_H" in params:
      out = np.stack([normed(o, params[f"{kind}_scale_H"]) for o in out])
    if f"{kind}_scale_{dims}" in params:
      scale = params[f"{kind}_scale_{dims}"]
      out = normed(out.ravel(), scale.ravel()).reshape(out.shape)
    return out

  def turned(vector, position):
    if config.rope is None:
      return vector
    freq = rope.frequencies(config.rope, _HEAD_DIM).astype(np.float64)
    half = len(freq)
    real, imaginary = vector[:half], vector[half : 2 * half]
    if config.rope.pairing == "interleaved":
      real, imaginary = vector[: 2 * half : 2], vector[1 : 2 * half : 2]
    pairs = (real + 1j * imaginary) * np.exp(1j * position * freq)
    return np.concatenate([pairs.real, pairs.imag, vector[2 * half :]])

  out = np.zeros_like(x)
  scale = config.scale or _HEAD_DIM**-0.5
  window = config.window or _LENGTH
  for b, t in np.ndindex(*x.shape[:2]):
    q_NH = heads(x[b, t], "q", "NH")
    seen = [
      s
      for s in range(max(0, t + 1 - window), t + 1)
      if segment_ids[b, s] == segment_ids[b, t]
    ]
    k_SKH = [heads(x[b, s], "k", "KH") for s in seen]
    v_SKH = np.array([heads(x[b, s], "v", "KH") for s in seen])
    for n in range(_HEADS):
      shared = n // (_HEADS // _KV_HEADS)
      q = turned(q_NH[n], positions[b, t])
      scores = np.array(
        [
          scale * q @ turned(k[shared], positions[b, s])
          for k, s in zip(k_SKH, seen, strict=True)
        ]
      )
      if config.softcap is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
      total = np.exp(scores).sum()
      if config.sinks:
        total += np.exp(params["sinks_N"][n])
      head = np.exp(scores) @ v_SKH[:, shared] / total
      if config.output_gate:
        gate = x[b, t] @ params["gate_DNH"][:, n]
        if config.qkv_bias:
          gate += params["gate_bias_NH"][n]
        head /= 1 + np.exp(-gate)
      out[b, t] += head @ params["o_NHD"][n]
    out[b, t] += params.get("o_bias_D", 0)
  return out


@nnx.jit
def call(module, x, span):
  return module(x, norm=lambda x: 2 * x, span=span)


class AttentionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.random.normal(jax.random.key(1), (2, _LENGTH, _DIM))
    # Row 0 holds two documents, row 1 one that began earlier.
    self.positions = np.stack([np.arange(_LENGTH) % 5, 3 + np.arange(_LENGTH)])
    self.segment_ids = np.stack(
      [1 + np.arange(_LENGTH) // 5, np.ones(_LENGTH, int)]
    )

  def span(self):
    return kv_cache.span(
      None,
      positions=jnp.asarray(self.positions),
      segment_ids=jnp.asarray(self.segment_ids),
      shape=self.positions.shape,
    )

  def call(self, module, x):
    out, state = call(module, x, self.span())
    self.assertIsNone(state)
    return out

  @parameterized.parameters(
    "reference", "blockwise", "dot_product", "splash", "auto"
  )
  def test_equals_the_reference(self, implementation):
    module = make(implementation)
    np.testing.assert_allclose(
      self.call(module, self.x),
      reference(2 * self.x, module, self.positions, self.segment_ids),
      rtol=1e-4,
      atol=1e-5,
    )

  @parameterized.named_parameters(*_OPTIONS)
  def test_options(self, settings, norm_offset):
    """The value is the reference's; a gradient reaches what there is."""
    module = perturb(make(norm_offset=norm_offset, **settings))
    graphdef, state = nnx.split(module)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def run(params, scale):
      module = nnx.merge(graphdef, nnx.State(params))
      out, _ = module(self.x, norm=lambda x: scale * x, span=self.span())
      return jnp.sum(jnp.square(out)), out

    gradients, out = run(nnx.to_pure_dict(state), 2.0)
    wanted = reference(
      2 * self.x,
      module,
      self.positions,
      self.segment_ids,
      norm_offset=norm_offset,
    )
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=2e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
      name = jax.tree_util.keystr(path)
      self.assertGreater(float(jnp.abs(leaf).max()), 1e-4, name)

  @parameterized.named_parameters(*_OPTIONS)
  def test_cached_tokens_see_what_uncached_ones_do(self, settings, norm_offset):
    """Five tokens, then one at a time, equal all at once."""
    module = perturb(make(norm_offset=norm_offset, **settings))
    x, rows, slots = self.x, len(self.x), _LENGTH + 2
    wanted = reference(
      2 * x,
      module,
      np.tile(np.arange(_LENGTH), (rows, 1)),
      np.ones((rows, _LENGTH)),
      norm_offset=norm_offset,
    )
    cache = kv_cache.Cache(
      layers={"group_0": {"block_0": module.state(rows, slots, "float32")}},
      segment_ids=jnp.zeros((rows, slots), jnp.int32),
      lengths=jnp.zeros((rows,), jnp.int32),
    )

    @jax.jit
    def step(cache, x):
      span = kv_cache.span(
        cache, positions=None, segment_ids=None, shape=x.shape[:2]
      )
      out, state = module(
        x,
        norm=lambda x: 2 * x,
        span=span,
        state=cache.layers["group_0"]["block_0"],
      )
      return out, kv_cache.advance(cache, span, {"group_0": {"block_0": state}})

    for first, last in [(0, 5), *((t, t + 1) for t in range(5, _LENGTH))]:
      out, cache = step(cache, x[:, first:last])
      np.testing.assert_allclose(
        out, wanted[:, first:last], rtol=1e-4, atol=2e-5
      )

  @parameterized.parameters("float32", "bfloat16")
  def test_computes_in_the_dtype_of_its_input(self, param_dtype):
    module = make(param_dtype=param_dtype)
    out = self.call(module, self.x.astype(jnp.bfloat16))
    self.assertEqual(out.dtype, jnp.bfloat16)
    wanted = reference(2 * self.x, module, self.positions, self.segment_ids)
    np.testing.assert_allclose(
      out.astype(jnp.float32), wanted, atol=0.05 * np.abs(wanted).max()
    )

  def test_only_differences_of_positions_count(self):
    module = make()
    out = self.call(module, self.x)
    self.positions = self.positions + 11
    np.testing.assert_allclose(self.call(module, self.x), out, atol=1e-5)
    self.positions = self.positions * 2
    self.assertGreater(
      float(jnp.abs(self.call(module, self.x) - out).max()), 1e-3
    )

  def test_without_rope_only_order_counts(self):
    module = make(rope=None)
    out = self.call(module, self.x)
    self.positions = self.positions * 2
    np.testing.assert_array_equal(self.call(module, self.x), out)

  def test_initial_scales(self):
    module = make(dim=1024, output_gate=True, qkv_bias=True, qk_norm="head")
    # At least 16384 samples: the standard error of a deviation is 0.6 %.
    for name, std in (
      ("q_DNH", 0.5),
      ("k_DKH", 0.5),
      ("v_DKH", 0.5),
      ("gate_DNH", 0.5),
      ("o_NHD", 0.1),
    ):
      param = getattr(module, name)[...]
      self.assertAlmostEqual(float(jnp.std(param)) / std, 1, delta=0.02)
      self.assertAlmostEqual(float(jnp.mean(param)) / std, 0, delta=0.04)
    np.testing.assert_array_equal(module.q_bias_NH[...], 0)
    np.testing.assert_array_equal(module.q_scale_H[...], 1)
    shifted = make(qk_norm="projection", norm_offset=1.0)
    np.testing.assert_array_equal(shifted.k_scale_KH[...], 0)


if __name__ == "__main__":
  absltest.main()
