"""Both forms of latent attention equal its definition, cached or not."""

import functools
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import kv_cache
from model import mla
from model import rope
from model import sharding

_DIM, _HEADS, _NOPE, _ROPE, _VALUE, _RANK = 12, 4, 6, 4, 5, 8
_LENGTH = 9
_FORMS = ("absorbed", "unabsorbed")
_YARN = model_config.YarnScaling(
  factor=4.0, original_max_seq_len=16, mscale=0.7, mscale_all_dim=1.3
)


def build(
  form: mla.Form = "auto",
  *,
  dim: int = _DIM,
  param_dtype: str = "float32",
  implementation: str = "auto",
  **settings,
) -> mla.Mla:
  defaults: dict[str, Any] = {
    "num_heads": _HEADS,
    "kv_rank": _RANK,
    "nope_head_dim": _NOPE,
    "rope_head_dim": _ROPE,
    "value_head_dim": _VALUE,
    "rope": model_config.RopeConfig(theta=100.0, pairing="interleaved"),
  }
  return mla.Mla(
    model_config.MlaConfig(**(defaults | settings)),
    dim=dim,
    init_std=0.5,
    out_std=0.1,
    param_dtype=param_dtype,
    implementation=implementation,
    form=form,
    rngs=nnx.Rngs(0),
  )


def make(form: mla.Form = "auto", **settings) -> mla.Mla:
  """A module whose scales count."""
  graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(form, **settings)))
  # By NumPy: compiling JAX's random numbers takes longer than the tests.
  rng = np.random.default_rng(0)
  params = {
    name: jnp.asarray(
      rng.uniform(0.5, 1.5, x.shape)
      if x.ndim == 1
      else rng.normal(0, 0.5, x.shape),
      x.dtype,
    )
    for name, x in sorted(nnx.to_pure_dict(shapes).items())
  }
  return nnx.merge(graphdef, nnx.State(params))


def reference(x, module, positions, segment_ids):
  """Head by head and token by token, in float64, from the paper's formulas."""
  config, scaling = module.config, module.config.rope.scaling
  p = {
    name: np.asarray(value, np.float64)
    for name, value in nnx.to_pure_dict(nnx.state(module)).items()
  }
  x = np.asarray(x, np.float64)
  scale, stretch = (_NOPE + _ROPE) ** -0.5, 1.0
  if scaling is not None:
    # DeepSeek's mscale: of the softmax squared, of cosine and sine a quotient.
    grown = [
      0.1 * m * np.log(scaling.factor) + 1
      for m in (scaling.mscale, scaling.mscale_all_dim)
    ]
    scale *= grown[1] ** 2
    stretch = grown[0] / grown[1]
  freq = rope.frequencies(config.rope, _ROPE).astype(np.float64)

  def turned(vector, position):
    pairs = vector[0::2] + 1j * vector[1::2]
    pairs = stretch * pairs * np.exp(1j * position * freq)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(-1)

  def normed(vector, weight):
    mean_square = np.mean(vector**2)
    return weight * vector / np.sqrt(mean_square + config.latent_norm_eps)

  def query(b, t):
    if config.q_rank is None:
      return np.einsum("D,DNH->NH", x[b, t], p["q_DNH"])
    small = normed(x[b, t] @ p["q_down_DR"], p["q_norm_scale_R"])
    return np.einsum("R,RNH->NH", small, p["q_up_RNH"])

  def score(b, t, s, n):
    q = query(b, t)[n]
    latent = normed(x[b, s] @ p["latent_DC"], p["latent_scale_C"])
    shared = turned(x[b, s] @ p["rope_key_DH"], positions[b, s])
    return scale * (
      q[:_NOPE] @ (latent @ p["k_up_CNH"][:, n])
      + turned(q[_NOPE:], positions[b, t]) @ shared
    )

  out = np.zeros_like(x)
  for b, t, n in np.ndindex(*x.shape[:2], _HEADS):
    seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
    weights = np.exp([score(b, t, s, n) for s in seen])
    for s, weight in zip(seen, weights / weights.sum(), strict=True):
      latent = normed(x[b, s] @ p["latent_DC"], p["latent_scale_C"])
      out[b, t] += weight * (latent @ p["v_up_CNH"][:, n]) @ p["o_NHD"][n]
  return out


