"""Records that survive restarts, and progress that stops on NaN."""

import json
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
from tensorboardX.proto import event_pb2

from train import metrics


def _metrics(loss=1.0, grad_norm=1.0, param_norm=1.0):
  return {
    "loss": jnp.float32(loss),
    "grad_norm": jnp.float32(grad_norm),
    "param_norm": jnp.float32(param_norm),
    "learning_rate": jnp.float32(0.1),
    "tokens": jnp.float32(100),
  }


class MetricsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.file = self.workdir / metrics.METRICS_FILE

  def _writer(self, start_step=0):
    writer = metrics.Writer(self.workdir, start_step=start_step)
    self.addCleanup(writer.close)
    return writer

  def _progress(self, **settings):
    defaults: dict[str, Any] = {
      "start_step": 0,
      "total_steps": 10,
      "log_every": 2,
      "flops_per_token": lambda step: 5.0,
      "peak_flops": 1e6,
    }
    return metrics.Progress(self._writer(), **(defaults | settings))

  def test_writes_lines_and_events(self):
    writer = self._writer()
    writer.write(3, "train", {"loss": 2.5})
    writer.write(3, "sample/0", {"text": "한국어"})
    writer.close()
    self.assertEqual(
      metrics.read(self.workdir),
      [
        {"step": 3, "kind": "train", "loss": 2.5},
        {"step": 3, "kind": "sample/0", "text": "한국어"},
      ],
    )
    (events,) = (self.workdir / "tensorboard").iterdir()
    self.assertIn(b"train/loss", events.read_bytes())
    self.assertTrue(hasattr(event_pb2, "Event"))

  def test_resuming_drops_what_is_made_again(self):
    writer = self._writer()
    for step in range(1, 6):
      writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with self.file.open("a") as file:
      file.write('{"step": 6, "ki')  # Cut short by a crash.
    writer = self._writer(start_step=3)
    writer.write(4, "train", {"loss": 40.0})
    self.assertEqual(
      [r["loss"] for r in metrics.read(self.workdir)], [1, 2, 3, 40]
    )

  def test_no_records_yet(self):
    self.assertEmpty(metrics.read(self.workdir))

  def test_reports_one_step_late_and_every_so_often(self):
    progress = self._progress()
    progress.record(1, _metrics())
    progress.record(2, _metrics(loss=7.0))
    self.assertEmpty(metrics.read(self.workdir))
    progress.record(3, _metrics())
    (record,) = metrics.read(self.workdir)
    self.assertEqual((record["step"], record["loss"]), (2, 7.0))
    # 200 tokens in the window of two steps.
    self.assertAlmostEqual(
      record["tokens_per_second"] * 2 * record["step_seconds"], 200, places=3
    )
    self.assertAlmostEqual(
      record["mfu"], record["tokens_per_second"] * 5.0 / 1e6, places=9
    )

  def test_pauses_do_not_count(self):
    progress = self._progress()
    paused = progress.pause()
    progress.resume(paused - 1000.0)  # As if it had lasted 1000 s.
    progress.record(1, _metrics())
    progress.record(2, _metrics())
    progress.flush()
    (record,) = metrics.read(self.workdir)
    self.assertLess(record["step_seconds"], 0)

  @parameterized.parameters(
    {"loss": float("nan")},
    {"loss": float("inf")},
    {"grad_norm": float("nan")},
    {"param_norm": float("inf")},
  )
  def test_stops_on_what_is_not_finite(self, **values):
    progress = self._progress()
    progress.record(1, _metrics(**values))
    with self.assertRaisesRegex(metrics.NonFiniteError, "Step 1: loss="):
      progress.flush()
    self.assertEmpty(metrics.read(self.workdir))

  def test_no_mfu_where_the_peak_is_unknown(self):
    progress = self._progress(peak_flops=0.0, log_every=1)
    progress.record(1, _metrics())
    progress.flush()
    (record,) = metrics.read(self.workdir)
    self.assertNotIn("mfu", record)
    json.dumps(record)

  @parameterized.parameters(
    (0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")
  )
  def test_duration(self, seconds, text):
    self.assertEqual(metrics.duration(seconds), text)


if __name__ == "__main__":
  absltest.main()
