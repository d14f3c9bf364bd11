"""Gated DeltaNet against Hugging Face Transformers, its cache, and a mesh.

testdata/qwen3_next_gated_delta_net/golden.npz is what `Qwen3NextGatedDeltaNet`
of transformers 5.23.0 (PyTorch 2.15, CPU, float32) computes: its tensors
(random) by name, `x`, `output`, `grad/*` of sum(output ** 2) / 2, and what its
cache holds after the last token.
"""

import functools
import pathlib
from typing import Any

from absl.testing import absltest
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from model import config as model_config
from model import gated_delta_net
from model import kv_cache
from model import sharding

_GOLDEN = (
  pathlib.Path(__file__).parent
  / "testdata/qwen3_next_gated_delta_net/golden.npz"
)
_CONFIG = model_config.GatedDeltaNetConfig(
  num_key_heads=2,
  num_value_heads=4,
  key_head_dim=6,
  value_head_dim=8,
)
_DIM = 12


def make(
  config=_CONFIG, *, param_dtype="float32"
) -> gated_delta_net.GatedDeltaNet:
  return gated_delta_net.GatedDeltaNet(
    config,
    dim=_DIM,
    init_std=0.5,
    out_std=0.5,
    norm_eps=1e-6,
    param_dtype=param_dtype,
    rngs=nnx.Rngs(0),
  )


def from_hugging_face(tensors, config=_CONFIG):
  """Our parameters, of tensors by their names in Hugging Face Transformers."""
  heads, key_heads = config.num_value_heads, config.num_key_heads
  key_dim, value_dim = config.key_head_dim, config.value_head_dim
  group = heads // key_heads
  # Each key head has its query, its key, and its value heads' values and gates.
  qkvz = tensors["in_proj_qkvz.weight"].T.reshape(_DIM, key_heads, -1)
  ends = np.cumsum([key_dim, key_dim, group * value_dim])
  q, k, v, gate = np.split(qkvz, ends, axis=2)
  beta, decay = np.split(
    tensors["in_proj_ba.weight"].T.reshape(_DIM, key_heads, 2 * group),
    2,
    axis=2,
  )
  # The convolution has all queries, then all keys, then all values.
  ends = np.cumsum([key_heads * key_dim] * 2)
  q_conv, k_conv, v_conv = np.split(tensors["conv1d.weight"][:, 0], ends)
  return {
    "q_DKH": q,
    "k_DKH": k,
    "v_DNH": v.reshape(_DIM, heads, value_dim),
    "gate_DNH": gate.reshape(_DIM, heads, value_dim),
    "beta_DN": beta.reshape(_DIM, heads),
    "decay_DN": decay.reshape(_DIM, heads),
    "q_conv_KHW": q_conv.reshape(key_heads, key_dim, -1),
    "k_conv_KHW": k_conv.reshape(key_heads, key_dim, -1),
    "v_conv_NHW": v_conv.reshape(heads, value_dim, -1),
    "decay_log_N": tensors["A_log"],
    "decay_bias_N": tensors["dt_bias"],
    "out_scale_H": tensors["norm.weight"],
    "o_NHD": tensors["out_proj.weight"].T.reshape(heads, value_dim, _DIM),
  }


@functools.cache
def graphdef():
  return nnx.graphdef(nnx.eval_shape(make))


def bind(params) -> gated_delta_net.GatedDeltaNet:
  return nnx.merge(graphdef(), nnx.State(params))


def span(segment_ids):
  rows, length = segment_ids.shape
  return kv_cache.span(
    None, positions=None, segment_ids=segment_ids, shape=(rows, length)
  )


@jax.jit
def run(params, x, segment_ids):
  """The output for x, and the gradients of sum(output ** 2) / 2."""

  def loss(params, x):
    out, _ = bind(params)(x, norm=lambda x: x, span=span(segment_ids))
    valid = segment_ids[..., None] > 0
    return jnp.sum(jnp.where(valid, out, 0) ** 2) / 2, out

  grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
  return out, grads


@jax.jit
def step(params, x, segment_ids, cache):
  """The output for tokens behind `cache`, and the cache with them."""
  here = kv_cache.span(
    cache, positions=None, segment_ids=segment_ids, shape=x.shape[:2]
  )
  out, state = bind(params)(
    x, norm=lambda x: x, span=here, state=cache.layers["only"]["state"]
  )
  return out, kv_cache.advance(cache, here, {"only": {"state": state}})


