"""The table and the chart at the end of a run."""

import json
import pathlib
import struct

from absl.testing import absltest

from data import baseline
from train import evaluate
from train import metrics
from train import report


def _baseline(scale):
  losses = [
    baseline.Loss(nats_per_token=scale * x, bits_per_byte=scale * x / 3)
    for x in (9.0, 7.5, 7.0)
  ]
  return baseline.Baseline(
    uniform=losses[0], train_unigram=losses[1], own_unigram=losses[2]
  )


_RESULTS = {
  "code": evaluate.HeldOut(
    nats_per_token=3.25, bits_per_byte=1.5, num_tokens=12345
  ),
  "blend": evaluate.HeldOut(
    nats_per_token=4.0, bits_per_byte=2.0, num_tokens=20000
  ),
}


class ReportTest(absltest.TestCase):
  def test_table_with_baselines(self):
    text = report.table(_RESULTS, {"code": _baseline(1), "blend": _baseline(2)})
    lines = text.splitlines()
    self.assertEqual(
      lines[1].split(),
      ["code", "12,345", "3.250", "1.500", "3.000", "2.500", "2.333"],
    )
    self.assertEqual(
      lines[2].split(),
      ["blend", "20,000", "4.000", "2.000", "6.000", "5.000", "4.667"],
    )
    self.assertLen(set(map(len, lines[:3])), 1)  # Columns line up.

  def test_table_without_baselines(self):
    text = report.table(_RESULTS, {})
    self.assertNotIn("unigram", text)
    self.assertIn("3.250", text)

  def test_curve(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    records = [
      {"step": step, "kind": "train", "loss": 9 - step} for step in range(1, 6)
    ] + [{"step": 5, "kind": "eval/blend", "nats_per_token": 4.0}]
    (workdir / metrics.METRICS_FILE).write_text(
      "".join(json.dumps(r) + "\n" for r in records)
    )
    plain = report.draw_curve(workdir, {}).read_bytes()
    path = report.draw_curve(workdir, {"blend": _baseline(1)})
    content = path.read_bytes()
    self.assertStartsWith(content, b"\x89PNG\r\n\x1a\n")
    # Width and height are the first two fields of the first chunk.
    self.assertGreater(min(struct.unpack(">II", content[16:24])), 400)
    self.assertNotEqual(path.read_bytes(), plain)

  def test_curve_of_nothing(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    self.assertTrue(report.draw_curve(workdir, {}).exists())


if __name__ == "__main__":
  absltest.main()
