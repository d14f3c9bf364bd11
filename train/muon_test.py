"""Muon against singular value decompositions, optax, and itself on a mesh."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import sharding
from train import muon


def _matrices(shape, seed=0):
  """With singular values from 1e-3 to 1."""
  rng = np.random.default_rng(seed)
  u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
  values = np.geomspace(1, 1e-3, min(shape[1:]))
  return u @ (values[:, None] * v), u @ v


class OrthogonalizeTest(parameterized.TestCase):
  @parameterized.parameters(
    ("newton_schulz", 5, 0.6), ("polar_express", 6, 0.1)
  )
  def test_singular_values_become_one(self, method, num_steps, error):
    steps = muon.coefficients(method, num_steps)
    for shape in [(2, 24, 24), (3, 40, 16), (1, 16, 40)]:
      x, exact = _matrices(shape)
      got = np.asarray(muon.orthogonalize(jnp.array(x), steps), np.float64)
      # In the singular vectors' own basis: those that are small enough are
      # allowed to be on their way still.
      overlap = np.einsum("lio,lio->l", got, exact) / min(shape[1:])
      np.testing.assert_allclose(overlap, 1, atol=error)
      values = np.linalg.svd(got, compute_uv=False)
      self.assertLess(values.max(), 1 + error)

  def test_polar_express_converges(self):
    x, exact = _matrices((2, 20, 30))
    got = muon.orthogonalize(
      jnp.array(x), muon.coefficients("polar_express", 12)
    )
    np.testing.assert_allclose(got, exact, atol=2e-2)

  def test_zeros_stay_zeros(self):
    steps = muon.coefficients("newton_schulz", 5)
    zeros = jnp.zeros((2, 4, 3), jnp.bfloat16)
    np.testing.assert_array_equal(muon.orthogonalize(zeros, steps), zeros)


class ScaleByMuonTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.params = {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in {
        "q_DNH": (3, 8, 2, 4),
        "o_NHD": (3, 2, 4, 8),
        "up_EDF": (3, 4, 8, 16),
      }.items()
    }

  def make(self, *, momentum):
    return muon.scale_by_muon(
      momentum=momentum,
      steps=muon.coefficients("newton_schulz", 5),
      rms=0.2,
      dtype="float32",
      momentum_dtype="float32",
    )

  def grads(self, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), self.params
    )

  def test_equals_optax(self):
    """But for the momentum, which theirs corrects for its beginning."""
    dims = {
      "q_DNH": optax.contrib.MuonDimensionNumbers((1,), (2, 3)),
      "o_NHD": optax.contrib.MuonDimensionNumbers((1, 2), (3,)),
      "up_EDF": optax.contrib.MuonDimensionNumbers((2,), (3,)),
    }
    theirs = optax.contrib.muon(
      1.0, beta=0.0, muon_weight_dimension_numbers=dims, consistent_rms=0.2
    )
    ours = self.make(momentum=0.0)
    grads = self.grads(0)
    got: Any = ours.update(grads, ours.init(self.params))[0]
    want: Any = theirs.update(grads, theirs.init(self.params), self.params)[0]
    for name in self.params:
      np.testing.assert_allclose(got[name], -want[name], atol=2e-4)

  def test_momentum_is_nesterovs(self):
    ours, plain = self.make(momentum=0.9), self.make(momentum=0.0)
    first, second = self.grads(0), self.grads(1)
    state = ours.init(self.params)
    _, state = ours.update(first, state)
    got: Any = ours.update(second, state)[0]
    momentum = jax.tree.map(lambda a, b: 0.9 * a + b, first, second)
    ahead = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, second)
    want: Any = plain.update(ahead, plain.init(self.params))[0]
    for name in self.params:
      np.testing.assert_allclose(got[name], want[name], atol=2e-4)

  @parameterized.parameters(
    sharding.MeshConfig(data=2, fsdp=4),
    sharding.MeshConfig(fsdp=2, tensor=2, expert=2),
  )
  def test_on_a_mesh(self, config):
    """The same, and no matrix is multiplied in pieces."""
    mesh = sharding.make_mesh(config, jax.devices())
    grads = self.grads(0)
    transform = self.make(momentum=0.9)
    state = transform.init(self.params)
    want: Any = transform.update(grads, state)[0]
    with jax.set_mesh(mesh):
      placed = jax.device_put(grads, sharding.param_shardings(grads, mesh))
      compiled = (
        jax.jit(lambda g, s: transform.update(g, s)[0])
        .lower(placed, state)
        .compile()
      )
      got = compiled(placed, state)
    for name in self.params:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)
      spec = sharding.param_spec(name, got[name].ndim)
      self.assertTrue(
        got[name].sharding.is_equivalent_to(
          jax.sharding.NamedSharding(mesh, spec), got[name].ndim
        )
      )
    text = compiled.as_text()
    assert text is not None
    self.assertNotIn("all-reduce(", text)


class AppliesTest(absltest.TestCase):
  def test_applies(self):
    for name, applies in {
      "q_DNH": True,
      "up_EDF": True,
      "embed_DM": True,
      "embed_VD": False,
      "head_DV": False,
      "router_DE": False,
      "q_conv_KHW": False,
      "scale_D": False,
      "q_bias_NH": False,
    }.items():
      self.assertEqual(muon.applies(name), applies, name)


if __name__ == "__main__":
  absltest.main()
