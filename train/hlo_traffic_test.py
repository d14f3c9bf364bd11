"""Collectives and memory traffic, in the forms in which TPUs schedule them."""

from absl.testing import absltest

from train import hlo
from train import hlo_traffic

# 1 KiB a row, so that sizes are told apart.
_SMALL = "f32[1,256]{1,0:T(8,128)}"
_LARGE = "f32[16,256]{1,0:T(8,128)}"
_FAST = "f32[16,256]{1,0:T(8,128)S(1)}"
_AXES = "replica_groups=mesh['data'=4,'fsdp'=16] {'fsdp'}"
_WORK = (
  f"  %work = {_LARGE} convolution(%large, %large), "
  'backend_config={"estimated_cycles":"1000"}\n'
)


def _module(body, *, computations=""):
  """A program whose entry has `body`, and two arrays to work on."""
  return hlo.parse(
    f"{computations}\n"
    "ENTRY %main (small: f32[1,256], large: f32[16,256]) -> f32[16,256] {\n"
    f"  %small = {_SMALL} parameter(0)\n"
    f"  %large = {_LARGE} parameter(1)\n"
    f"{body}"
    "}\n"
  )


class CollectivesTest(absltest.TestCase):
  def test_in_line_with_the_work(self):
    module = _module(
      f"  %gather = {_LARGE} all-gather(%small), {_AXES}, dimensions={{0}}\n"
      + _WORK
      + f"  %scatter = {_SMALL} reduce-scatter(%work), "
      "replica_groups=[4,16]<=[64], to_apply=%add\n"
      f"  %reduce = ({_SMALL}, {_SMALL}) all-reduce(%scatter, %small), "
      "replica_groups={{0,16,32,48},{1,17,33,49}}, to_apply=%add\n"
    )
    found = {one.kind: one for one in hlo_traffic.collectives(module)}
    self.assertEqual(
      {
        k: (one.group_size, one.count, one.num_bytes)
        for k, one in found.items()
      },
      {
        "all-gather": (16, 1, 16 * 1024),
        "reduce-scatter": (16, 1, 16 * 1024),
        "all-reduce": (4, 1, 2 * 1024),
      },
    )
    for one in found.values():
      self.assertEqual(one.asynchronous_bytes, 0)
      self.assertEqual(one.compute_cycles, 0)

  def test_started_and_waited_for(self):
    module = _module(
      f"  %start = ({_SMALL}, {_LARGE}) all-gather-start(%small), {_AXES}\n"
      + _WORK
      + f"  %done = {_LARGE} all-gather-done(%start)\n"
    )
    (one,) = hlo_traffic.collectives(module)
    self.assertEqual(one.kind, "all-gather")
    self.assertEqual(one.num_bytes, 16 * 1024)
    self.assertEqual(one.overlapped_bytes, 16 * 1024)
    self.assertEqual(one.compute_cycles, 1000)

  def test_started_and_waited_for_at_once(self):
    module = _module(
      f"  %start = ({_SMALL}, {_SMALL}) collective-permute-start(%small), "
      "source_target_pairs={{0,1},{1,0}}\n"
      f"  %done = {_SMALL} collective-permute-done(%start)\n" + _WORK
    )
    (one,) = hlo_traffic.collectives(module)
    self.assertEqual(one.kind, "collective-permute")
    self.assertEqual(one.group_size, 0)
    self.assertEqual(one.asynchronous_bytes, 1024)
    self.assertEqual(one.overlapped_bytes, 0)

  def test_on_the_sparse_core(self):
    called = (
      f"%called (p: f32[1,256]) -> f32[16,256] {{\n"
      f"  %p = {_SMALL} parameter(0)\n"
      f"  ROOT %gather = {_LARGE} all-gather(%p), {_AXES}\n"
      "}\n"
    )
    module = _module(
      "  %start = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), "
      'async_execution_thread="sparsecore", to_apply=%called\n'
      + _WORK
      + f"  %update = (({_SMALL}), {_LARGE}) call-update(%start, %small)\n"
      f"  %done = {_LARGE} call-done(%update)\n",
      computations=called,
    )
    (one,) = hlo_traffic.collectives(module)
    self.assertEqual(one.num_bytes, 16 * 1024)
    self.assertEqual(one.compute_cycles, 1000)

  def test_carried_along_by_fusions(self):
    called = "".join(
      f"%{name} (p: f32[1,256]) -> f32[16,256] {{\n"
      f"  %p = {_SMALL} parameter(0)\n"
      f"  ROOT %gather.{name} = {_LARGE} all-gather(%p), "
      f"channel_id=3, {_AXES}\n"
      "}\n"
      for name in ("first", "async_collective_fusion.2", "last")
    )
    module = _module(
      f"  %async-collective-start.1 = ({_SMALL}, {_LARGE}) fusion(%small), "
      "kind=kCustom, calls=%first\n"
      f"  %fusion.2 = {_LARGE} fusion(%large), kind=kOutput, "
      "calls=%async_collective_fusion.2, "
      'backend_config={"estimated_cycles":"300"}\n'
      f"  %async-collective-done.1 = {_LARGE} fusion(%fusion.2), "
      "kind=kCustom, calls=%last\n",
      computations=called,
    )
    (one,) = hlo_traffic.collectives(module)
    self.assertEqual(one.count, 1)
    self.assertEqual(one.num_bytes, 16 * 1024)
    self.assertEqual(one.compute_cycles, 300)

  def test_a_scatter_written_as_a_reduction(self):
    called = (
      f"%all-reduce-scatter.1 (p: f32[16,256]) -> f32[1,256] {{\n"
      f"  %p = {_LARGE} parameter(0)\n"
      f"  %reduce = {_LARGE} all-reduce(%p), {_AXES}, to_apply=%add\n"
      f"  ROOT %slice = {_SMALL} dynamic-slice(%reduce)\n"
      "}\n"
    )
    module = _module(
      f"  %fusion = {_SMALL} fusion(%large), kind=kCustom, "
      "calls=%all-reduce-scatter.1\n",
      computations=called,
    )
    (one,) = hlo_traffic.collectives(module)
    self.assertEqual(one.kind, "reduce-scatter")
    self.assertEqual(one.num_bytes, 16 * 1024)


