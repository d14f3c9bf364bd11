"""The program //data:report, as a user starts it."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest

from train import fixtures


class MixtureReportTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def _report(self, *arguments):
    run = fixtures.text_config(self.root / "data")
    experiment = fixtures.write_experiment(self.root / "run.py", run)
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "train.mixture_report",
        f"--config={experiment}",
        *arguments,
      ],
      env=fixtures.main_environment()
      | {"BUILD_WORKING_DIRECTORY": str(self.root)},
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )

  def test_prints_and_writes(self):
    result = self._report(
      "--json=out.json", "--png=out.png", "--config.run.steps=5"
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    lines = result.stdout.splitlines()
    self.assertEqual(
      lines[0], "5 steps (asked: 5), 1,280 tokens in rows, 2 sources"
    )
    self.assertStartsWith(lines[-1], "No warnings.")
    values = json.loads((self.root / "out.json").read_text())
    self.assertEqual(values["num_steps"], 5)
    self.assertEqual(
      [share["asked"] for share in values["total"]], ["7/10", "3/10"]
    )
    self.assertStartsWith((self.root / "out.png").read_bytes(), b"\x89PNG")

  def test_a_wrong_path(self):
    result = self._report("--json=missing/out.json")
    self.assertEqual(result.returncode, 1)
    self.assertIn("missing/out.json", result.stderr)
    self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
  absltest.main()