def make_cache(rows, slots=32):
  return kv_cache.Cache(
    layers={"only": {"state": make().state(rows, slots, "float32")}},
    segment_ids=jnp.zeros((rows, slots), jnp.int32),
    lengths=jnp.zeros((rows,), jnp.int32),
  )


def assert_close(actual, wanted, tolerance):
  """All leaves, relative to the largest number of each."""

  def one(path, a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(
      a,
      b,
      rtol=0,
      atol=tolerance * np.abs(b).max(),
      err_msg=jax.tree_util.keystr(path),
    )

  jax.tree_util.tree_map_with_path(one, actual, wanted)


class GatedDeltaNetTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    with np.load(_GOLDEN) as arrays:
      self.golden = dict(arrays)
    self.params: dict[str, Any] = from_hugging_face(self.golden)
    self.x = self.golden["x"]

  def gradients(self):
    return {
      name.removeprefix("grad/"): array
      for name, array in self.golden.items()
      if name.startswith("grad/")
    }

  def test_equals_hugging_face_in_value_and_gradient(self):
    out, (params, x) = run(self.params, self.x, np.ones((1, 72), np.int32))
    np.testing.assert_allclose(out, self.golden["output"], atol=2e-5)
    grads = self.gradients()
    assert_close(x, grads["x"], 1e-4)
    assert_close(params, from_hugging_face(grads), 1e-4)

  def test_state_equals_hugging_face(self):
    ids = np.ones((1, 72), np.int32)
    out, cache = step(self.params, self.x, ids, make_cache(1, slots=72))
    np.testing.assert_allclose(out, self.golden["output"], atol=2e-5)
    state = cache.layers["only"]["state"]
    np.testing.assert_allclose(
      state["memory"], self.golden["recurrent_state"], atol=1e-5
    )
    conv = [state["conv"][name].reshape(1, 3, -1) for name in "qkv"]
    np.testing.assert_allclose(
      np.concatenate(conv, axis=2).swapaxes(1, 2),
      self.golden["conv_state"][:, :, 1:],
      atol=1e-5,
    )

  def test_documents_of_a_row_are_strangers(self):
    # 72 tokens as a row: 30, 2 of padding, 39 of another document, padding.
    ids = np.array([[1] * 30 + [0] * 2 + [2] * 39 + [0]], np.int32)
    packed, _ = run(self.params, self.x, ids)
    alone, _ = run(self.params, self.x, np.ones((1, 72), np.int32))
    np.testing.assert_allclose(packed[:, :30], alone[:, :30], atol=2e-5)
    moved = np.roll(self.x, -32, axis=1)
    alone, _ = run(self.params, moved, np.ones((1, 72), np.int32))
    np.testing.assert_allclose(packed[:, 32:71], alone[:, :39], atol=2e-5)

  def test_token_by_token_equals_the_whole(self):
    rows, length = 2, 9
    cache = make_cache(rows)
    for t in range(length):
      token = np.repeat(self.x[:, t : t + 1], rows, axis=0)
      out, cache = step(self.params, token, np.ones((rows, 1), np.int32), cache)
      np.testing.assert_allclose(
        out[1:], self.golden["output"][:, t : t + 1], atol=2e-5
      )
    self.assertEqual(cache.lengths.tolist(), [length] * rows)

  def test_padded_prompts_of_unequal_lengths_go_on_as_each_alone(self):
    # Row 0 has 2 tokens and row 1 5: fewer and more than the convolution keeps.
    lengths, texts = np.array([2, 5]), [self.x[0, :8], self.x[0, 20:28]]
    x = np.stack([t[:6] for t in texts])
    x[0, 2:] = x[1, 5:] = 9.0
    ids = (np.arange(6) < lengths[:, None]).astype(np.int32)
    cache = make_cache(2)
    # Rows that a longer text has left: what it left is not seen.
    stale = jax.tree.map(lambda a: a + jnp.nan, cache.layers)
    cache = kv_cache.Cache(
      layers=stale, segment_ids=cache.segment_ids, lengths=cache.lengths
    )
    out, cache = step(self.params, x, ids, cache)
    outs = [[out[b, : lengths[b]]] for b in range(2)]
    for i in range(3):
      following = np.stack([texts[b][lengths[b] + i] for b in range(2)])
      out, cache = step(
        self.params, following[:, None], np.ones((2, 1), np.int32), cache
      )
      for b in range(2):
        outs[b].append(out[b])
    for b, text in enumerate(texts):
      whole, _ = run(
        self.params,
        np.pad(text, ((0, 64), (0, 0)))[None],
        np.ones((1, 72), np.int32),
      )
      row = np.concatenate(outs[b])
      np.testing.assert_allclose(row, whole[0, : len(row)], atol=2e-5)

  def test_state_does_not_grow(self):
    shapes = [
      jax.eval_shape(lambda slots=slots: make().state(2, slots, "bfloat16"))
      for slots in (1, 1000)
    ]
    self.assertEqual(*shapes)
    self.assertEqual(shapes[0]["memory"].shape, (2, 4, 6, 8))
    self.assertEqual(shapes[0]["memory"].dtype, jnp.float32)
    self.assertEqual(shapes[0]["conv"]["v"].shape, (2, 3, 4, 8))
    self.assertEqual(shapes[0]["conv"]["v"].dtype, jnp.bfloat16)

  def test_a_convolution_of_one_token_keeps_none(self):
    config = model_config.GatedDeltaNetConfig(
      num_key_heads=2,
      num_value_heads=2,
      key_head_dim=4,
      value_head_dim=4,
      conv_size=1,
    )

    def call(x):
      module = make(config)
      ids = jnp.ones((1, 2), jnp.int32)
      state = module.state(1, 4, "float32")
      return module(x, norm=lambda x: x, span=span(ids), state=state)

    out, state = jax.eval_shape(call, self.x[:, :2])
    self.assertEqual(out.shape, (1, 2, _DIM))
    self.assertEqual(state["conv"]["q"].shape, (1, 0, 2, 4))

  def test_begins_with_decays_of_every_speed(self):
    heads = 512
    config = model_config.GatedDeltaNetConfig(
      num_key_heads=1, num_value_heads=heads, key_head_dim=1, value_head_dim=1
    )
    module = make(config)
    rate = np.exp(module.decay_log_N[...])
    self.assertGreater(rate.min(), 0.0099)
    self.assertLess(rate.max(), 16.01)
    np.testing.assert_allclose(rate.mean(), 8, rtol=0.1)
    step_size = np.log1p(np.exp(module.decay_bias_N[...]))
    np.testing.assert_allclose(
      [step_size.min(), step_size.max(), np.exp(np.log(step_size).mean())],
      [1e-3, 0.1, 1e-2],
      rtol=0.15,
    )

  def test_computes_in_the_dtype_of_its_input(self):

    def call(x):
      module = make(param_dtype="bfloat16")
      ids = jnp.ones((2, 7), jnp.int32)
      state = module.state(2, 7, "bfloat16")
      return module(x, norm=lambda x: x, span=span(ids), state=state)

    x = jax.ShapeDtypeStruct((2, 7, _DIM), jnp.bfloat16)
    out, state = jax.eval_shape(call, x)
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertEqual(state["memory"].dtype, jnp.float32)
    self.assertEqual(state["conv"]["k"].dtype, jnp.bfloat16)

  def test_eight_devices_compute_what_one_does(self):
    x = np.concatenate([self.x, self.x[:, ::-1]] * 2)[:, :16]
    ids = np.ones((4, 16), np.int32)
    ids[1, 5:], ids[2, 13:] = 2, 0
    wanted = run(self.params, x, ids)
    mesh = sharding.make_mesh(
      sharding.MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()
    )
    with jax.set_mesh(mesh):
      params = jax.device_put(
        self.params, sharding.param_shardings(self.params, mesh)
      )
      self.assertEqual(
        params["q_conv_KHW"].sharding.spec, P("tensor", None, None)
      )
      x, ids = sharding.put_batch((x, ids), mesh)
      sharded = functools.partial(run, params, x, ids)
      assert_close(jax.device_get(sharded()), jax.device_get(wanted), 1e-4)


if __name__ == "__main__":
  absltest.main()
