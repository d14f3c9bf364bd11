from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import attention
from model import config as model_config
from model import rope

_DIM, _HEADS, _KV_HEADS, _HEAD_DIM = 12, 4, 2, 8
_LENGTH = 9
_CONFIG = model_config.AttentionConfig(
  num_heads=_HEADS,
  num_kv_heads=_KV_HEADS,
  head_dim=_HEAD_DIM,
  rope=model_config.RopeConfig(theta=100.0),
)


def make(implementation="auto", *, dim=_DIM, param_dtype="float32"):
  return attention.Attention(
    _CONFIG,
    dim=dim,
    init_std=0.5,
    out_std=0.1,
    param_dtype=param_dtype,
    implementation=implementation,
    rngs=nnx.Rngs(0),
  )


def reference(x, module, positions, segment_ids):
  """Head by head and token by token, in float64."""
  x = np.asarray(x, np.float64)
  q_DNH, k_DKH, v_DKH, o_NHD = (
    np.asarray(p[...], np.float64)
    for p in (module.q_DNH, module.k_DKH, module.v_DKH, module.o_NHD)
  )
  freq = rope.frequencies(_CONFIG.rope, _HEAD_DIM).astype(np.float64)
  half = _HEAD_DIM // 2

  def turned(vector, position):
    pairs = vector[:half] + 1j * vector[half:]
    pairs = pairs * np.exp(1j * position * freq)
    return np.concatenate([pairs.real, pairs.imag])

  out = np.zeros_like(x)
  for b, t, n in np.ndindex(*x.shape[:2], _HEADS):
    shared = n // (_HEADS // _KV_HEADS)
    q = turned(x[b, t] @ q_DNH[:, n], positions[b, t])
    seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
    keys = [turned(x[b, s] @ k_DKH[:, shared], positions[b, s]) for s in seen]
    scores = np.array(keys) @ q / np.sqrt(_HEAD_DIM)
    weights = np.exp(scores - scores.max())
    values = x[b, seen] @ v_DKH[:, shared]
    out[b, t] += weights @ values / weights.sum() @ o_NHD[n]
  return out


class AttentionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.random.normal(jax.random.key(1), (2, _LENGTH, _DIM))
    # Row 0 holds two documents, row 1 one that began earlier.
    self.positions = np.stack([np.arange(_LENGTH) % 5, 3 + np.arange(_LENGTH)])
    self.segment_ids = np.stack(
      [1 + np.arange(_LENGTH) // 5, np.ones(_LENGTH, int)]
    )

  def call(self, module, x):
    return module(
      x,
      norm=lambda x: 2 * x,
      positions=jnp.asarray(self.positions),
      segment_ids=jnp.asarray(self.segment_ids),
    )

  @parameterized.parameters("reference", "blockwise", "dot_product", "auto")
  def test_equals_the_reference(self, implementation):
    module = make(implementation)
    np.testing.assert_allclose(
      self.call(module, self.x),
      reference(2 * self.x, module, self.positions, self.segment_ids),
      rtol=1e-4,
      atol=1e-5,
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

  def test_gradient_reaches_every_parameter_and_the_norm(self):
    graphdef, state = nnx.split(make())
    params = nnx.to_pure_dict(state)

    def loss(params, scale):
      module = nnx.merge(graphdef, nnx.State(params))
      out = module(
        self.x,
        norm=lambda x: scale * x,
        positions=jnp.asarray(self.positions),
        segment_ids=jnp.asarray(self.segment_ids),
      )
      return jnp.sum(jnp.square(out))

    gradients = jax.grad(loss, argnums=(0, 1))(params, 2.0)
    for leaf in jax.tree.leaves(gradients):
      self.assertGreater(float(jnp.abs(leaf).max()), 1e-3)

  def test_initial_scales(self):
    module = make(dim=1024)
    # At least 16384 samples: the standard error of a deviation is 0.6 %.
    for name, std in (
      ("q_DNH", 0.5),
      ("k_DKH", 0.5),
      ("v_DKH", 0.5),
      ("o_NHD", 0.1),
    ):
      param = getattr(module, name)[...]
      self.assertAlmostEqual(float(jnp.std(param)) / std, 1, delta=0.02)
      self.assertAlmostEqual(float(jnp.mean(param)) / std, 0, delta=0.04)


if __name__ == "__main__":
  absltest.main()
