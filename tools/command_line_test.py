import contextlib
import io
import os
import pathlib
from unittest import mock

from absl import app
from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver

from tools import command_line

flags.DEFINE_string("needed", "", "For these tests.")


def run(main, argv=(), **settings):
  """`command_line.run` as if the program's arguments were `argv`."""
  with mock.patch.object(app, "run", lambda f: f(["program", *argv])):
    command_line.run(main, **settings)


class CommandLineTest(absltest.TestCase):
  def test_paths_are_meant_from_where_the_user_is(self):
    with mock.patch.dict(os.environ, BUILD_WORKING_DIRECTORY="/there"):
      for given, meant in (
        ("a/b", "/there/a/b"),
        ("/c", "/c"),
        ("~/d", str(pathlib.Path.home() / "d")),
      ):
        self.assertEqual(command_line.user_path(given), pathlib.Path(meant))
    with mock.patch.dict(os.environ):
      os.environ.pop("BUILD_WORKING_DIRECTORY", None)
      self.assertEqual(command_line.user_path("a"), pathlib.Path.cwd() / "a")

  def test_runs_main(self):
    main = mock.Mock()
    with flagsaver.flagsaver(needed="x"):
      run(main, required=("needed",))
    main.assert_called_once_with()

  def test_unknown_arguments_and_missing_flags(self):
    main = mock.Mock()
    with self.assertRaisesRegex(app.UsageError, r"\['rest'\]"):
      run(main, ["rest"])
    with self.assertRaisesRegex(app.UsageError, "--needed is not set"):
      run(main, required=("needed",))
    main.assert_not_called()

  def test_bad_input_is_one_line(self):
    main = mock.Mock(side_effect=ValueError("--x=1 is bad; say 2"))
    with (
      contextlib.redirect_stderr(io.StringIO()) as stderr,
      self.assertRaises(SystemExit) as caught,
    ):
      run(main)
    self.assertEqual(caught.exception.code, 1)
    self.assertEqual(stderr.getvalue(), "Error: --x=1 is bad; say 2\n")

  def test_other_errors_are_ours(self):
    with self.assertRaises(KeyError):
      run(mock.Mock(side_effect=KeyError("x")))
    with self.assertRaises(SystemExit):
      run(mock.Mock(side_effect=KeyError("x")), errors=(KeyError,))


if __name__ == "__main__":
  absltest.main()
