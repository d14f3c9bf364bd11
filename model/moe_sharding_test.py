"""On 8 devices the mixture is that of one, in value and in all gradients."""

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
from model import sharding

_B, _T, _D, _E, _K, _F = 8, 4, 8, 8, 3, 6

_MESHES = {
  "expert": sharding.MeshConfig(fsdp=1, expert=8),
  "expert_fsdp": sharding.MeshConfig(fsdp=2, expert=4),
  "expert_data_tensor": sharding.MeshConfig(data=2, fsdp=1, expert=2, tensor=2),
  "data_fsdp": sharding.MeshConfig(data=2, fsdp=4),
}


@functools.cache
def make(**changes: Any):
  """A module with biases everywhere, and its parameters."""
  settings: dict[str, Any] = {
    "router": config.RouterConfig(
      score="sigmoid", scale=2.0, selection_bias=True, bias=True
    ),
    "activation": "silu",
    "bias": True,
    "shared_dim": 4,
    "shared_gate": True,
  } | changes
  exchange = settings.pop("exchange", "auto")
  implementation = settings.pop("implementation", "auto")
  module = moe.Moe(
    config.MoeConfig(num_experts=_E, experts_per_token=_K, dim=_F, **settings),
    dim=_D,
    init_std=0.5,
    out_std=0.5,
    param_dtype="float32",
    rngs=nnx.Rngs(0),
    exchange=exchange,
    implementation=implementation,
  )
  graphdef, state = nnx.split(module)
  params = nnx.to_pure_dict(state)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) / 2, params
  )
  return graphdef, params


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(graphdef, params, x, valid):
  def loss(params, x):
    module = nnx.merge(graphdef, nnx.State(params))
    out, stats = module(x, norm=jnp.tanh, valid=valid, capture=True)
    loss = jnp.sum(jnp.sin(out)) + router.load_balance_loss(stats)
    loss += router.load_balance_loss(stats, scope="sequence")
    return loss + router.z_loss(stats), (out, stats)

  gradients, result = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
  return result, gradients


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, x, valid):
  module = nnx.merge(graphdef, nnx.State(params))
  return module(x, norm=jnp.tanh, valid=valid)


def inputs():
  x = jax.random.normal(jax.random.key(2), (_B, _T, _D))
  # Devices have unequal numbers of valid tokens.
  return x, jnp.arange(_T) < jnp.array([[4], [1], [0], [4], [4], [2], [4], [4]])


@functools.cache
def on_one_device(**settings):
  graphdef, params = make(**settings)
  return jax.device_get(value_and_gradients(graphdef, params, *inputs()))


def on_mesh(mesh, **settings):
  mesh = sharding.make_mesh(_MESHES[mesh], jax.devices())
  graphdef, params = make(**settings)
  x, valid = inputs()
  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.param_shardings(params, mesh))
    x, valid = (
      jax.device_put(a, sharding.batch_sharding(mesh)) for a in (x, valid)
    )
    return jax.device_get(value_and_gradients(graphdef, params, x, valid))


def assert_equal(got, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5),
    got,
    wanted,
  )


class MoeShardingTest(parameterized.TestCase):
  @parameterized.parameters(*_MESHES)
  def test_dropless(self, mesh):
    assert_equal(on_mesh(mesh), on_one_device())

  @parameterized.parameters("expert_fsdp", "expert_data_tensor")
  def test_dropless_all_to_all(self, mesh):
    assert_equal(on_mesh(mesh, exchange="all_to_all"), on_one_device())

  @parameterized.parameters("gather", "all_to_all")
  def test_fewer_rows_than_devices(self, exchange):
    """As when a few prompts are continued."""
    graphdef, params = make(exchange=exchange)
    x, valid = (a[:3] for a in inputs())
    wanted = value_and_gradients(graphdef, params, x, valid)
    mesh = sharding.make_mesh(_MESHES["expert_fsdp"], jax.devices())
    with jax.set_mesh(mesh):
      params = jax.device_put(params, sharding.param_shardings(params, mesh))
      got = value_and_gradients(graphdef, params, x, valid)
    assert_equal(jax.device_get(got), jax.device_get(wanted))

  @parameterized.parameters(
    ("expert_fsdp", "gather", "blocks"),
    ("expert_data_tensor", "gather", "ragged"),
    ("expert_data_tensor", "all_to_all", "ragged"),
  )
  def test_int8(self, mesh, exchange, implementation):
    """In `blocks` on CPUs a row is rounded in pieces of the axis `tensor`."""
    graphdef, params = make(exchange=exchange, implementation=implementation)
    mesh = sharding.make_mesh(_MESHES[mesh], jax.devices())
    x, valid = inputs()
    stored, placed = dict(params), {}
    for name in ("gate_EDF", "up_EDF", "down_EFD"):
      stored[name] = linear.quantize(params[name], summed=(1,), stacked=1)
      specs = linear.specs(
        stored[name], sharding.param_spec(name, 3), summed=(1,)
      )
      placed[name] = jax.tree.map(
        lambda part, spec: jax.device_put(
          part, jax.sharding.NamedSharding(mesh, spec)
        ),
        stored[name],
        specs,
      )
    # Each device has its own experts' scales, of its own outputs.
    num_parts = mesh.shape["expert"] * mesh.shape["tensor"]
    scale = placed["up_EDF"].scale
    self.assertEqual(
      scale.addressable_shards[0].data.size * num_parts, scale.size
    )
    wanted = forward(graphdef, stored, x, valid)
    with jax.set_mesh(mesh):
      rest = {name: params[name] for name in params if name not in placed}
      rest = jax.device_put(rest, sharding.param_shardings(rest, mesh))
      got = forward(graphdef, rest | placed, x, valid)
    assert_equal(jax.device_get(got), jax.device_get(wanted))

  def test_enough_capacity(self):
    # With a capacity padding is not routed: compare where there are tokens.
    settings: dict[str, Any] = {"capacity_factor": _E / _K}
    got = on_mesh("expert_data_tensor", **settings)
    wanted = on_one_device(**settings)
    assert_equal(got, wanted)
    valid = np.asarray(inputs()[1])
    assert_equal(got[0][0][valid], on_one_device()[0][0][valid])

  def test_capacity_is_per_device(self):
    # Of 4 tokens an expert takes one per device.
    settings: dict[str, Any] = {"capacity_factor": 0.5}
    (_, stats), _ = on_mesh("expert", **settings)
    indices, valid = stats.routing.indices, np.asarray(inputs()[1])
    dropped = 0
    for row, is_valid in zip(indices, valid, strict=True):
      counts = np.bincount(row[is_valid].ravel(), minlength=_E)
      dropped += np.maximum(counts - 1, 0).sum()
    self.assertGreater(dropped, 10)
    self.assertEqual(stats.num_dropped, dropped)

  @parameterized.parameters("gather", "all_to_all")
  def test_all_tokens_to_one_device(self, exchange):
    graphdef, params = make(exchange=exchange)
    bias = jnp.where(jnp.arange(_E) < 4, 100.0, 0.0)
    params = params | {"selection_bias_E": bias}
    wanted = value_and_gradients(graphdef, params, *inputs())
    self.assertEqual(float(wanted[0][1].counts[4:].sum()), 0)
    mesh = sharding.make_mesh(_MESHES["expert_data_tensor"], jax.devices())
    with jax.set_mesh(mesh):
      params = jax.device_put(params, sharding.param_shardings(params, mesh))
      got = value_and_gradients(graphdef, params, *inputs())
    assert_equal(jax.device_get(got), jax.device_get(wanted))


if __name__ == "__main__":
  absltest.main()
