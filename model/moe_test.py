import dataclasses
import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import config
from model import linear
from model import moe
from model import router

_B, _T, _D, _E, _K, _F = 4, 10, 12, 8, 3, 6

# One of each kind of router and of expert that is known.
_MODELS: dict[str, dict[str, Any]] = {
  "mixtral": {},
  "deepseek_v3": {
    "router": config.RouterConfig(
      score="sigmoid",
      scale=2.5,
      num_groups=4,
      groups_per_token=2,
      group_score="top2_sum",
      selection_bias=True,
    ),
    "shared_dim": 4,
  },
  "gpt_oss": {
    "router": config.RouterConfig(score="softmax_after_topk", bias=True),
    "activation": "clamped_swiglu",
    "bias": True,
  },
  "qwen3_next": {
    "router": config.RouterConfig(normalize=False),
    "shared_dim": 4,
    "shared_gate": True,
  },
}


def make(model="mixtral", **changes):
  settings: dict[str, Any] = _MODELS[model] | changes
  implementation = settings.pop("implementation", "auto")
  module = moe.Moe(
    config.MoeConfig(num_experts=_E, experts_per_token=_K, dim=_F, **settings),
    dim=_D,
    init_std=0.5,
    out_std=0.5,
    param_dtype="float32",
    rngs=nnx.Rngs(0),
    implementation=implementation,
  )
  # Biases begin at 0; here they matter, and the load is uneven.
  keys = iter(jax.random.split(jax.random.key(1), 5))
  for name in ("router_bias_E", "selection_bias_E"):
    if hasattr(module, name):
      setattr(module, name, nnx.Param(jax.random.normal(next(keys), (_E,))))
  for name in ("gate_bias_EF", "up_bias_EF", "down_bias_ED"):
    if hasattr(module, name):
      shape = getattr(module, name)[...].shape
      setattr(module, name, nnx.Param(jax.random.normal(next(keys), shape)))
  return nnx.split(module)


def every_expert(module, x, norm):
  """The definition: every expert on every token, times a weight or 0."""
  settings, normed = module.config, norm(x)
  logits = normed @ module.router_DE[...]
  if settings.router.bias:
    logits += module.router_bias_E[...]
  bias = None
  if settings.router.selection_bias:
    bias = module.selection_bias_E[...]
  routing = router.route(
    logits, settings.router, num_chosen=_K, selection_bias_E=bias
  )
  out = 0.0
  for e in range(_E):
    gate = normed @ module.gate_EDF[...][e]
    up = normed @ module.up_EDF[...][e]
    if settings.bias:
      gate += module.gate_bias_EF[...][e]
      up += module.up_bias_EF[...][e]
    if settings.activation == "clamped_swiglu":
      gate, up = jnp.minimum(gate, 7), jnp.clip(up, -7, 7)
      hidden = (up + 1) * (gate * jax.nn.sigmoid(gate * 1.702))
    else:
      hidden = jax.nn.silu(gate) * up
    y = hidden @ module.down_EFD[...][e]
    if settings.bias:
      y += module.down_bias_ED[...][e]
    chosen = routing.indices == e
    out += jnp.sum(chosen * routing.weights, axis=-1, keepdims=True) * y
  if settings.shared_dim:
    shared = module.shared(x, norm=norm)
    if settings.shared_gate:
      gate = normed @ module.shared_gate_D[...]
      shared *= jax.nn.sigmoid(gate)[..., None]
    out += shared
  valid = jnp.ones(x.shape[:2], bool)
  return out, router.summarize(routing, valid=valid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(graphdef, definition, params, x):
  """((output, stats), gradients of parameters and of x)."""

  def loss(params, x):
    module = nnx.merge(graphdef, params)
    norm = jnp.tanh
    if definition:
      out, stats = every_expert(module, x, norm)
    else:
      out, stats = module(x, norm=norm)
    loss = jnp.sum(jnp.sin(out)) + router.load_balance_loss(stats)
    loss += router.load_balance_loss(stats, scope="sequence")
    return loss + router.z_loss(stats), (out, stats)

  gradients, result = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
  return result, gradients


def double(x):
  """A norm that is exact in any dtype."""
  return 2 * x


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, x, valid):
  """Output and stats, each token's routing among them."""
  module = nnx.merge(graphdef, params)
  return module(x, norm=double, valid=valid, capture=True)


