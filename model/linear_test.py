import ast
import functools
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from model import linear

_SIZES = {"B": 2, "T": 7, "S": 7, "D": 12, "F": 20, "N": 4, "K": 2, "H": 6}
_SIZES |= {"C": 5, "R": 3, "M": 12}
_MODULES = ("attention", "gated_delta_net", "mla", "mlp", "mtp")
_SPECS = (
  "BSC,CNH->BSNH",
  "BSD,DC->BSC",
  "BSD,DH->BSH",
  "BSD,DKH->BSKH",
  "BTD,DF->BTF",
  "BTD,DKH->BTKH",
  "BTD,DM->BTM",
  "BTD,DN->BTN",
  "BTD,DNH->BTNH",
  "BTD,DR->BTR",
  "BTF,FD->BTD",
  "BTNC,CNH->BTNH",
  "BTNH,CNH->BTNC",
  "BTNH,NHD->BTD",
  "BTR,RNH->BTNH",
)


def plain(spec, x, weight):
  return jnp.einsum(spec, x, weight.astype(x.dtype))


def operands(spec, dtype, param_dtype):
  rng = np.random.default_rng(0)
  all_dims = spec.replace("->", ",").split(",")
  for dims, kind in zip(all_dims, (dtype, param_dtype, dtype), strict=True):
    yield jnp.asarray(rng.normal(size=[_SIZES[d] for d in dims]), kind)


def specs_in(path):
  """The specs that a module gives to linear.project."""
  for node in ast.walk(ast.parse(path.read_text())):
    if (
      isinstance(node, ast.Call) and ast.unparse(node.func) == "linear.project"
    ):
      yield ast.literal_eval(node.args[0])


