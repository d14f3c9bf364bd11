"""Reading a compiled program's text."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from train import hlo

_TEXT = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[4]}

%body (p: (s32[], f32[6,4])) -> (s32[], f32[6,4]) {
  %p = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[6,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[6,4]{1,0:T(8,128)S(1)} fusion(%x, /*index=1*/%i), kind=kLoop, \
calls=%inner, backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %t = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) tuple(%i, %y)
}

%inner (a: f32[6,4], b: s32[]) -> f32[6,4] {
  %a = f32[6,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = f32[6,4]{1,0} negate(%a)
}

%condition (p: (s32[], f32[6,4])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (q: f32[6,4]) -> f32[6,4] {
  %q = f32[6,4]{1,0:T(8,128)} parameter(0)
  %kernel = (bf16[2,8]{1,0:T(8,128)(2,1)}, f32[2]{0}) custom-call(%q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
    "block": 1
}}
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) tuple(%zero, %q)
  %loop = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) while(%start), \
condition=%condition, body=%body
  ROOT %out = f32[6,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


class ParseTest(absltest.TestCase):
  def test_computations_and_their_instructions(self):
    module = hlo.parse(_TEXT)
    self.assertEqual(module.entry, "main")
    self.assertEqual(
      [line.name for line in module.computations["main"]],
      ["q", "kernel", "zero", "start", "loop", "out"],
    )
    kernel = module.computations["main"][1]
    self.assertEqual(kernel.opcode, "custom-call")
    self.assertEqual(kernel.operands, ("q",))
    self.assertEqual([a.dims for a in kernel.arrays], [(2, 8), (2,)])
    self.assertEqual([a.num_bytes for a in kernel.arrays], [32, 8])

  def test_attributes(self):
    module = hlo.parse(_TEXT)
    fusion = module.computations["body"][3]
    self.assertEqual(fusion.operands, ("x", "i"))
    self.assertEqual(fusion.called("calls"), "inner")
    self.assertIsNone(fusion.called("body"))
    self.assertEqual(fusion.cycles, 50)
    self.assertFalse(fusion.arrays[0].in_hbm)
    self.assertTrue(module.computations["body"][2].arrays[0].in_hbm)
    self.assertTrue(module.computations["body"][-1].is_root)

  def test_loops_count_as_often_as_they_run(self):
    module = hlo.parse(_TEXT)
    self.assertEqual(list(module.executed()), [("main", 1), ("body", 7)])

  def test_what_a_compiler_writes(self):
    def run(x):
      return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, length=9)[0]

    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    text = jax.jit(run).lower(shape).compile().as_text()
    assert text is not None
    self.assertIn(9, [times for _, times in hlo.parse(text).executed()])

  def test_other_text(self):
    with self.assertRaisesRegex(ValueError, "no text of an HLO module"):
      hlo.parse("module @jit_f {}")


if __name__ == "__main__":
  absltest.main()
