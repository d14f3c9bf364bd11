"""Tests of the formatter on trees of one file."""

import pathlib
import subprocess

from absl.testing import absltest

from tools.format import formatter


class FormatterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir())
    (self.root / "pyproject.toml").write_text(
      "[tool.ruff]\nindent-width = 2\nlint.select = ['F', 'I']\n"
    )

  def ruff(self, text, *, check):
    file = self.root / "module.py"
    file.write_text(text)
    codes = [
      subprocess.run(command, capture_output=True).returncode
      for command in formatter.ruff_commands(self.root, check=check)
    ]
    return codes, file.read_text()

  def test_rewrites(self):
    codes, text = self.ruff("import re,os\nprint( os,re )\n", check=False)
    self.assertEqual(codes, [0, 0])
    self.assertEqual(text, "import os\nimport re\n\nprint(os, re)\n")

  def test_check_leaves_the_file_alone(self):
    before = "import os\n\nif os:\n    print( os )\n"
    codes, text = self.ruff(before, check=True)
    self.assertEqual(codes, [0, 1])
    self.assertEqual(text, before)

  def test_check_lints(self):
    codes, _ = self.ruff("import os\n", check=True)
    self.assertEqual(codes, [1, 0])

  def test_check_passes(self):
    codes, _ = self.ruff("print(1)\n", check=True)
    self.assertEqual(codes, [0, 0])

  def test_bazel_files(self):
    for name in [
      "BUILD",
      "a/rules.bzl",
      "a/BUILD",
      ".x/BUILD",
      "bazel-y/BUILD",
    ]:
      (self.root / name).parent.mkdir(exist_ok=True)
      (self.root / name).touch()
    found = formatter.bazel_files(self.root)
    self.assertEqual(
      [str(file.relative_to(self.root)) for file in found],
      ["BUILD", "a/BUILD", "a/rules.bzl"],
    )

  def test_check_of_bazel_files_writes_nothing(self):
    command = formatter.buildifier_command(self.root, "buildifier", check=True)
    self.assertIn("-mode=diff", command)


if __name__ == "__main__":
  absltest.main()
