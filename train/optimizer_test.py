"""AdamW against its definition in numpy."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import int8_moments
from train import optimizer


def _params() -> dict[str, Any]:
  rng = np.random.default_rng(0)
  return {
    "embed_VD": rng.normal(size=(5, 4)).astype(np.float32),
    "group_0": {
      "gate_DF": rng.normal(size=(2, 4, 3)).astype(np.float32),
      "norm": {"scale_D": rng.normal(size=(2, 4)).astype(np.float32)},
    },
  }


class OptimizerTest(parameterized.TestCase):
  def test_only_matrices_decay(self):
    self.assertEqual(
      optimizer.decays(_params(), which="matrices"),
      {
        "embed_VD": True,
        "group_0": {"gate_DF": True, "norm": {"scale_D": False}},
      },
    )

  def test_what_counts_as_a_matrix(self):
    """The name says it: biases and scales of heads have two dims, too."""
    names = {
      "q_DNH": True,
      "gate_EDF": True,
      "router_DE": True,
      "position_PD": True,
      "q_bias_NH": False,
      "q_scale_NH": False,
      "down_bias_ED": False,
      "selection_bias_E": False,
      "sinks_N": False,
    }
    params = {name: np.zeros((2, 2, 2), np.float32) for name in names}
    self.assertEqual(optimizer.decays(params, which="matrices"), names)

  @parameterized.parameters("matrices", "all")
  def test_follows_the_definition(self, decay):
    config = optimizer.OptimizerConfig(
      weight_decay=0.3, decay=decay, clip_norm=1.0
    )
    rate = 0.05
    transform = optimizer.make(config, optax.constant_schedule(rate))
    params = _params()
    state = transform.init(params)
    expected = jax.tree.map(lambda x: x.astype(np.float64), params)
    first = jax.tree.map(np.zeros_like, expected)
    second = jax.tree.map(np.zeros_like, expected)
    rng = np.random.default_rng(1)
    mask = (
      optimizer.decays(params, which="matrices")
      if decay == "matrices"
      else jax.tree.map(lambda _: True, params)
    )
    for step in range(1, 6):
      grads = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), params
      )
      updates, state = transform.update(grads, state, params)
      params = optax.apply_updates(params, updates)

      norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
      self.assertGreater(norm, 1.0)  # So that clipping does something.
      clipped = jax.tree.map(lambda g, n=norm: g / n, grads)
      first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, clipped)
      second = jax.tree.map(
        lambda v, g: 0.95 * v + 0.05 * g**2, second, clipped
      )

      def update(p, m, v, decays, step=step):
        adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        return p - rate * (adam + 0.3 * decays * p)

      expected = jax.tree.map(update, expected, first, second, mask)
    for a, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

  def test_small_gradients_are_not_clipped(self):
    config = optimizer.OptimizerConfig(weight_decay=0.0)
    params = {"w_DF": jnp.zeros((2, 2))}
    transform = optimizer.make(config, optax.constant_schedule(1.0))
    unclipped = optimizer.make(
      optimizer.OptimizerConfig(weight_decay=0.0, clip_norm=None),
      optax.constant_schedule(1.0),
    )
    grads = {"w_DF": jnp.full((2, 2), 0.1)}
    got, _ = transform.update(grads, transform.init(params), params)
    want, _ = unclipped.update(grads, unclipped.init(params), params)
    np.testing.assert_array_equal(*jax.tree.leaves([got, want]))

  @parameterized.parameters(
    ("lion", lambda: optax.scale_by_lion(b1=0.9, b2=0.99)),
    (
      "adafactor",
      lambda: optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
      ),
    ),
  )
  def test_the_step_is_of_its_kind(self, kind, scale):
    rates: dict[str, Any] = {"b1": 0.0}
    if kind == "lion":
      rates = {"b1": 0.9, "b2": 0.99}
    config = optimizer.OptimizerConfig(
      kind=kind, weight_decay=0.0, clip_norm=None, **rates
    )
    params = _params()
    transform = optimizer.make(config, optax.constant_schedule(0.5))
    state, scale = transform.init(params), scale()
    scale_state = scale.init(params)
    for seed in range(3):
      rng = np.random.default_rng(seed)
      grads = jax.tree.map(
        lambda x, rng=rng: rng.normal(size=x.shape).astype(np.float32), params
      )
      got, state = transform.update(grads, state, params)
      steps, scale_state = scale.update(grads, scale_state, params)
      for a, b in zip(*map(jax.tree.leaves, (got, steps)), strict=True):
        np.testing.assert_allclose(a, -0.5 * b, rtol=1e-5)

  def test_muon_steps_on_matrices_and_adamw_on_the_rest(self):
    config = optimizer.OptimizerConfig(kind="muon", weight_decay=0.0)
    adamw = optimizer.OptimizerConfig(weight_decay=0.0)
    params = _params()
    grads = jax.tree.map(lambda x: x + 1, params)
    results: list[Any] = []
    for each in (config, adamw):
      transform = optimizer.make(each, optax.constant_schedule(1.0))
      updates, _ = transform.update(grads, transform.init(params), params)
      results.append(updates)
    got, want = results
    np.testing.assert_array_equal(got["embed_VD"], want["embed_VD"])
    np.testing.assert_array_equal(
      got["group_0"]["norm"]["scale_D"], want["group_0"]["norm"]["scale_D"]
    )
    # 0.2 sqrt(max(4, 3)) times singular values of about 1.
    for matrix in np.asarray(got["group_0"]["gate_DF"], np.float64):
      values = np.linalg.svd(matrix / (0.2 * 2), compute_uv=False)
      self.assertBetween(values.min(), 0.6, 1.3)
      self.assertBetween(values.max(), 0.6, 1.3)

  def test_schedule_free_is_optax_s(self):
    rate = 0.1
    config = optimizer.OptimizerConfig(
      kind="schedule_free", clip_norm=None, weight_decay=0.1, decay="all"
    )
    ours = optimizer.make(config, optax.constant_schedule(rate))
    theirs = optax.contrib.schedule_free_adamw(
      rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=0.1
    )
    results: list[Any] = []
    for transform in (ours, theirs):
      params = _params()
      state = transform.init(params)
      for _ in range(4):
        updates, state = transform.update(params, state, params)
        params = optax.apply_updates(params, updates)
      results.append(params)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6)

  @parameterized.parameters(("adamw", 2), ("lion", 1), ("muon", 1))
  def test_moments_in_8_bits(self, kind, num_packed):
    config = optimizer.OptimizerConfig(
      kind=kind,
      first_moment_dtype="int8",
      second_moment_dtype="int8" if kind == "adamw" else "float32",
    )
    params = {"gate_DF": np.ones((4, 64), np.float32)}
    state = optimizer.make(config, optax.constant_schedule(1.0)).init(params)
    leaves = jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, int8_moments.Quantized)
    )
    packed = [x for x in leaves if isinstance(x, int8_moments.Quantized)]
    self.assertLen(packed, num_packed)

  def test_groups_have_rates_and_decay_of_their_own(self):
    groups = (
      optimizer.GroupConfig(names=("*.gate_DF",), rate=0.5, weight_decay=0.3),
      optimizer.GroupConfig(names=("embed_*", "*"), rate=0.0),
    )
    config = optimizer.OptimizerConfig(weight_decay=0.1, groups=groups)
    params = _params()
    grads = jax.tree.map(jnp.zeros_like, params)
    transform = optimizer.make(config, optax.constant_schedule(1.0))
    updates: Any = transform.update(grads, transform.init(params), params)[0]
    np.testing.assert_allclose(
      updates["group_0"]["gate_DF"],
      -0.5 * 0.3 * params["group_0"]["gate_DF"],
      rtol=1e-6,
    )
    self.assertEqual(np.abs(updates["embed_VD"]).max(), 0)
    self.assertEqual(np.abs(updates["group_0"]["norm"]["scale_D"]).max(), 0)

  def test_a_group_of_nothing_is_refused(self):
    groups = (optimizer.GroupConfig(names=("*.gates_DF",)),)
    config = optimizer.OptimizerConfig(groups=groups)
    transform = optimizer.make(config, optax.constant_schedule(1.0))
    with self.assertRaisesRegex(
      ValueError, r"gates_DF.*names no param.*gate_DF"
    ):
      transform.init(_params())

  @parameterized.parameters("adamw", "lion", "muon", "adafactor")
  def test_the_first_moment_in_bfloat16(self, kind):
    config = optimizer.OptimizerConfig(kind=kind, first_moment_dtype="bfloat16")
    state = optimizer.make(config, optax.constant_schedule(1.0)).init(_params())
    dtypes = [
      leaf.dtype
      for path, leaf in jax.tree_util.tree_leaves_with_path(state)
      if any(getattr(key, "name", "") in ("mu", "trace", "ema") for key in path)
    ]
    self.assertLen(dtypes, 3)
    self.assertEqual(set(dtypes), {jnp.dtype("bfloat16")})

  @parameterized.parameters(
    ({"muon": optimizer.MuonConfig(num_steps=6)}, "optimizer.kind='adamw'"),
    ({"b1": 1.0}, "optimizer.b1=1.0"),
    ({"b2": -0.1}, "optimizer.b2=-0.1"),
    ({"eps": 0.0}, "optimizer.eps=0.0"),
    ({"clip_norm": 0.0}, "optimizer.clip_norm=0.0"),
    ({"weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
    ({"qk_clip": 0.0}, "optimizer.qk_clip=0.0"),
    ({"kind": "lion", "second_moment_dtype": "int8"}, "only adamw keeps"),
    ({"kind": "schedule_free", "b1": 0.0}, "optimizer.b1=0 with"),
    ({"kind": "schedule_free", "qk_clip": 9.0}, "leave qk_clip unset"),
    (
      {"kind": "schedule_free", "first_moment_dtype": "int8"},
      "which has no first moment",
    ),
    (
      {
        "kind": "schedule_free",
        "groups": (optimizer.GroupConfig(names=("*",), rate=0.0),),
      },
      "moves every parameter",
    ),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      optimizer.OptimizerConfig(**settings)


if __name__ == "__main__":
  absltest.main()
