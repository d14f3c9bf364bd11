"""The program //data:megatron_check, as a user starts it."""

import os
import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest
import numpy as np

_GOLDENS = pathlib.Path("data/testdata/megatron")


class MegatronCheckTest(absltest.TestCase):
  def check(self, *arguments: str, directory: str = ""):
    return subprocess.run(
      [sys.executable, "-m", "data.megatron_check", *arguments],
      env=os.environ
      | {
        "BUILD_WORKING_DIRECTORY": directory or os.getcwd(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
      },
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )

  def test_all_pass(self):
    result = self.check(f"--goldens={_GOLDENS}")
    lines = result.stdout.splitlines()
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(lines[-1], f"{len(lines) - 1} passed, 0 failed")

  def test_an_array_that_was_changed(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    copied = folder / "changed"
    shutil.copytree(_GOLDENS / "corpora", copied / "corpora")
    shutil.copy(_GOLDENS / "goldens.json", copied)
    with np.load(_GOLDENS / "goldens.npz") as file:
      arrays = {name: file[name] for name in file.files}
    name = next(n for n in arrays if n.endswith("/shuffle_index"))
    arrays[name] = arrays[name][::-1]
    np.savez(copied / "goldens.npz", **arrays)
    # Paths are those of the user's shell.
    result = self.check("--goldens=changed", directory=str(folder))
    self.assertEqual(result.returncode, 1)
    lines = result.stdout.splitlines()
    self.assertEqual(lines[-1], f"{len(lines) - 2} passed, 1 failed")
    (failed,) = [line for line in lines if line.startswith("FAIL")]
    self.assertStartsWith(failed, f"FAIL {name.removesuffix('/shuffle_index')}")

  def test_a_folder_that_is_empty(self):
    folder = self.create_tempdir().full_path
    result = self.check("--goldens=.", directory=folder)
    self.assertEqual(result.returncode, 1)
    line, count = result.stdout.splitlines()
    self.assertRegex(line, f"^FAIL goldens: .*{folder}/goldens.json")
    self.assertEqual(count, "0 passed, 1 failed")

  def test_a_flag_that_is_missing(self):
    result = self.check()
    self.assertNotEqual(result.returncode, 0)
    self.assertIn("--goldens", result.stderr + result.stdout)


if __name__ == "__main__":
  absltest.main()
