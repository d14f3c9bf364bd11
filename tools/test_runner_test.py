"""Tests of the runner that every py_test is started by."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

from tools import test_runner

_CASES = """
from absl.testing import absltest

class Case(absltest.TestCase):
  def test_one(self):
    {one}
  def test_two(self):
    pass
"""
_MAIN = """
if __name__ == "__main__":
  absltest.main()
"""


class TestRunnerTest(absltest.TestCase):
  def run_file(self, text, **env):
    file = self.create_tempfile("some_test.py", text)
    # Not the shards and filters of the test that is running this one.
    inherited = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("TEST", "XML_OUTPUT"))
    }
    return subprocess.run(
      [sys.executable, test_runner.__file__, file.full_path],
      env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def test_passes_with_a_test(self):
    result = self.run_file(_CASES.format(one="pass") + _MAIN)
    self.assertEqual(result.returncode, 0, result.stdout)
    self.assertIn("Ran 2 tests", result.stdout)

  def test_fails_with_a_failing_test(self):
    result = self.run_file(_CASES.format(one="self.fail()") + _MAIN)
    self.assertEqual(result.returncode, 1, result.stdout)

  def test_has_a_cache_directory_of_its_own(self):
    one = "import os; print(os.environ['XDG_CACHE_HOME'])"
    folder = self.create_tempdir().full_path
    text = _CASES.format(one=one) + _MAIN
    result = self.run_file(text, TEST_TMPDIR=folder, XDG_CACHE_HOME="/home")
    self.assertIn(f"{folder}/cache\n", result.stdout)

  def test_fails_without_main(self):
    result = self.run_file(_CASES.format(one="pass"))
    self.assertEqual(result.returncode, 1, result.stdout)
    self.assertIn("no test ran", result.stdout)
    self.assertIn("absltest.main()", result.stdout)

  def test_fails_without_tests(self):
    result = self.run_file("from absl.testing import absltest\n" + _MAIN)
    self.assertNotEqual(result.returncode, 0, result.stdout)

  def test_fails_on_import_error(self):
    result = self.run_file("import no_such_module\n" + _MAIN)
    self.assertEqual(result.returncode, 1, result.stdout)
    self.assertIn("no_such_module", result.stdout)

  def test_filter(self):
    text = _CASES.format(one="self.fail()") + _MAIN
    chosen = self.run_file(text, TESTBRIDGE_TEST_ONLY="Case.test_two")
    self.assertEqual(chosen.returncode, 0, chosen.stdout)
    self.assertIn("Ran 1 test ", chosen.stdout)
    nothing = self.run_file(text, TESTBRIDGE_TEST_ONLY="Case.test_three")
    self.assertNotEqual(nothing.returncode, 0, nothing.stdout)

  def test_shards(self):
    text = _CASES.format(one="pass") + _MAIN
    ran = []
    for shard in range(3):
      status = pathlib.Path(self.create_tempdir(), "status")
      result = self.run_file(
        text,
        TEST_TOTAL_SHARDS="3",
        TEST_SHARD_INDEX=str(shard),
        TEST_SHARD_STATUS_FILE=str(status),
      )
      self.assertEqual(result.returncode, 0, result.stdout)
      self.assertTrue(status.exists())
      ran.append(result.stdout.count("[       OK ]"))
    self.assertCountEqual(ran, [1, 1, 0])

  def test_fails_in_all_shards_without_tests(self):
    result = self.run_file(
      "from absl.testing import absltest\n" + _MAIN,
      TEST_TOTAL_SHARDS="2",
      TEST_SHARD_INDEX="0",
    )
    self.assertNotEqual(result.returncode, 0, result.stdout)

  def test_skipped_counts(self):
    result = self.run_file(_CASES.format(one="self.skipTest('no TPU')") + _MAIN)
    self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
  absltest.main()
