"""What is reported and when; rates without pauses; NaN stops the run."""

import json
import pathlib
import time
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from train import goodput
from train import metrics
from train import phases
from train import progress

Phase = phases.Phase


def _metrics(loss=1.0, grad_norm=1.0, param_norm=1.0, **more):
  values = {
    "loss": loss,
    "grad_norm": grad_norm,
    "param_norm": param_norm,
    "learning_rate": 0.1,
    "tokens": 100,
  }
  return {k: jnp.asarray(v, "float32") for k, v in (values | more).items()}


class ProgressTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.now = 1000.0
    for name in ("time", "perf_counter"):
      self.enter_context(mock.patch.object(time, name, lambda: self.now))
    self.clock = phases.Clock()
    self.clock.enter(Phase.OTHER)

  def _progress(self, **settings):
    writer = metrics.Writer(self.workdir, start_step=0)
    self.addCleanup(writer.close)
    ledger = goodput.Ledger(self.workdir, self.clock, start_step=0)
    self.addCleanup(ledger.close)
    defaults: dict[str, Any] = {
      "clock": self.clock,
      "ledger": ledger,
      "start_step": 0,
      "total_steps": 10,
      "log_every": 2,
      "flops_per_token": lambda step: 5.0,
      "peak_flops": 1e6,
    }
    return progress.Progress(writer, **(defaults | settings))

  def _records(self):
    return metrics.read(self.workdir)

  def test_reports_one_step_late_and_every_so_often(self):
    report = self._progress()
    self.now += 4
    report.record(1, _metrics())
    report.record(2, _metrics(loss=7.0))
    self.assertEmpty(self._records())
    report.record(3, _metrics())
    (record,) = self._records()
    self.assertEqual((record["step"], record["loss"]), (2, 7.0))
    # Two steps of 100 tokens in 4 s.
    self.assertEqual(record["step_seconds"], 2)
    self.assertEqual(record["tokens_per_second"], 50)
    self.assertEqual(record["mfu"], 50 * 5.0 / 1e6)
    self.assertEqual(record["tflops_per_device"], 50 * 5.0 / 1e12)
    self.assertIn("memory/host_peak", record)

  def test_phases_of_a_step(self):
    report = self._progress()
    for step in (1, 2):
      with self.clock.phase(Phase.DISPATCH):
        self.now += 1
      report.record(step, _metrics())
    with report.outside(Phase.CHECKPOINT):
      self.now += 1000
    for step in (3, 4):
      with self.clock.phase(Phase.DEVICE):
        self.now += 3
      report.record(step, _metrics())
    report.flush()
    first, second = self._records()
    # The steps before a pause are reported before it, without it.
    self.assertEqual(first["step_seconds"], 1)
    self.assertEqual(first["seconds/dispatch"], 1)
    self.assertEqual(first["goodput"], 1)
    self.assertNotIn("seconds/checkpoint", first)
    self.assertEqual(second["step_seconds"], 3)
    self.assertEqual(second["seconds/device"], 3)
    self.assertEqual(second["seconds/dispatch"], 0)
    self.assertEqual(second["seconds/checkpoint"], 500)
    self.assertAlmostEqual(second["goodput"], 8 / 1008)

  def test_waiting_for_data(self):
    report = self._progress(log_every=1)

    def batches():
      while True:
        self.now += 8
        yield "batch"

    self.assertEqual(report.fetch(batches()), "batch")
    report.record(1, _metrics())
    with self.assertLogs("absl", "INFO") as logs:
      report.flush()
    self.assertIn("waiting for data 100%", logs.output[0])
    (record,) = self._records()
    self.assertEqual(record["seconds/data_wait"], 8)

    # While the step before still computes, the wait is not lost.
    loss = mock.Mock(is_ready=lambda: False)
    report._pending = (2, {"loss": loss})
    report.fetch(batches())
    self.assertEqual(self.clock.seconds()[Phase.DATA_WAIT], 8)
    self.assertEqual(self.clock.seconds()[Phase.DEVICE], 8)

  def test_experts(self):
    report = self._progress(log_every=1)
    self.now += 1
    loads = {"router/min_load": 0.5, "router/max_load": 1.75}
    report.record(1, _metrics(**loads))
    with self.assertLogs("absl", "INFO") as logs:
      report.flush()
    self.assertIn("experts 0.50-1.75", logs.output[0])
    self.assertNotIn("waiting", logs.output[0])

  @parameterized.parameters(
    {"loss": float("nan")},
    {"loss": float("inf")},
    {"grad_norm": float("nan")},
    {"param_norm": float("inf")},
  )
  def test_stops_on_what_is_not_finite(self, **values):
    report = self._progress()
    report.record(1, _metrics(**values))
    with self.assertRaisesRegex(metrics.NonFiniteError, "Step 1: loss="):
      report.flush()
    self.assertEmpty(self._records())

  def test_no_mfu_where_the_peak_is_unknown(self):
    report = self._progress(peak_flops=0.0, log_every=1)
    self.now += 1
    report.record(1, _metrics())
    report.flush()
    (record,) = self._records()
    self.assertNotIn("mfu", record)
    json.dumps(record)


if __name__ == "__main__":
  absltest.main()
