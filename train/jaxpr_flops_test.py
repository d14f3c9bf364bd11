"""FLOPs of traced programs against what they must be."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model import flops
from model import sharding
from model.kernels import attention_splash
from train import fixtures
from train import jaxpr_flops
from train import program


def _count(function, *shapes, dtype=jnp.float32):
  arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return jaxpr_flops.count(jax.make_jaxpr(function)(*arguments))


class CountTest(parameterized.TestCase):
  def test_product(self):
    def product(a, b):
      return jnp.einsum("bij,bjk->bik", a, b)

    self.assertEqual(_count(product, (7, 3, 5), (7, 5, 11)), 2 * 7 * 3 * 5 * 11)

  def test_scan_counts_as_often_as_it_runs(self):
    def run(x, weights):
      return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    once = 2 * 4 * 8 * 8
    self.assertEqual(_count(run, (4, 8), (6, 8, 8)), 6 * once)
    # The backward pass: two products for each.
    gradient = jax.grad(lambda x, w: jnp.sum(run(x, w)), argnums=(0, 1))
    self.assertEqual(_count(gradient, (4, 8), (6, 8, 8)), 3 * 6 * once)

  def test_recomputation_counts(self):
    def block(x, w):
      return jnp.sin(jnp.sin(x @ w) @ w)

    def loss(x, w):
      return jnp.sum(jax.checkpoint(block)(x, w))

    # Forward 2, again 1 (the last product is not needed), backward 4.
    once = 2 * 4 * 8 * 8
    gradient = jax.grad(loss, argnums=(0, 1))
    self.assertEqual(_count(gradient, (4, 8), (8, 8)), 8 * once)

  def test_branches_count_as_the_costliest(self):
    def either(x, w):
      return jax.lax.cond(jnp.sum(x) > 0, lambda: x @ w, lambda: (x @ w) @ w)

    self.assertEqual(_count(either, (4, 8), (8, 8)), 2 * 2 * 4 * 8 * 8)

  def test_shard_map_counts_for_all_devices(self):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    product = jax.shard_map(
      jnp.dot, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")
    )
    self.assertEqual(_count(product, (16, 8), (8, 4)), 2 * 16 * 8 * 4)

  def test_ragged_products(self):
    sizes = jnp.full((3,), 5, jnp.int32)

    def experts(x, w):
      return jax.lax.ragged_dot(x, w, sizes)

    once = 2 * 15 * 8 * 4
    self.assertEqual(_count(experts, (15, 8), (3, 8, 4)), once)
    gradient = jax.grad(
      lambda x, w: jnp.sum(experts(x, w) ** 2), argnums=(0, 1)
    )
    self.assertEqual(_count(gradient, (15, 8), (3, 8, 4)), 3 * once)

  @parameterized.parameters(
    # Length, window, pairs of blocks of 512 that count forward, and backward,
    # where a block of keys is up to 2048 wide and a window saves nothing.
    (512, None, 1, 1),
    (4096, None, 36, 48),
    (4096, 512, 16, 48),
  )
  def test_splash_attention(self, length, window, forward, backward):
    def attend(q, k, v):
      return attention_splash.attend(
        q,
        k,
        v,
        segment_ids=jnp.ones(q.shape[:2], jnp.int32),
        scale=1.0,
        window=window,
        softcap=None,
        sinks_N=None,
        interpret=True,
      )

    shapes = (2, length, 4, 64), (2, length, 2, 64), (2, length, 2, 64)
    block = 2 * 2 * 4 * 512 * 512 * 64
    counted = _count(attend, *shapes)
    self.assertEqual(counted, 2 * forward * block)
    gradient = jax.grad(lambda *args: jnp.sum(attend(*args)), argnums=(0, 1, 2))
    counted = _count(gradient, *shapes)
    row_sums = 2 * 2 * 4 * length * 64
    products = (2 * forward + 5 * backward) * block
    self.assertEqual(counted, products + row_sums)


class TrainStepTest(absltest.TestCase):
  def test_a_step_costs_what_its_model_does(self):
    run = fixtures.run_config()
    mesh = sharding.make_mesh(run.mesh, jax.devices())
    with jax.set_mesh(mesh):
      (traced,) = program.trace(run, mesh).train_steps.values()
    tokens = run.run.batch_size * run.run.seq_len
    needed = tokens * flops.train_per_token(run.model, seq_len=run.run.seq_len)
    # Attention above the diagonal and scores that are computed again.
    counted = jaxpr_flops.count(traced.jaxpr)
    self.assertBetween(counted, needed, 1.35 * needed)


if __name__ == "__main__":
  absltest.main()
