import math

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import config
from model import mlp

_DIM, _MLP_DIM = 12, 20


def make(param_dtype="float32", **settings):
  return mlp.Mlp(
    config.MlpConfig(dim=_MLP_DIM, **settings),
    dim=_DIM,
    init_std=0.5,
    out_std=0.1,
    param_dtype=param_dtype,
    rngs=nnx.Rngs(0),
  )


def reference(x, module):
  """SwiGLU (the paper's equation 6) in float64, without bias."""
  x, gate, up, down = (
    np.asarray(a, np.float64)
    for a in (
      x,
      module.gate_DF[...],
      module.up_DF[...],
      module.down_FD[...],
    )
  )
  gated = x @ gate
  return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down


def reference_activation(x, name):
  """Elementwise, in float64."""
  match name:
    case "silu":
      return x / (1 + np.exp(-x))
    case "gelu":  # x times the normal distribution function (arXiv:1606.08415)
      erf = np.vectorize(math.erf)
      return x * (1 + erf(x / np.sqrt(2))) / 2
    case "gelu_tanh":
      inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
      return x * (1 + np.tanh(inner)) / 2


def reference_mlp(x, params, activation):
  """down(activation(gate(x)) * up(x)) with whatever parameters there are."""
  params = {name: np.asarray(p, np.float64) for name, p in params.items()}
  x = np.asarray(x, np.float64)
  hidden = x @ params["up_DF"] + params.get("up_bias_F", 0)
  if "gate_DF" in params:
    gate = x @ params["gate_DF"] + params.get("gate_bias_F", 0)
    hidden = reference_activation(gate, activation) * hidden
  else:
    hidden = reference_activation(hidden, activation)
  return hidden @ params["down_FD"] + params.get("down_bias_D", 0)


class MlpTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.random.normal(jax.random.key(1), (2, 5, _DIM))

  def test_equals_the_reference(self):
    module = make()
    out = module(self.x, norm=lambda x: 2 * x)
    np.testing.assert_allclose(
      out, reference(2 * self.x, module), rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters("float32", "bfloat16")
  def test_computes_in_the_dtype_of_its_input(self, param_dtype):
    module = make(param_dtype)
    out = module(self.x.astype(jnp.bfloat16), norm=lambda x: x)
    self.assertEqual(out.dtype, jnp.bfloat16)
    wanted = reference(self.x, module)
    # Three roundings to 8 bits on the way.
    np.testing.assert_allclose(
      out.astype(jnp.float32), wanted, atol=4 * 2**-8 * np.abs(wanted).max()
    )

  def test_gradient_equals_that_of_plain_operations(self):
    module = make()
    graphdef, state = nnx.split(module)
    params = nnx.to_pure_dict(state)

    def loss(params, x):
      module = nnx.merge(graphdef, nnx.State(params))
      return jnp.sum(jnp.sin(module(x, norm=jnp.tanh)))

    def plain_loss(params, x):
      x = jnp.tanh(x)
      hidden = jax.nn.silu(x @ params["gate_DF"]) * (x @ params["up_DF"])
      return jnp.sum(jnp.sin(hidden @ params["down_FD"]))

    got = jax.grad(loss, argnums=(0, 1))(params, self.x)
    wanted = jax.grad(plain_loss, argnums=(0, 1))(params, self.x)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      got,
      wanted,
    )

  @parameterized.parameters(
    {"activation": "gelu"},
    {"activation": "gelu_tanh", "gated": False, "bias": True},
    {"activation": "silu", "bias": True},
    {"activation": "gelu", "gated": False},
  )
  def test_options(self, **settings):
    graphdef, state = nnx.split(make(**settings))
    params = nnx.to_pure_dict(state)
    rng = np.random.default_rng(0)
    for name in params:
      if "bias" in name:
        self.assertTrue(settings.get("bias"))
        np.testing.assert_array_equal(params[name], 0)
        params[name] = jnp.asarray(rng.normal(size=params[name].shape))
    self.assertEqual("gate_DF" in params, settings.get("gated", True))
    has_bias = {"up_bias_F", "down_bias_D"} <= set(params)
    self.assertEqual(has_bias, settings.get("bias", False))

    def run(params):
      return nnx.merge(graphdef, nnx.State(params))(self.x, norm=jnp.tanh)

    wanted = reference_mlp(np.tanh(self.x), params, settings["activation"])
    np.testing.assert_allclose(run(params), wanted, rtol=1e-4, atol=2e-5)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(p))))(params)
    for name, leaf in gradient.items():
      self.assertGreater(float(jnp.abs(leaf).max()), 1e-3, name)

  def test_initial_scales(self):
    module = mlp.Mlp(
      config.MlpConfig(dim=256),
      dim=128,
      init_std=0.5,
      out_std=0.1,
      param_dtype="float32",
      rngs=nnx.Rngs(0),
    )
    # 32768 samples: the standard error of a deviation is 0.4 %.
    for name, std in (("gate_DF", 0.5), ("up_DF", 0.5), ("down_FD", 0.1)):
      param = getattr(module, name)[...]
      self.assertAlmostEqual(float(jnp.std(param)) / std, 1, delta=0.02)
      self.assertAlmostEqual(float(jnp.mean(param)) / std, 0, delta=0.03)
    self.assertGreater(
      float(jnp.abs(module.gate_DF[...] - module.up_DF[...]).max()), 0.1
    )


if __name__ == "__main__":
  absltest.main()
