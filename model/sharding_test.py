import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from model import config as model_config
from model import sharding
from model import transformer
from model.presets import kanana

_SPECS = """
embed_VD (128259, 4096) tensor,fsdp
final_norm.scale_D (4096) -
group_0.block_0.feed_forward.down_FD (32, 14336, 4096) -,tensor,fsdp
group_0.block_0.feed_forward.gate_DF (32, 4096, 14336) -,fsdp,tensor
group_0.block_0.feed_forward.up_DF (32, 4096, 14336) -,fsdp,tensor
group_0.block_0.feed_forward_norm.scale_D (32, 4096) -
group_0.block_0.mixer.k_DKH (32, 4096, 8, 128) -,fsdp,tensor,-
group_0.block_0.mixer.o_NHD (32, 32, 128, 4096) -,tensor,-,fsdp
group_0.block_0.mixer.q_DNH (32, 4096, 32, 128) -,fsdp,tensor,-
group_0.block_0.mixer.v_DKH (32, 4096, 8, 128) -,fsdp,tensor,-
group_0.block_0.mixer_norm.scale_D (32, 4096) -
head_DV (4096, 128259) fsdp,tensor
"""


def abstract(config):
  _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
  return shapes


def mesh(**axes):
  return sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices())


def describe(shapes, shardings):
  """A line for each parameter: name, shape, mesh axis of each dim."""
  lines = []
  for (path, leaf), placed in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(shardings),
    strict=True,
  ):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    shape = ", ".join(map(str, leaf.shape))
    axes = ",".join(axis or "-" for axis in placed.spec) or "-"
    lines.append(f"{name} ({shape}) {axes}")
  return "\n".join(lines)


class ShardingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)

  @parameterized.parameters(
    ({}, (1, 8, 1, 1, 1)),
    ({"data": 8}, (8, 1, 1, 1, 1)),
    ({"data": 2}, (2, 4, 1, 1, 1)),
    ({"tensor": 2}, (1, 4, 1, 1, 2)),
    ({"data": 2, "tensor": 2}, (2, 2, 1, 1, 2)),
    ({"data": 2, "fsdp": 4}, (2, 4, 1, 1, 1)),
    ({"fsdp": 2, "tensor": 4}, (1, 2, 1, 1, 4)),
    ({"context": 4}, (1, 2, 1, 4, 1)),
    ({"expert": 4}, (1, 2, 4, 1, 1)),
    ({"data": 2, "expert": 2, "tensor": 2}, (2, 1, 2, 1, 2)),
  )
  def test_mesh_sizes(self, axes, sizes):
    made = mesh(**axes)
    self.assertEqual(
      made.axis_names, ("data", "fsdp", "expert", "context", "tensor")
    )
    self.assertEqual(made.devices.shape, sizes)
    self.assertCountEqual(made.devices.flat, jax.devices())

  @parameterized.parameters(
    (
      {"data": 3, "fsdp": 2},
      r"mesh.data=3 \* mesh.fsdp=2 \* mesh.expert=1 \* mesh.context=1 \* "
      r"mesh.tensor=1 = 6, but there are 8 devices; make the product equal "
      r"the device count, or leave mesh.fsdp",
    ),
    ({"data": 3}, r"mesh.data=3 \* mesh.fsdp=2 .* = 6, but there are 8"),
    ({"data": 16}, r"mesh.data=16 \* mesh.fsdp=1 .* = 16, but there are 8"),
    ({"fsdp": 0}, r"mesh.fsdp=0 must be at least 1"),
    ({"data": 0}, r"mesh.data=0 must be at least 1"),
    ({"expert": 0}, r"mesh.expert=0 must be at least 1"),
    ({"context": 0}, r"mesh.context=0 must be at least 1"),
    ({"tensor": -1}, r"mesh.tensor=-1 must be at least 1"),
    ({"dcn_data": 0}, r"mesh.dcn_data=0 must be at least 1"),
    ({"dcn_data": 2}, r"mesh.data=1 must be a multiple of mesh.dcn_data=2.*"),
    ({"dcn_fsdp": 3}, r"mesh.fsdp=8 .* mesh.dcn_fsdp=3, the slices that it"),
  )
  def test_refuses_meshes(self, axes, message):
    with self.assertRaisesRegex(ValueError, message):
      mesh(**axes)

  def test_axes_over_slices(self):
    made = mesh(data=2, dcn_fsdp=2)
    ids = [[device.id for device in row.flat] for row in made.devices]
    self.assertEqual(ids, [[0, 1, 4, 5], [2, 3, 6, 7]])

  @parameterized.parameters(
    ({}, "mesh.data=1 must be a multiple of mesh.dcn_data=2"),
    ({"data": 2, "dcn_data": 1}, r"mesh.dcn_data=1 \* .* of slices, 2"),
    ({"data": 2, "dcn_fsdp": 4}, r"mesh.dcn_fsdp=4 must be the number of sl"),
  )
  def test_refuses_axes_over_slices(self, axes, message):
    devices = [
      types.SimpleNamespace(platform="tpu", slice_index=i // 4)
      for i in range(8)
    ]
    with self.assertRaisesRegex(ValueError, message):
      sharding.make_mesh(sharding.MeshConfig(**axes), devices)

  def test_specs_of_a_preset(self):
    shapes = abstract(kanana.v1_5_8b())
    # 128259 = 3 * 42753: the vocabulary divides over no even tensor axis.
    shardings = sharding.param_shardings(shapes, mesh(data=2))
    self.assertEqual(describe(shapes, shardings), _SPECS.strip())

  @parameterized.parameters(
    ("embed_VD", 2, P("tensor", "fsdp")),
    ("head_DV", 2, P("fsdp", "tensor")),
    ("q_DNH", 3, P("fsdp", "tensor", None)),
    ("q_DNH", 4, P(None, "fsdp", "tensor", None)),
    ("scale_D", 1, P()),
    ("scale_D", 2, P()),
    # Experts: a leading E, each expert's matrices as a dense model's.
    ("gate_EDF", 4, P(None, "expert", "fsdp", "tensor")),
    ("down_EFD", 3, P("expert", "tensor", "fsdp")),
    ("router_DE", 2, P("fsdp", "expert")),
    ("selection_bias_E", 2, P()),
    # Of two dims on one axis the first has it.
    ("kv_down_DC", 2, P("fsdp", None)),
    ("q_up_RNH", 3, P("fsdp", "tensor", None)),
    ("gates_NK", 3, P(None, "tensor", None)),
    # Biases and scales of heads lie where the heads do.
    ("q_bias_NH", 3, P(None, "tensor", None)),
    ("position_PD", 2, P(None, "fsdp")),
  )
  def test_param_spec(self, name, ndim, spec):
    self.assertEqual(sharding.param_spec(name, ndim), spec)

  @parameterized.parameters(
    ("embed_VD", "VD", True),
    ("q_DNH", "DNH", True),
    ("gate_EDF", "EDF", True),
    ("router_DE", "DE", True),
    ("scale_D", "D", False),
    ("q_scale_NH", "NH", False),
    ("q_bias_NH", "NH", False),
    ("gate_bias_EF", "EF", False),
    ("sinks_N", "N", False),
  )
  def test_letters_of_a_name(self, name, dims, is_matrix):
    self.assertEqual(sharding.param_dims(name), dims)
    self.assertEqual(sharding.is_matrix(name), is_matrix)

  @parameterized.parameters("scale", "q_dnh", "q_DXH", "_D", "D", "q_")
  def test_names_without_letters(self, name):
    with self.assertRaisesRegex(
      ValueError, f"Parameter '{name}' must end in the letters of its dims"
    ):
      sharding.param_dims(name)

  def test_refuses_what_does_not_divide(self):
    with self.assertRaisesRegex(
      ValueError,
      r"mesh.tensor=2 does not divide a dim of size 128259 in parameter "
      r".*embed_VD.* of shape \(128259, 4096\); use a mesh.tensor that does",
    ):
      sharding.param_shardings(abstract(kanana.v1_5_8b()), mesh(tensor=2))
    with self.assertRaisesRegex(
      ValueError, r"mesh.fsdp=8 does not divide a dim of size 12 .*q_DNH"
    ):
      sharding.param_shardings(
        {"q_DNH": jax.ShapeDtypeStruct((12, 8, 4), np.float32)}, mesh()
      )

  def test_optimizer_state_is_placed_like_parameters(self):
    shape = jax.ShapeDtypeStruct((16, 8), np.float32)
    counter = jax.ShapeDtypeStruct((), np.int32)
    tree = ({"mu": {"gate_DF": shape}, "count": counter}, {"step": counter})
    placed = sharding.param_shardings(tree, mesh(tensor=2))
    self.assertEqual(placed[0]["mu"]["gate_DF"].spec, P("fsdp", "tensor"))
    self.assertEqual(placed[0]["count"].spec, P())
    self.assertEqual(placed[1]["step"].spec, P())

  def test_with_shardings(self):
    shapes = {"gate_DF": jax.ShapeDtypeStruct((16, 8), np.float32)}
    shardings = sharding.param_shardings(shapes, mesh())
    placed = sharding.with_shardings(shapes, shardings)["gate_DF"]
    self.assertEqual(placed.sharding, shardings["gate_DF"])
    self.assertEqual((placed.shape, placed.dtype), ((16, 8), np.float32))

  def test_constrain_without_a_mesh_changes_nothing(self):
    x = jax.numpy.ones((8, 4, 16))
    self.assertIs(sharding.constrain(x, "BTD"), x)
    one = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one):
      self.assertIs(sharding.constrain(x, "BTD"), x)

  @parameterized.parameters(
    ("BTD", P(("data", "fsdp"))),
    ("BTNH", P(("data", "fsdp"), None, "tensor")),
    ("BTF", P(("data", "fsdp"), None, "tensor")),
  )
  def test_constrain(self, dims, spec):
    shape = {"B": 8, "T": 4, "D": 6, "N": 2, "H": 3, "F": 10}
    x = jax.numpy.ones([shape[d] for d in dims])
    made = mesh(data=2, tensor=2)
    with jax.set_mesh(made):
      placed = jax.jit(lambda x: sharding.constrain(x, dims))(x)
    wanted = jax.sharding.NamedSharding(made, spec)
    self.assertTrue(placed.sharding.is_equivalent_to(wanted, x.ndim))

  @parameterized.parameters(
    ({"data": 8}, 8),
    ({"fsdp": 8}, 8),
    ({"expert": 2}, 8),
    ({"tensor": 2}, 4),
    ({"tensor": 8}, 1),
  )
  def test_put_batch(self, axes, num_shards):
    made = mesh(**axes)
    self.assertEqual(sharding.num_batch_shards(made), num_shards)
    batch = {
      "tokens": np.arange(16 * 3).reshape(16, 3).astype(np.int32),
      "loss_weights": np.ones((16, 3), np.float32),
    }
    placed = sharding.put_batch(batch, made)
    for name, array in placed.items():
      np.testing.assert_array_equal(array, batch[name])
      self.assertEqual(array.dtype, batch[name].dtype)
      self.assertEqual(array.sharding, sharding.batch_sharding(made))
      rows = {shard.index[0].indices(16) for shard in array.addressable_shards}
      self.assertLen(rows, num_shards)
      self.assertEqual(
        array.addressable_shards[0].data.shape, (16 // num_shards, 3)
      )


if __name__ == "__main__":
  absltest.main()
