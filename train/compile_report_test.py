"""What is said of a compiled step; compiling itself is compile_test's."""

import dataclasses
import importlib.util
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from train import compile_report
from train import fixtures
from train import hlo_traffic
from train import topology

_GIB = 2**30


def _report(**settings):
  config = fixtures.run_config()
  report = compile_report.Report(
    config=config,
    topology=topology.parse("v6e-256"),
    shape=(256, 32),
    mesh={"data": 4, "fsdp": 64},
    memory=compile_report.Memory(
      capacity=31.24 * _GIB,
      arguments=6 * _GIB,
      outputs=6 * _GIB,
      aliased=5 * _GIB,
      temporaries=10 * _GIB,
      program=0,
      in_use=17 * _GIB,
      refusal="",
    ),
    model_flops=3e12,
    counted_flops=4e12,
    work=compile_report.Work(
      memory_bytes=100 * _GIB,
      compute_seconds=0.5,
      num_kernels=3,
      unknown_loops=0,
      collectives=(
        hlo_traffic.Collective(
          kind="all-gather",
          group_size=64,
          count=96,
          num_bytes=8 * _GIB,
          asynchronous_bytes=8 * _GIB,
          overlapped_bytes=6 * _GIB,
          compute_cycles=1.75e8,
        ),
        hlo_traffic.Collective(
          kind="collective-permute",
          group_size=0,
          count=1,
          num_bytes=_GIB,
          asynchronous_bytes=0,
          overlapped_bytes=0,
          compute_cycles=0,
        ),
      ),
    ),
    versions={"jax": "1", "libtpu": "2"},
  )
  return dataclasses.replace(report, **settings)


class TextTest(parameterized.TestCase):
  def test_figures(self):
    lines = {
      line.partition("  ")[0]
      if not line.startswith(" ")
      else line.split()[0]: (" ".join(line.split()))
      for line in compile_report.to_text(_report()).splitlines()
      if line
    }
    self.assertEqual(lines["mesh"], "mesh data 4 x fsdp 64")
    self.assertEqual(
      lines["batch"], "batch 256 x 32 tokens, 32 per device, in 1 piece(s)"
    )
    self.assertEqual(lines["in"], "in use 17.00 of 31.24: fits, 14.24 to spare")
    self.assertEqual(
      lines["counted"],
      "counted 4.0 TFLOP, 1.33 of the model's: 4 ms at the peak",
    )
    self.assertEqual(lines["all-gather"], "all-gather 64 96 8.00 100% 75% 100")
    self.assertEqual(
      lines["collective-permute"], "collective-permute pairs 1 1.00 0% 0% 0"
    )

  def test_what_does_not_fit(self):
    memory = dataclasses.replace(
      _report().memory, in_use=40 * _GIB, refusal="RESOURCE_EXHAUSTED: E1000"
    )
    report = _report(memory=memory, work=None)
    text = compile_report.to_text(report)
    self.assertIn("40.00 of  31.24: DOES NOT FIT, at least 8.76 too much", text)
    self.assertIn("the compiler: RESOURCE_EXHAUSTED", text)
    self.assertNotIn("Collectives", text)
    self.assertFalse(compile_report.to_json(report)["memory"]["fits"])

  @parameterized.parameters(
    ("E1000: HLO temporaries (19.50G) exceeds available HBM (15.75G).", 19.5),
    ("Ran out of memory in memory space hbm. Used 40.00G of 31.24G hbm.", 40),
    ("Ran out of memory.", 31.24),
  )
  def test_what_a_refused_program_needs(self, message, wanted):
    memory = compile_report.refused(
      f"RESOURCE_EXHAUSTED: {message}", 31.24 * _GIB
    )
    self.assertFalse(memory.fits)
    self.assertAlmostEqual(memory.in_use / _GIB, wanted)

  def test_other_refusals_are_errors(self):
    with self.assertRaisesRegex(ValueError, "No such.*compiler_options.py"):
      compile_report.refused("INVALID_ARGUMENT: No such compile option", 1)

  def test_json(self):
    values = json.loads(json.dumps(compile_report.to_json(_report())))
    self.assertEqual(values["mesh"], {"data": 4, "fsdp": 64})
    self.assertTrue(values["memory"]["fits"])
    gather, _ = values["work"]["collectives"]
    self.assertAlmostEqual(gather["compute_seconds"], 0.1)
    self.assertEqual(values["config"]["run"]["seq_len"], fixtures.SEQ_LEN)


class WithoutLibtpuTest(absltest.TestCase):
  def test_says_how_to_get_it(self):
    with (
      mock.patch.object(importlib.util, "find_spec", return_value=None),
      self.assertRaisesRegex(ValueError, "v6e-256 needs libtpu.*--config=tpu"),
    ):
      next(
        compile_report.compile_steps(
          fixtures.run_config(), topology.parse("v6e-256")
        )
      )


if __name__ == "__main__":
  absltest.main()
