"""Moments in 8 bits: their error, their layout, and training with them."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import sharding
from train import int8_moments


def _chance(shape, count=0):
  return int8_moments.chance(shape, count=jnp.asarray(count), seed=1)


class QuantizeTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_error_by_size(self, is_second):
    """Within the distance of two codes, which shrinks with the number."""
    rng = np.random.default_rng(0)
    # Four orders of magnitude in each block.
    x = rng.normal(size=(2, 16, 256)) * 10 ** rng.uniform(-4, 0, (2, 16, 256))
    x = np.asarray(x**2 if is_second else x, np.float32)
    packed = int8_moments.quantize(
      jnp.asarray(x),
      name="gate_DF",
      is_second=is_second,
      chance=_chance(x.shape),
    )
    self.assertEqual(packed.scales.shape, (2, 16, 8))
    self.assertEqual(packed.codes.dtype, jnp.uint8 if is_second else jnp.int8)
    got = int8_moments.dequantize(packed, name="gate_DF")
    largest = np.abs(x).reshape(2, 16, 8, 32).max(-1).repeat(32, -1)
    share = np.abs(x) / largest
    power, top = (4, 255) if is_second else (2, 127)
    # The slope of the code at the upper end of the distance.
    upper = share ** (1 / power) + 1 / top
    distance = power / top * upper ** (power - 1)
    self.assertLess(np.max(np.abs(got - x) / largest / distance), 1.0)
    # At least this much is told apart: 1 % of the largest by an eighth.
    is_clear = share > 0.01
    relative = np.abs(got - x)[is_clear] / np.abs(x)[is_clear]
    self.assertLess(relative.max(), 0.2)
    self.assertLess(np.sqrt(np.mean(relative**2)), 0.05)
    if is_second:
      self.assertGreater(np.min(got), 0.0)
    else:
      np.testing.assert_array_equal(
        np.sign(got)[share > 1e-4], np.sign(x)[share > 1e-4]
      )

  def test_is_right_on_average(self):
    x = jnp.linspace(-1.0, 1.0, 256).reshape(2, 128)
    for is_second in (False, True):
      value = jnp.abs(x) if is_second else x

      def once(count, value=value, is_second=is_second):
        packed = int8_moments.quantize(
          value,
          name="gate_DF",
          is_second=is_second,
          chance=_chance(x.shape, count),
        )
        return int8_moments.dequantize(packed, name="gate_DF")

      many = jax.jit(jax.vmap(once))(jnp.arange(4000))
      # A distance is at most 0.016, its mean over 4,000 a sixtieth of a half.
      np.testing.assert_allclose(jnp.mean(many, 0), value, atol=6e-4)

  def test_zeros(self):
    x = jnp.zeros((4, 128))
    for is_second in (False, True):
      packed = int8_moments.quantize(
        x, name="gate_DF", is_second=is_second, chance=_chance(x.shape)
      )
      got = int8_moments.dequantize(packed, name="gate_DF")
      np.testing.assert_array_equal(got, x)

  def test_chance_is_uniform_and_new_each_time(self):
    first, second = (np.asarray(_chance((64, 256), n)) for n in (0, 1))
    for numbers in (first, second):
      self.assertBetween(numbers.min(), 0.0, 1e-3)
      self.assertBetween(numbers.max(), 0.999, 0.99999999)
      self.assertAlmostEqual(numbers.mean(), 0.5, delta=0.01)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    self.assertLess(abs(correlation), 0.03)

  @parameterized.parameters(
    # The last dim of its own that FSDP leaves alone; 8 shards divide F.
    ("gate_DF", (2, 64, 14336), (2, 128)),
    ("down_FD", (2, 768, 64), (1, 32)),
    ("q_DNH", (2, 64, 4, 64), (3, 64)),
    ("o_NHD", (2, 4, 128, 64), (2, 128)),
    ("gate_EDF", (2, 8, 64, 768), (3, 32)),
    ("latent_DC", (2, 64, 512), (2, 128)),
    # Not in 8 bits.
    ("gate_DF", (2, 64, 100), None),
    ("scale_D", (2, 64), None),
    ("q_bias_NH", (2, 4, 64), None),
    ("embed_VD", (512, 64), None),
    ("head_DV", (64, 512), None),
    ("router_DE", (2, 64, 128), None),
  )
  def test_blocks(self, name, shape, expected):
    self.assertEqual(int8_moments.block_dim(name, shape), expected)


class WrapTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.params: dict[str, Any] = {
      "embed_VD": rng.normal(size=(64, 32)).astype(np.float32),
      "layer": {
        "gate_DF": rng.normal(size=(2, 32, 256)).astype(np.float32),
        "scale_D": rng.normal(size=(2, 32)).astype(np.float32),
      },
    }

  def grads(self, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      # A signal, and noise of which each row has its own size.
      lambda x: np.float32(
        0.3 * x + rng.normal(size=x.shape) * np.exp(x[..., :1])
      ),
      self.params,
    )

  def run_steps(self, transform, num_steps=30):
    """The last update and state, and all updates' sum."""
    update = jax.jit(transform.update)
    state = transform.init(self.params)
    total = jax.tree.map(np.zeros_like, self.params)
    for seed in range(num_steps):
      updates, state = update(self.grads(seed), state)
      total = jax.tree.map(np.add, total, updates)
    return total, state

  @parameterized.parameters(
    # By a sum over 30 updates; and relative to its norm.
    (True, False, 0.02),
    (False, True, 0.02),
    (True, True, 0.03),
  )
  def test_adam_is_followed(self, first, second, tolerance):
    adam = optax.scale_by_adam(b1=0.9, b2=0.95)
    want, _ = self.run_steps(adam)
    got, state = self.run_steps(
      int8_moments.wrap(adam, first=first, second=second)
    )
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
      error = np.linalg.norm(a - b) / np.linalg.norm(b)
      self.assertLess(error, tolerance)
    for name in ("embed_VD", "scale_D"):
      a, b = (t.get(name, t["layer"].get(name)) for t in (got, want))
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    packed = (state.inner.mu, state.inner.nu)
    for moment, is_packed in zip(packed, (first, second), strict=True):
      leaf = moment["layer"]["gate_DF"]
      self.assertEqual(isinstance(leaf, int8_moments.Quantized), is_packed)
      self.assertEqual(moment["embed_VD"].dtype, jnp.float32)

  def test_a_slow_second_moment_moves(self):
    """Nearest rounding would hold it: it falls by 0.1 % an update."""
    transform = int8_moments.wrap(
      optax.scale_by_adam(b2=0.999), first=False, second=True
    )
    state: Any = transform.init(self.params)
    update = jax.jit(transform.update)
    ones = jax.tree.map(np.ones_like, self.params)
    sparse = jax.tree.map(np.zeros_like, self.params)
    # One number of each block stays as it was, and so does the scale.
    sparse["layer"]["gate_DF"][..., ::32] = 0.0316
    for step in range(1000):
      _, state = update(sparse if step else ones, state)
    second = int8_moments.dequantize(
      state.inner.nu["layer"]["gate_DF"], name="gate_DF"
    )
    others = np.delete(second, np.s_[::32], axis=-1)
    np.testing.assert_allclose(others.mean(), 1e-3 * 0.999**999, rtol=0.03)

  @parameterized.parameters(
    lambda: optax.scale_by_lion(), lambda: optax.trace(0.9, nesterov=True)
  )
  def test_other_momenta(self, make):
    want, _ = self.run_steps(make(), 5)
    got, state = self.run_steps(
      int8_moments.wrap(make(), first=True, second=False), 5
    )
    is_packed = [
      isinstance(x, int8_moments.Quantized)
      for x in jax.tree.leaves(
        state, is_leaf=lambda x: isinstance(x, int8_moments.Quantized)
      )
    ]
    self.assertEqual(sum(is_packed), 1)
    a, b = got["layer"]["gate_DF"], want["layer"]["gate_DF"]
    self.assertLess(np.linalg.norm(a - b) / np.linalg.norm(b), 0.1)

  def test_a_mesh_changes_nothing(self):
    """State sharded as the parameters are, updates of the same bits."""
    transform = int8_moments.wrap(
      optax.scale_by_adam(), first=True, second=True
    )
    want, want_state = self.run_steps(transform, 3)
    mesh = sharding.make_mesh(
      sharding.MeshConfig(fsdp=4, tensor=2), jax.devices()
    )
    shapes = jax.eval_shape(transform.init, self.params)
    layout = sharding.param_shardings(shapes, mesh)
    with jax.set_mesh(mesh):
      state = jax.jit(transform.init, out_shardings=layout)(self.params)
      update = jax.jit(
        transform.update,
        out_shardings=(sharding.param_shardings(self.params, mesh), layout),
      )
      total = jax.tree.map(np.zeros_like, self.params)
      for seed in range(3):
        grads = jax.device_put(
          self.grads(seed), sharding.param_shardings(self.params, mesh)
        )
        updates, state = update(grads, state)
        total = jax.tree.map(np.add, total, updates)
    moment = state.inner.mu["layer"]["gate_DF"]
    for leaf in moment:
      self.assertEqual(leaf.addressable_shards[0].data.size * 8, leaf.size)
    np.testing.assert_array_equal(
      moment.codes, want_state.inner.mu["layer"]["gate_DF"].codes
    )
    for a, b in zip(*map(jax.tree.leaves, (total, want)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

  def test_bytes(self):
    shapes = {"gate_DF": jax.ShapeDtypeStruct((32, 4096, 14336), jnp.float32)}

    def size(transform):
      state = jax.eval_shape(transform.init, shapes)
      return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    adam = optax.scale_by_adam()
    packed = int8_moments.wrap(adam, first=True, second=True)
    num = 32 * 4096 * 14336
    self.assertAlmostEqual(size(adam) / num, 8.0, places=3)
    self.assertAlmostEqual(size(packed) / num, 2 * (1 + 4 / 128), places=3)


if __name__ == "__main__":
  absltest.main()
