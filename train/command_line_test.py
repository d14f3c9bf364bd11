"""Paths as the user means them."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest

from train import command_line


class CommandLineTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.user = pathlib.Path(self.create_tempdir().full_path)
    self.started = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(
      mock.patch.dict(os.environ, {"BUILD_WORKING_DIRECTORY": str(self.user)})
    )
    before = os.getcwd()
    os.chdir(self.started)
    self.addCleanup(os.chdir, before)

  def test_paths_start_at_the_user(self):
    self.assertEqual(command_line.user_path("run"), str(self.user / "run"))
    self.assertEqual(command_line.user_path("/run"), "/run")
    self.assertEqual(
      command_line.user_path("~/run"), os.path.expanduser("~/run")
    )

  def test_without_bazel_the_user_is_where_we_are(self):
    del os.environ["BUILD_WORKING_DIRECTORY"]
    self.assertEqual(command_line.user_directory(), os.getcwd())

  def test_config_of_the_user_comes_first(self):
    argument = "--config=here.py:small"
    self.assertEqual(command_line.resolve_config_path(argument), argument)
    (self.started / "here.py").touch()
    self.assertEqual(
      command_line.resolve_config_path(argument),
      f"--config={os.getcwd()}/here.py:small",
    )
    (self.user / "here.py").touch()
    self.assertEqual(
      command_line.resolve_config_path(argument),
      f"--config={self.user}/here.py:small",
    )

  def test_other_arguments_stay(self):
    for argument in ("--config.run.steps=1", "--workdir=x", "config"):
      self.assertEqual(command_line.resolve_config_path(argument), argument)

  def test_says_how_it_was_called(self):
    with mock.patch("sys.argv", ["x", "--a=1"]):
      self.assertEqual(
        command_line.how_called("//train:main"),
        ["python", "-m", "train.main", "--a=1"],
      )
      with mock.patch.dict(os.environ, {"BUILD_WORKSPACE_DIRECTORY": "/w"}):
        self.assertEqual(
          command_line.how_called("//train:main"),
          ["bazel", "run", "//train:main", "--", "--a=1"],
        )


if __name__ == "__main__":
  absltest.main()
