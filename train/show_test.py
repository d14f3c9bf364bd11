"""The program //data:show, as a user starts it."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

from train import fixtures


class ShowTest(absltest.TestCase):
  def _show(self, *arguments):
    root = pathlib.Path(self.create_tempdir().full_path)
    run = fixtures.text_config(root / "data")
    experiment = fixtures.write_experiment(root / "run.py", run)
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "train.show",
        f"--config={experiment}",
        *arguments,
      ],
      env=fixtures.main_environment(),
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )

  def test_prints_the_rows_of_a_batch(self):
    result = self._show("--step=5", "--width=20")
    self.assertEqual(result.returncode, 0, result.stderr)
    lines = result.stdout.splitlines()
    self.assertEqual(lines[0], "batch 5 (update 6): 8 rows of 32 tokens")
    self.assertLen(lines, 1 + 3 * 8)

  def test_a_batch_that_is_not_there(self):
    result = self._show("--step=6")
    self.assertEqual(result.returncode, 1)
    self.assertIn("there is no batch 6", result.stderr)
    self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
  absltest.main()