def inputs():
  """Row 0 holds two documents, row 1 one that began earlier."""
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(2, _LENGTH, _DIM)), jnp.float32)
  places = np.arange(_LENGTH)
  positions = np.stack([places % 5, 3 + places])
  segment_ids = np.stack([1 + places // 5, np.ones(_LENGTH, int)])
  return x, positions, segment_ids


@nnx.jit
def call(module, x, positions, segment_ids):
  span = kv_cache.span(
    None,
    positions=positions,
    segment_ids=segment_ids,
    shape=x.shape[:2],
  )
  out, state = module(x, norm=lambda x: 2 * x, span=span)
  assert state is None
  return out


@nnx.jit
def advance(module, cache, x, segment_ids):
  """A cache with one layer, and what x gives behind it."""
  span = kv_cache.span(
    cache, positions=None, segment_ids=segment_ids, shape=x.shape[:2]
  )
  out, state = module(
    x, norm=lambda x: 2 * x, span=span, state=cache.layers["g"]["b"]
  )
  return out, kv_cache.advance(cache, span, {"g": {"b": state}})


def empty_cache(module, rows, slots):
  return kv_cache.Cache(
    layers={"g": {"b": module.state(rows, slots, "float32")}},
    segment_ids=jnp.zeros((rows, slots), jnp.int32),
    lengths=jnp.zeros((rows,), jnp.int32),
  )


class MlaTest(parameterized.TestCase):
  @parameterized.product(
    form=_FORMS,
    settings=(
      {},
      {
        "q_rank": 7,
        "rope": model_config.RopeConfig(
          theta=100.0, pairing="interleaved", scaling=_YARN
        ),
      },
    ),
  )
  def test_equals_the_reference(self, form, settings):
    module = make(form, **settings)
    x, positions, segment_ids = inputs()
    np.testing.assert_allclose(
      call(module, x, positions, segment_ids),
      reference(2 * x, module, positions, segment_ids),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_splash_takes_it(self):
    """The kernel of TPUs is for keys that are the queries' tokens."""
    module = make(implementation="splash")
    np.testing.assert_allclose(
      call(module, *inputs()),
      reference(2 * inputs()[0], module, *inputs()[1:]),
      rtol=1e-4,
      atol=1e-5,
    )

  @parameterized.parameters("float32", "bfloat16")
  def test_computes_in_the_dtype_of_its_input(self, param_dtype):
    module = make(param_dtype=param_dtype, q_rank=7)
    x, *where = inputs()
    out = call(module, x.astype(jnp.bfloat16), *where)
    self.assertEqual(out.dtype, jnp.bfloat16)
    wanted = reference(2 * x, module, *where)
    np.testing.assert_allclose(
      out.astype(jnp.float32), wanted, atol=0.05 * np.abs(wanted).max()
    )

  def test_forms_are_equal_in_value_and_gradient(self):
    x, *where = inputs()

    def value_and_gradient(form):
      graphdef, state = nnx.split(make(form, q_rank=7))

      @functools.partial(jax.value_and_grad, argnums=(0, 1))
      def loss(params, x):
        module = nnx.merge(graphdef, nnx.State(params))
        return jnp.mean(jnp.square(call(module, x, *where)))

      return jax.jit(loss)(nnx.to_pure_dict(state), x)

    absorbed, unabsorbed = map(value_and_gradient, _FORMS)
    for path, gradient in jax.tree_util.tree_leaves_with_path(unabsorbed):
      with self.subTest(jax.tree_util.keystr(path)):
        self.assertGreater(float(jnp.abs(gradient).max()), 1e-3)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
      absorbed,
      unabsorbed,
    )

  @parameterized.parameters(*_FORMS)
  def test_token_by_token_equals_all_at_once(self, form):
    module = make(form, q_rank=7)
    x, _, _ = inputs()
    ones = np.ones((2, _LENGTH), int)
    wanted = call(module, x, np.cumsum(ones, axis=1) - 1, ones)
    cache = empty_cache(module, 2, _LENGTH + 2)
    outs = []
    for t in range(_LENGTH):
      out, cache = advance(module, cache, x[:, t : t + 1], None)
      outs.append(out)
    np.testing.assert_allclose(
      jnp.concatenate(outs, axis=1), wanted, rtol=1e-5, atol=1e-5
    )

  def test_rows_of_unequal_lengths_are_as_if_alone(self):
    module = make()
    x, _, _ = inputs()
    lengths = np.array([3, 6])
    segment_ids = (np.arange(6) < lengths[:, None]).astype(np.int32)
    cache = empty_cache(module, 2, _LENGTH)
    prefill, cache = advance(module, cache, x[:, :6], segment_ids)
    decoded = []
    for _ in range(3):
      tokens = x[np.arange(2), cache.lengths][:, None]
      out, cache = advance(module, cache, tokens, None)
      decoded.append(out)
    np.testing.assert_array_equal(cache.lengths, lengths + 3)
    for row, length in enumerate(lengths):
      count = length + 3
      ones = np.ones((1, count), int)
      alone = call(module, x[row : row + 1, :count], ones.cumsum() - 1, ones)
      got = [prefill[row, :length], *(out[row] for out in decoded)]
      np.testing.assert_allclose(
        jnp.concatenate(got), alone[0], rtol=1e-5, atol=1e-5
      )

  def test_cache_holds_latents_and_one_key(self):
    state = make().state(3, 7, "bfloat16")
    shapes = {name: (x.shape, str(x.dtype)) for name, x in state.items()}
    self.assertEqual(
      shapes,
      {
        "latent": ((3, 7, _RANK), "bfloat16"),
        "rope_key": ((3, 7, _ROPE), "bfloat16"),
      },
    )

  @parameterized.parameters(
    (1, 4096, True),
    (128, 100_000, True),
    (200, 100_000, False),
    (4096, 4096, False),
    (2048, 100_000, False),
  )
  def test_cheaper_form_of_deepseek_v3(self, num_queries, num_keys, expected):
    config = model_config.MlaConfig(
      num_heads=128,
      kv_rank=512,
      nope_head_dim=128,
      rope_head_dim=64,
      value_head_dim=128,
    )
    self.assertEqual(
      mla.prefers_absorbed(config, num_queries=num_queries, num_keys=num_keys),
      expected,
    )

  def test_chooses_by_cost_with_a_cache_only(self):
    module = make()
    x, *where = inputs()
    with mock.patch.object(mla, "prefers_absorbed", autospec=True) as choose:
      # Shapes that nothing else here has, so that both are traced.
      call(module, x[:, :7], *(ids[:, :7] for ids in where))
      choose.assert_not_called()
      advance(module, empty_cache(module, 2, 17), x[:, :2], None)
      choose.assert_called_once_with(module.config, num_queries=2, num_keys=17)

  @parameterized.parameters(*_FORMS)
  def test_sharded_equals_one_device(self, form):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=2, tensor=4), jax.devices()
    )
    graphdef, state = nnx.split(make(form, q_rank=6))
    params = nnx.to_pure_dict(state)
    x, *where = inputs()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, x):
      module = nnx.merge(graphdef, nnx.State(params))
      prompt = advance(module, empty_cache(module, 2, 10), x[:, :4], None)
      out = call(module, x, *where)
      return jnp.mean(jnp.square(out)), (out, prompt)

    wanted = jax.jit(loss)(params, x)
    with jax.set_mesh(mesh):
      params = jax.device_put(params, sharding.param_shardings(params, mesh))
      x = jax.device_put(x, sharding.batch_sharding(mesh))
      got = jax.jit(loss)(params, x)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      got,
      wanted,
    )

  def test_initial_scales(self):
    module = build(dim=1024, q_rank=128, kv_rank=128, rope_head_dim=16)
    for name, param in nnx.to_pure_dict(nnx.state(module)).items():
      with self.subTest(name):
        if param.ndim == 1:
          np.testing.assert_array_equal(param, 1.0)
          continue
        std = 0.1 if name == "o_NHD" else 0.5
        # Of 2048 numbers and more: the standard error is at most 1.6 %.
        self.assertAlmostEqual(float(jnp.std(param)) / std, 1, delta=0.06)
        self.assertAlmostEqual(float(jnp.mean(param)) / std, 0, delta=0.08)


if __name__ == "__main__":
  absltest.main()