class MemoryBytesTest(absltest.TestCase):
  def test_operands_and_results(self):
    module = _module(_WORK)
    self.assertEqual(hlo_traffic.memory_bytes(module), 3 * 16 * 1024)

  def test_fast_memory_is_free_but_for_the_copy(self):
    module = _module(
      f"  %start = ({_FAST}, {_LARGE}, u32[]{{:S(2)}}) copy-start(%large)\n"
      f"  %done = {_FAST} copy-done(%start)\n"
      f"  %out = {_FAST} negate(%done)\n"
    )
    self.assertEqual(hlo_traffic.memory_bytes(module), 16 * 1024)

  def test_a_layer_of_a_stack(self):
    called = (
      f"%take (p: f32[16,256], i: s32[]) -> f32[1,256] {{\n"
      f"  %p = {_LARGE} parameter(0)\n"
      "  %i = s32[] parameter(1)\n"
      f"  ROOT %slice = {_SMALL} dynamic-slice(%p, %i, %i)\n"
      "}\n"
      f"%put (p: f32[16,256], x: f32[1,256], i: s32[]) -> f32[16,256] {{\n"
      f"  %p = {_LARGE} parameter(0)\n"
      f"  %x = {_SMALL} parameter(1)\n"
      "  %i = s32[] parameter(2)\n"
      f"  ROOT %update = {_LARGE} dynamic-update-slice(%p, %x, %i, %i)\n"
      "}\n"
    )
    module = _module(
      "  %i = s32[]{:S(6)} constant(0)\n"
      f"  %layer = {_SMALL} fusion(%large, %i), kind=kLoop, calls=%take\n"
      f"  %stack = {_LARGE} fusion(%large, %layer, %i), kind=kLoop, "
      "calls=%put\n",
      computations=called,
    )
    self.assertEqual(hlo_traffic.memory_bytes(module), 4 * 1024)


if __name__ == "__main__":
  absltest.main()
