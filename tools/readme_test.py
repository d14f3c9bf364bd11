"""Tests of the check of documents: on small trees, then on this one."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tools import readme
from tools import source_tree


class ReadmeTest(parameterized.TestCase):
  def check(self, text):
    root = pathlib.Path(self.create_tempdir())
    for path, content in {
      "train/BUILD": "py_binary(name='main')\npy_library(name='train')",
      "train/configs/tiny.py": "",
      "docs/README.md": text,
      ".bazelrc": "common:tpu --repo_env=A=B\n",
    }.items():
      (root / path).parent.mkdir(parents=True, exist_ok=True)
      (root / path).write_text(content)
    return "\n".join(map(str, readme.check(root)))

  @parameterized.parameters(
    "./bazelw test //...",
    "./bazelw test //train/... //train:all",
    "`./bazelw run //train` and `./bazelw run //train:main`",
    "./bazelw run --config=tpu //train:main -- --config=train/configs/tiny.py",
    "./bazelw run //train:main -- \\\n  --config=train/configs/tiny.py:arg",
    "./bazelw run //train:main -- --config=/my/own.py --data=gs://bucket",
    "[link](../train/BUILD) [web](https://a.b/c) [b](#b) [c](README.md#c)",
    "A comment about //nothing.",
  )
  def test_right(self, text):
    self.assertEqual(self.check(text), "")

  @parameterized.parameters(
    ("./bazelw test //serve/...", "//serve/... is not a target"),
    ("Run `./bazelw run //train:mian`.", "//train:mian is not a target"),
    (
      "./bazelw run //train:main -- \\\n  --config=train/configs/big.py",
      "train/configs/big.py is not a file",
    ),
    ("./bazelw test --config=gpu //...", "no --config=gpu"),
    ("[link](train/BUILD)", "train/BUILD leads nowhere"),
  )
  def test_wrong(self, text, message):
    problems = self.check("Title\n" + text)
    self.assertStartsWith(problems, "docs/README.md:2: ")
    self.assertIn(message, problems)
    self.assertLen(problems.splitlines(), 1)


class ThisTreeTest(absltest.TestCase):
  def test_this_tree(self):
    problems = readme.check(source_tree.tree_root())
    if problems:
      self.fail("\n".join(map(str, ["", *problems])))


if __name__ == "__main__":
  absltest.main()
