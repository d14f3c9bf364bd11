"""The benchmark's numbers hang together."""

import json
import pathlib

from absl.testing import absltest

from train import fixtures
from train import measure


class MeasureTest(absltest.TestCase):
  def test_one_line_that_adds_up(self):
    trace = pathlib.Path(self.create_tempdir().full_path)
    run = fixtures.run_config()
    result = measure.measure(run, num_steps=3, profile=str(trace))
    json.dumps(result)
    tokens = run.run.batch_size * run.run.seq_len
    self.assertAlmostEqual(
      result["tokens_per_second"] * result["median_step_ms"] / 1000 / tokens,
      1.0,
      delta=0.2,  # Both are rounded, and steps last few milliseconds.
    )
    self.assertGreater(result["first_step_seconds"], result["compile_seconds"])
    self.assertGreater(result["peak_rss_mb"], 100)
    self.assertBetween(result["mfu"], 0.0, 1.0)
    self.assertNotEmpty(list(trace.rglob("*.xplane.pb")))


if __name__ == "__main__":
  absltest.main()