def inputs():
  return jax.random.normal(jax.random.key(2), (_B, _T, _D))


def assert_close(got, wanted, tolerance=3e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    got,
    wanted,
  )


class MoeTest(parameterized.TestCase):
  @parameterized.parameters(*_MODELS)
  def test_dropless_is_the_definition(self, model):
    graphdef, params = make(model)
    got = value_and_gradients(graphdef, False, params, inputs())
    wanted = value_and_gradients(graphdef, True, params, inputs())
    assert_close(got, wanted)
    stats, gradients = got[0][1], got[1][0]
    self.assertEqual(float(stats.num_dropped), 0)
    self.assertEqual(float(stats.num_tokens), _B * _T)
    self.assertEqual(float(jnp.sum(stats.counts)), _B * _T * _K)
    # A load worth the test.
    self.assertGreater(float(router.metrics(stats)["max_load"]), 1.2)
    if "selection_bias_E" in gradients:
      np.testing.assert_array_equal(gradients["selection_bias_E"][...], 0)

  @parameterized.parameters("mixtral", "gpt_oss")
  def test_enough_capacity_is_dropless(self, model):
    graphdef, params = make(model, capacity_factor=_E / _K)
    got = value_and_gradients(graphdef, False, params, inputs())
    wanted = value_and_gradients(graphdef, True, params, inputs())
    assert_close(got, wanted)

  def test_capacity_is_first_come_first_served(self):
    graphdef, params = make(capacity_factor=0.5)
    module, x = nnx.merge(graphdef, params), inputs()
    valid = jnp.arange(_T) < jnp.array([[_T], [3], [0], [_T]])
    out, stats = forward(graphdef, params, x, valid)
    routing = stats.routing
    # 0.5 of an even share: 4 * 10 tokens * 3 choices / 8 experts.
    capacity = 8
    taken, dropped = np.zeros(_E, int), 0
    keep = np.zeros((_B, _T, _E), bool)
    for b, t in np.argwhere(np.asarray(valid)):
      for expert in np.asarray(routing.indices[b, t]):
        if taken[expert] < capacity:
          taken[expert] += 1
          keep[b, t, expert] = True
        else:
          dropped += 1
    self.assertGreater(dropped, 5)
    self.assertEqual(float(stats.num_dropped), dropped)
    self.assertEqual(float(jnp.sum(stats.counts)), int(valid.sum()) * _K)
    wanted = 0.0
    for e in range(_E):
      hidden = jax.nn.silu(double(x) @ module.gate_EDF[...][e])
      hidden *= double(x) @ module.up_EDF[...][e]
      weight = jnp.sum((routing.indices == e) * routing.weights, axis=-1)
      weight *= keep[..., e]
      wanted += weight[..., None] * (hidden @ module.down_EFD[...][e])
    assert_close(out, wanted)

  def test_padding_is_routed_and_not_counted(self):
    graphdef, params = make("deepseek_v3")
    x = inputs()
    out, _ = forward(graphdef, params, x, jnp.ones((_B, _T), bool))
    valid = jnp.arange(_T) < jnp.array([[_T], [7], [0], [1]])
    masked, stats = forward(graphdef, params, x, valid)
    np.testing.assert_array_equal(masked, out)
    # The sums of a batch of the valid tokens alone.
    alone, wanted = forward(
      graphdef, params, x[np.asarray(valid)][None], jnp.ones((1, 18), bool)
    )
    self.assertEqual(wanted.routing.indices.shape, (1, 18, _K))
    assert_close(alone[0], out[np.asarray(valid)])
    per_row = {"num_sequences": 0.0, "sequence_balance": 0.0, "routing": None}
    self.assertEqual(float(stats.num_sequences), 3)
    assert_close(
      dataclasses.replace(stats, **per_row),
      dataclasses.replace(wanted, **per_row),
    )

  @parameterized.parameters(
    ("gpt_oss", "blocks", None),
    ("deepseek_v3", "ragged", None),
    ("mixtral", "batched", _E / _K),
  )
  def test_int8_is_the_dequantized_experts(self, model, implementation, factor):
    graphdef, params = make(
      model, capacity_factor=factor, implementation=implementation
    )
    stored, dequantized = nnx.clone(params), nnx.clone(params)
    for name in ("gate_EDF", "up_EDF", "down_EFD"):
      weight = linear.quantize(
        jnp.asarray(params[name][...]), summed=(1,), stacked=1
      )
      stored[name] = nnx.Param(weight)
      dequantized[name] = nnx.Param(
        jnp.swapaxes(weight.values * weight.scale[..., None], 1, 2)
      )
    valid = jnp.ones((_B, _T), bool)
    got, stats = forward(graphdef, stored, inputs(), valid)
    wanted, wanted_stats = forward(graphdef, dequantized, inputs(), valid)
    assert_close(stats, wanted_stats)
    if implementation != "blocks":
      assert_close(got, wanted)
      return
    # On CPUs activations are in 8 bits too, of a row's largest: of normal
    # numbers each product's result is off by about 1/100 of its size.
    error = jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted)
    self.assertBetween(float(error), 1e-4, 0.02)

  def test_router_is_float32_whatever_the_activations_are(self):
    graphdef, params = make()
    x = inputs().astype(jnp.bfloat16)
    out, stats = forward(graphdef, params, x, jnp.ones((_B, _T), bool))
    self.assertEqual(out.dtype, jnp.bfloat16)
    for leaf in (stats.routing.logits, stats.routing.weights, stats.probs):
      self.assertEqual(leaf.dtype, jnp.float32)
    wanted = np.asarray(double(x), np.float64) @ np.asarray(
      params["router_DE"][...]
    )
    np.testing.assert_allclose(stats.routing.logits, wanted, atol=1e-5)

  def test_nothing_is_as_large_as_tokens_by_experts_by_width(self):
    graphdef, params = make()
    limit = _B * _T * _E * min(_D, _F)

    def check(jaxpr):
      for eqn in jaxpr.eqns:
        for var in eqn.outvars:
          self.assertLess(var.aval.size, limit, eqn)
        for value in eqn.params.values():
          for inner in value if isinstance(value, tuple) else (value,):
            if hasattr(inner, "jaxpr"):
              inner = inner.jaxpr
            if hasattr(inner, "eqns"):
              check(inner)

    check(
      jax.make_jaxpr(value_and_gradients, static_argnums=(0, 1))(
        graphdef, False, params, inputs()
      ).jaxpr
    )

  def test_backward_pass_keeps_hidden_units_and_not_the_normed_input(self):
    graphdef, params = make()

    def run(params, x):
      out, _ = nnx.merge(graphdef, params)(x, norm=jnp.tanh)
      return jnp.sum(out)

    _, vjp = jax.vjp(run, params, inputs())
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.ndim >= 2]
    by_shape = [leaf.shape for leaf in kept]
    # x itself and nothing else of the model's width.
    wide = [s for s in by_shape if s[-1] == _D and s[0] != _E]
    self.assertEqual(wide, [(_B, _T, _D)])
    self.assertEqual(by_shape.count((_B * _T * _K + 16, _F)), 2)

  def test_no_shared_expert_of_clamped_swiglu(self):
    with self.assertRaisesRegex(ValueError, "clamped_swiglu"):
      make("gpt_oss", shared_dim=4)


if __name__ == "__main__":
  absltest.main()
