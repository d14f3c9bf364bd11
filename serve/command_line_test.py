import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

from serve import command_line

_PROGRAM = """
from ml_collections import config_flags
from serve import command_line

_CONFIG = config_flags.DEFINE_config_file("config")

def main(argv):
  try:
    config = command_line.read_config(_CONFIG)
  except ValueError as error:
    command_line.fail(error)
  print(config.runner.max_rows, config.runner.compute_dtype)

command_line.run(main)
"""


def _run(*arguments):
  path = os.pathsep.join(p for p in sys.path if p)
  return subprocess.run(
    [sys.executable, "-c", _PROGRAM, *arguments],
    env=os.environ | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )


class CommandLineTest(absltest.TestCase):
  def test_paths_are_as_the_user_means_them(self):
    folder = self.create_tempdir().full_path
    file = pathlib.Path(folder, "own.py")
    file.touch()
    os.environ["BUILD_WORKING_DIRECTORY"] = folder
    self.addCleanup(os.environ.pop, "BUILD_WORKING_DIRECTORY")
    self.assertEqual(command_line.user_path("x/y"), f"{folder}/x/y")
    self.assertEqual(command_line.user_path("/x"), "/x")
    resolve = command_line.resolve_config_path
    self.assertEqual(resolve("--config=own.py:a"), f"--config={file}:a")
    self.assertEqual(resolve("--config=not.py"), "--config=not.py")
    self.assertEqual(resolve("--config.own.py=1"), "--config.own.py=1")

  def test_the_config_comes_first(self):
    first = command_line.put_config_first
    default = "--config=serve/configs/default.py"
    self.assertEqual(first(["--a"]), [default, "--a"])
    self.assertEqual(first(["--config.a=1"]), [default, "--config.a=1"])
    for given in (["--config=y"], ["-config=y"], ["--config", "y"]):
      self.assertEqual(
        first(["--config.a=1", *given, "--b"]),
        ["--config=y", "--config.a=1", "--b"],
      )

  def test_settings(self):
    done = _run(
      "--config", "serve/configs/default.py", "--config.runner.max_rows=5"
    )
    self.assertEqual(done.stdout.split(), ["5", "auto"], done.stderr)

  def test_mistakes_end_in_one_line(self):
    for argument, message in (
      ("--config.runner.max_row=5", "max_row"),
      ("--config.runner.max_rows=0", "max_rows=0"),
      ("--config=/not/there.py", "there.py"),
    ):
      done = _run(argument)
      self.assertEqual(done.returncode, 1, done)
      self.assertRegex(done.stderr, rf"(?s)^Error: .*{message}")
      self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
  absltest.main()
