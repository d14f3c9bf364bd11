"""Tests of the rules of the tree: on small trees, then on this one."""

import pathlib

import absl
from absl.testing import absltest
from absl.testing import parameterized

from tools import layering
from tools import source_tree


def library(name, *deps):
  return f"py_library(name='{name}', srcs=['{name}.py'], deps={list(deps)})\n"


def library_and_test(name, *deps):
  test = f"py_test(name='{name}_test', srcs=['{name}_test.py'])\n"
  return library(name, *deps) + test


class LayeringTest(parameterized.TestCase):
  def check(self, files):
    """Returns the problems of a tree of these files, as text."""
    root = pathlib.Path(self.create_tempdir())
    site = {
      ".site/jax/__init__.py": "",
      ".site/jax-1.dist-info/METADATA": "Name: jax\n",
      ".site/jax-1.dist-info/RECORD": "jax/__init__.py,,\n",
    }
    for path, text in (files | site).items():
      (root / path).parent.mkdir(parents=True, exist_ok=True)
      (root / path).write_text(text)
    packages = source_tree.Packages(root / ".site")
    return "\n".join(map(str, layering.check(root, packages)))

  def imports(self, path, line, dep):
    """Returns the problems of a module that imports a module of its dep."""
    package, name = path.split("/")
    other, other_name = dep.split("/")
    return self.check(
      {
        f"{package}/{name}.py": line + "\n",
        f"{package}/{name}_test.py": "",
        f"{package}/BUILD": library_and_test(name, f"//{other}:{other_name}"),
        f"{other}/{other_name}.py": "",
        f"{other}/{other_name}_test.py": "",
      }
      | (
        {f"{other}/BUILD": library_and_test(other_name)}
        if other != package
        else {}
      )
    )

  @parameterized.parameters(
    ("train/loop", "from model import config", "model/config"),
    ("train/loop", "import data.blend", "data/blend"),
    ("serve/engine", "from model import config", "model/config"),
    ("serve/engine", "from data import tokenizer", "data/tokenizer"),
    ("serve/engine", "from data.chat import render", "data/chat"),
    ("tools/plan", "from train import loop", "train/loop"),
  )
  def test_may(self, path, line, dep):
    self.assertEqual(self.imports(path, line, dep), "")

  @parameterized.parameters(
    ("model/config", "from data import blend", "data/blend"),
    ("data/blend", "from model import config", "model/config"),
    ("model/config", "from train import loop", "train/loop"),
    ("train/loop", "from serve import engine", "serve/engine"),
    ("serve/engine", "import train.loop", "train/loop"),
    ("serve/engine", "from data import blend", "data/blend"),
    ("train/loop", "from tools import plan", "tools/plan"),
  )
  def test_may_not(self, path, line, dep):
    problems = self.imports(path, line, dep)
    self.assertStartsWith(problems, f"{path}.py:1: ")
    self.assertIn(dep.replace("/", "."), problems)
    self.assertIn("Fix: ", problems)
    self.assertLen(problems.splitlines(), 1)

  @parameterized.parameters(
    ("data", "import jax.numpy as jnp", "host side"),
    ("model", "from absl import flags", "pure"),
    ("model", "import logging", "pure"),
    ("model", "from . import other", "relative"),
  )
  def test_banned(self, layer, line, why):
    problems = self.check({f"{layer}/a.py": line})
    self.assertIn(f"{layer}/a.py:1: ", problems)
    self.assertIn(why, problems)

  def test_outside_of_the_layers(self):
    self.assertIn(
      "stray/a.py:1: Python outside", self.check({"stray/a.py": ""})
    )

  def model(self, text, build, **more):
    return self.check(
      {"model/a.py": text, "model/a_test.py": "", "model/BUILD": build} | more
    )

  def test_exact_deps(self):
    self.assertEqual(
      self.model("import jax", library_and_test("a", "@pypi//jax")), ""
    )

  def test_missing_dep(self):
    self.assertEqual(
      self.model("\nimport jax", library_and_test("a")),
      "model/BUILD:1: //model:a lacks what model/a.py:2 imports."
      ' Fix: add "@pypi//jax" to its deps',
    )

  def test_missing_own_dep(self):
    problems = self.model(
      "from model import b",
      library_and_test("a") + library_and_test("b"),
      **{"model/b.py": "", "model/b_test.py": ""},
    )
    self.assertIn('Fix: add "//model:b" to its deps', problems)

  def test_needless_dep(self):
    problems = self.model("", library_and_test("a", "@pypi//jax"))
    self.assertIn("//model:a has @pypi//jax, which its srcs do not", problems)

  def test_kept_dep(self):
    build = library_and_test("a", "@pypi//jax")
    build = build.replace("'@pypi//jax'", '"@pypi//jax",  # keep: plugin\n')
    self.assertEqual(self.model("", build), "")

  def test_unknown_package(self):
    problems = self.model("import nobody", library_and_test("a"))
    self.assertIn("model/a.py:1: nothing has nobody", problems)

  def test_optional_package(self):
    text = "try:\n  import nobody\nexcept ImportError:\n  nobody = None\n"
    self.assertEqual(self.model(text, library_and_test("a")), "")

  def test_module_in_no_target(self):
    problems = self.check({"model/a.py": "", "model/a_test.py": ""})
    self.assertIn("model/a.py:1: is in no target", problems)

  def test_module_without_test(self):
    problems = self.check({"model/a.py": "", "model/BUILD": library("a")})
    self.assertIn("model/a.py:1: has no test", problems)

  def test_test_that_is_not_run(self):
    problems = self.check(
      {
        "model/a.py": "",
        "model/a_test.py": "",
        "model/BUILD": library("a") + library("a_test"),
      }
    )
    self.assertIn("model/a.py:1: has no test", problems)

  def test_modules_that_need_no_test(self):
    build = library("fixtures").replace("deps", "testonly=True, deps")
    problems = self.check(
      {
        "train/configs/x.py": "",
        "train/configs/BUILD": library("x"),
        "train/main.py": "",
        "train/fixtures.py": "",
        "train/BUILD": library("main") + build,
      }
    )
    self.assertEqual(problems, "")

  @parameterized.parameters(
    "import pickle",
    "from pickle import load",
    "load(path, allow_pickle=True)",
    "load(path, allow_pickle=maybe)",
    "torch.load(path)",
  )
  def test_pickles(self, line):
    problems = self.model("\n" + line, library_and_test("a"))
    self.assertIn("model/a.py:2: ", problems)
    self.assertIn("pickle", problems)

  def test_no_pickle(self):
    text = "load(path, allow_pickle=False)"
    self.assertEqual(self.model(text, library_and_test("a")), "")


class ThisTreeTest(absltest.TestCase):
  def test_this_tree(self):
    # The folder of all packages: the runfiles have only what this test needs.
    site = pathlib.Path(absl.__file__).resolve().parents[1]
    problems = layering.check(
      source_tree.tree_root(), source_tree.Packages(site)
    )
    if problems:
      self.fail("\n".join(map(str, ["", *problems])))


if __name__ == "__main__":
  absltest.main()
