"""Records that survive restarts."""

import pathlib
from unittest import mock

from absl.testing import absltest
from tensorboardX.proto import event_pb2

from train import metrics
from train import weights_and_biases


class MetricsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.file = self.workdir / metrics.METRICS_FILE

  def _writer(self, start_step=0):
    writer = metrics.Writer(self.workdir, start_step=start_step)
    self.addCleanup(writer.close)
    return writer

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

  def test_weights_and_biases(self):
    run = mock.create_autospec(weights_and_biases.Run, instance=True)
    writer = metrics.Writer(self.workdir, start_step=0, wandb=run)
    self.addCleanup(writer.close)
    writer.write(3, "train", {"loss": 2.5})
    run.log.assert_called_once_with(3, "train", {"loss": 2.5})


if __name__ == "__main__":
  absltest.main()