class LinearTest(parameterized.TestCase):
  def test_specs_are_those_of_the_models(self):
    folder = pathlib.Path(linear.__file__).parent
    used = set()
    for name in _MODULES:
      used.update(specs_in(folder / f"{name}.py"))
    self.assertEqual(used, set(_SPECS))

  @parameterized.product(
    spec=_SPECS,
    dtypes=(("float32", "float32"), ("bfloat16", "float32")),
  )
  def test_equals_automatic_differentiation(self, spec, dtypes):
    x, weight, cotangent = operands(spec, *dtypes)
    value, vjp = jax.vjp(lambda x, w: linear.project(spec, x, w), x, weight)
    wanted, wanted_vjp = jax.vjp(lambda x, w: plain(spec, x, w), x, weight)
    pairs = zip(
      (value, *vjp(cotangent)), (wanted, *wanted_vjp(cotangent)), strict=True
    )
    for got, want in pairs:
      self.assertEqual(got.dtype, want.dtype)
      # The sums are the same, in another order: float32 noise, and in
      # bfloat16 at most a step of the rounded result (8 bits).
      tolerance = 1e-5 if dtypes[0] == "float32" else 2**-7
      want = want.astype(jnp.float32)
      np.testing.assert_allclose(
        got.astype(jnp.float32),
        want,
        rtol=tolerance,
        atol=tolerance * float(jnp.abs(want).max()),
      )

  def test_a_weight_is_not_copied(self):
    spec, (length, heads, width, dim) = "BTNH,NHD->BTD", (4, 16, 32, 64)
    x = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)
    weight = jax.ShapeDtypeStruct((heads, width, dim), jnp.float32)

    def temp_bytes(product):
      lowered = jax.jit(functools.partial(product, spec)).lower(x, weight)
      memory = lowered.compile().memory_analysis()
      assert memory is not None
      return memory.temp_size_in_bytes

    num_bytes = 4 * heads * width * dim
    self.assertGreaterEqual(temp_bytes(plain), num_bytes)
    self.assertLess(temp_bytes(linear.project), num_bytes)

  def test_weight_gradient_has_no_transpose(self):
    spec = "BTD,DF->BTF"
    x, weight, cotangent = operands(spec, "float32", "float32")

    def gradient(product):
      loss = lambda w: jnp.sum(product(spec, x, w) * cotangent)
      return str(jax.make_jaxpr(jax.grad(loss))(weight))

    self.assertIn("transpose", gradient(plain))
    self.assertNotIn("transpose", gradient(linear.project))

  @parameterized.product(
    spec=("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF"),
    on_cpu=(True, False),
    num_rows=(1, 14),
  )
  def test_int8(self, spec, on_cpu, num_rows):
    x, weight, _ = operands(spec, "float32", "float32")
    x = x.reshape(-1, *x.shape[2:])[:num_rows, None]
    x_dims, weight_dims = spec.split("->")[0].split(",")
    summed = tuple(i for i, dim in enumerate(weight_dims) if dim in x_dims)
    stored = linear.quantize(weight, summed=summed)
    self.assertEqual(stored.values.dtype, jnp.int8)
    with mock.patch.object(linear, "_is_on_cpu", lambda: on_cpu):
      got = linear.project(spec, x, stored)
      exact = linear.project_float32(spec, x, stored)
    want = plain(spec, x, weight)
    np.testing.assert_array_equal(got, exact)
    # Each factor is off by at most half a step of 1/127 of the largest.
    error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    self.assertLess(error, 0.015)

  @parameterized.product(
    spec=("BTNC,CNH->BTNH", "BTNH,CNH->BTNC"),
    on_cpu=(True, False),
    num_rows=(1, 14),
  )
  def test_int8_by_head(self, spec, on_cpu, num_rows):
    x, weight, _ = operands(spec, "float32", "float32")
    x = x.reshape(-1, *x.shape[2:])[:num_rows, None]
    stored = linear.quantize(weight, summed=(0,))
    self.assertEqual(stored.scale.shape, weight.shape[1:])
    with mock.patch.object(linear, "_is_on_cpu", lambda: on_cpu):
      got = linear.project(spec, x, stored)
    want = plain(spec, x, weight)
    error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    self.assertLess(error, 0.015)
    if not on_cpu:
      dequantized = jnp.moveaxis(stored.values * stored.scale[..., None], -1, 0)
      np.testing.assert_allclose(
        got, plain(spec, x, dequantized), rtol=1e-5, atol=1e-5
      )

  def test_int8_keeps_rows_apart(self):
    spec = "BTD,DF->BTF"
    x, weight, _ = operands(spec, "float32", "float32")
    stored = linear.quantize(weight, summed=(0,))
    alone = linear.project(spec, x[:1], stored)
    x = x.at[1, 0].set(jnp.nan).at[1, 1].set(jnp.inf).at[1, 2].set(0)
    got = linear.project(spec, x, stored)
    np.testing.assert_array_equal(got[:1], alone)
    self.assertFalse(np.isfinite(got[1, :2]).any())
    np.testing.assert_array_equal(got[1, 2], 0)

  def test_int8_of_layers_and_rows(self):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    stacked = linear.quantize(weight, summed=(2,), stacked=1)
    table = linear.quantize(weight[1], summed=(1,))
    np.testing.assert_array_equal(stacked.values[1], table.values)
    index = jnp.array([[4, 0], [2, 2]])
    np.testing.assert_allclose(
      linear.take(table, index, "float32"), weight[1][index], atol=0.02
    )
    np.testing.assert_array_equal(
      linear.take(weight[1], index, "bfloat16"),
      weight[1].astype("bfloat16")[index],
    )

  def test_int8_lies_where_the_array_would(self):
    weight = jnp.zeros((2, 4, 6), jnp.bfloat16)
    spec = P("expert", "fsdp", "tensor")
    self.assertEqual(linear.specs(weight, spec, summed=(1,)), spec)
    stored = linear.quantize(weight, summed=(1,), stacked=1)
    specs = linear.specs(stored, spec, summed=(1,))
    self.assertEqual(specs.values, P("expert", "tensor", "fsdp"))
    self.assertEqual(specs.scale, P("expert", "tensor"))
    self.assertIs(linear.cast(stored, "float32"), stored)
    cast = linear.cast(weight, "float32")
    assert isinstance(cast, jax.Array)
    self.assertEqual(cast.dtype, "float32")

  def test_to_quantize_makes_no_float32_copy(self):
    """The weights of all experts of a layer are gigabytes."""
    shape = (8, 64, 32)
    for dtype in ("bfloat16", "float32"):
      lowered = jax.jit(
        functools.partial(linear.quantize, summed=(1,), stacked=1)
      ).lower(jax.ShapeDtypeStruct(shape, dtype))
      memory = lowered.compile().memory_analysis()
      assert memory is not None
      self.assertLessEqual(memory.temp_size_in_bytes, 2 * 8 * 64 * 32)

  @parameterized.parameters("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF")
  def test_pieces(self, spec):
    x, weight, _ = operands(spec, "float32", "float32")
    pieces = linear.split(weight, 2)
    for project in (linear.project, linear.project_float32):
      np.testing.assert_allclose(
        project(spec, x, pieces), project(spec, x, weight), rtol=1e-5, atol=1e-5
      )

  @parameterized.parameters("bfloat16", "float32")
  def test_one_row_is_as_one_of_many(self, dtype):
    spec = "BTD,DF->BTF"
    x, weight, _ = operands(spec, dtype, "float32")
    one = linear.project(spec, x[:1, :1], weight)
    np.testing.assert_allclose(
      one.astype(jnp.float32),
      linear.project(spec, x, weight)[:1, :1].astype(jnp.float32),
      rtol=2**-7,
    )
    loss = lambda x: jnp.sum(linear.project(spec, x, weight))
    np.testing.assert_allclose(
      jax.grad(loss)(x[:1, :1]).astype(jnp.float32),
      jax.grad(loss)(x)[:1, :1].astype(jnp.float32),
      rtol=2**-7,
    )


if __name__ == "__main__":
  absltest.main()
