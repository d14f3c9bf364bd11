"""The decoder on 8 devices computes what it computes on one."""

import contextlib
import functools
import os
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import fixtures
from model import sharding
from model import transformer

_MESHES = (
  {"data": 8},
  {"fsdp": 8},
  {"data": 2, "fsdp": 4},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"fsdp": 2, "expert": 2, "tensor": 2},
  {"fsdp": 2, "context": 2, "tensor": 2},
  # 12 tokens are no 8 chunks: in their own order.
  {"fsdp": 2, "context": 4},
)
_CONFIG = fixtures.config()


@contextlib.contextmanager
def captured_stderr():
  """What the process writes to file descriptor 2: XLA's warnings too."""
  sys.stderr.flush()
  saved = os.dup(2)
  with tempfile.TemporaryFile() as file:
    lines = []
    os.dup2(file.fileno(), 2)
    try:
      yield lines
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      file.seek(0)
      lines += file.read().decode(errors="replace").splitlines()


def make_batch():
  return fixtures.batch(vocab_size=_CONFIG.vocab_size, rows=8, length=12)


def make_loss(remat="none"):
  return fixtures.make_loss(_CONFIG, fixtures.execution(remat=remat))


def init_on(mesh):
  _, shapes = transformer.abstract(_CONFIG, fixtures.execution())
  init = jax.jit(
    lambda: transformer.init(_CONFIG, fixtures.execution(), seed=0),
    out_shardings=sharding.param_shardings(shapes, mesh),
  )
  with jax.set_mesh(mesh):
    return init()


@functools.cache
def on_one_device():
  """The parameters, and the loss with its gradient."""
  params = init_on(mesh_of({}, jax.devices()[:1]))
  return params, jax.jit(jax.value_and_grad(make_loss()))(params, make_batch())


def mesh_of(axes, devices=None):
  devices = jax.devices() if devices is None else devices
  return sharding.make_mesh(sharding.MeshConfig(**axes), devices)


class TransformerShardingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)

  def test_stderr_is_captured(self):
    with captured_stderr() as lines:
      os.write(2, b"Involuntary\n")
    self.assertEqual(lines, ["Involuntary"])

  @parameterized.parameters(*[(axes,) for axes in _MESHES])
  def test_init_is_the_same_on_any_mesh(self, axes):
    many = init_on(mesh_of(axes))
    # The random bits are the same. The normal numbers made of them are so up
    # to the last bit: XLA rounds erf_inv as it happens to vectorise its loop.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7),
      many,
      on_one_device()[0],
    )
    q_DNH = many["group_0"]["block_0"]["mixer"]["q_DNH"]
    pieces = axes.get("fsdp", 1) * axes.get("tensor", 1)
    self.assertEqual(q_DNH.addressable_shards[0].data.size * pieces, q_DNH.size)

  @parameterized.parameters(
    *[(axes, "none") for axes in _MESHES],
    (_MESHES[3], "full"),
    (_MESHES[5], "full"),
  )
  def test_value_and_gradient_are_those_of_one_device(self, axes, remat):
    mesh, batch = mesh_of(axes), make_batch()
    params, wanted = on_one_device()
    shardings = sharding.param_shardings(params, mesh)
    placed = jax.device_put(jax.device_get(params), shardings)
    with jax.set_mesh(mesh), captured_stderr() as lines:
      step = jax.jit(
        jax.value_and_grad(make_loss(remat)), out_shardings=(None, shardings)
      )
      got = step(placed, sharding.put_batch(batch, mesh))
    warnings = [line for line in lines if "rematerialization" in line]
    self.assertEmpty(warnings, "\n".join(warnings))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max())
      ),
      jax.device_get(got[1]),
      jax.device_get(wanted[1]),
    )

  def test_decodes_where_sequences_are_cut(self):
    config = fixtures.config(num_layers=1)
    graphdef, _ = transformer.abstract(config, fixtures.execution())
    params = fixtures.params(config, fixtures.execution())
    tokens = make_batch()["tokens"][:4]

    @jax.jit
    def decode(params, tokens):
      model = transformer.bind(graphdef, params)
      cache = model.make_cache(rows=4, slots=12)
      hidden = []
      for first, last in ((0, 8), (8, 11), (11, 12)):
        output = model(tokens[:, first:last], cache=cache)
        hidden.append(output.hidden)
        cache = output.cache
      return jnp.concatenate(hidden, axis=1)

    with jax.set_mesh(mesh_of({"fsdp": 2, "context": 4})):
      got = decode(params, tokens)
    np.testing.assert_allclose(got, decode(params, tokens), atol=1e-5)


if __name__ == "__main__":
  absltest.main()
