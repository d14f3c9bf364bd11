"""Tests of the reader of the tree."""

import ast
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tools import source_tree


class SourceTreeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir())

  def write(self, path, text=""):
    (self.root / path).parent.mkdir(parents=True, exist_ok=True)
    (self.root / path).write_text(text)

  def test_files(self):
    for path in ["b.py", "a/c.py", ".venv/d.py", "bazel-bin/e.py", "f.txt"]:
      self.write(path)
    self.assertEqual(source_tree.files(self.root, "*.py"), ["b.py", "a/c.py"])

  def test_imports(self):
    text = "import os.path\ndef f():\n  from a.b import c, d\nfrom . import e"
    found = [(i.name, i.line) for i in source_tree.imports(ast.parse(text))]
    self.assertCountEqual(
      found, [("os.path", 1), ("a.b.c", 3), ("a.b.d", 3), ("..e", 4)]
    )

  def test_optional_imports(self):
    text = "try:\n  import a\nexcept ImportError:\n  import b\n"
    found = {i.name: i.optional for i in source_tree.imports(ast.parse(text))}
    self.assertEqual(found, {"a": True, "b": False})

  @parameterized.parameters(
    (":a", "//p:a"),
    ("a", "//p:a"),
    ("//q", "//q:q"),
    ("//q/r", "//q/r:r"),
    ("//q:a", "//q:a"),
    ("@pypi//jax", "@pypi//jax"),
    ("@pypi//jax:jax", "@pypi//jax"),
    ("@pypi//:all", "@pypi//:all"),
  )
  def test_absolute_label(self, label, expected):
    self.assertEqual(source_tree.absolute_label(label, "p"), expected)

  def test_targets(self):
    self.write("p/configs/one.py")
    self.write("p/configs/two_test.py")
    self.write(
      "p/BUILD",
      """load("//tools:py.bzl", "py_library")
_DEPS = [":b", "@pypi//jax"]
py_library(
    name = "a",
    srcs = ["a.py"],
    deps = _DEPS + ["//q"],
)
py_library(
    name = "configs",
    testonly = True,
    srcs = glob(["configs/*.py"], exclude = ["configs/*_test.py"]),
)
[py_test(name = x + "_test", srcs = [x + "_test.py"]) for x in ["c", "d"]]
""",
    )
    a, configs, c, d = source_tree.targets(self.root, "p/BUILD")
    self.assertEqual((a.label, a.rule, a.line), ("//p:a", "py_library", 3))
    self.assertEqual(a.srcs, ("p/a.py",))
    self.assertEqual(a.deps, ("//p:b", "@pypi//jax", "//q:q"))
    self.assertEqual(configs.srcs, ("p/configs/one.py",))
    self.assertTrue(configs.testonly)
    self.assertEqual([c.label, d.label], ["//p:c_test", "//p:d_test"])

  def test_targets_of_the_root(self):
    self.write("BUILD", 'py_library(name = "a", srcs = ["a.py"])')
    (target,) = source_tree.targets(self.root, "BUILD")
    self.assertEqual((target.label, target.srcs), ("//:a", ("a.py",)))

  def test_kept(self):
    text = 'deps = [\n    ":a",  # keep: a plugin\n    ":b",\n]'
    self.assertEqual(source_tree.kept(text), {":a"})

  def test_packages(self):
    for name, modules in {
      "a_b": ["ns/a.py", "ns/sub/__init__.py"],
      "C.D": ["ns/c.cpython-312.so"],
    }.items():
      self.write(f"{name}-1.dist-info/METADATA", f"Name: {name}\n")
      self.write(
        f"{name}-1.dist-info/RECORD",
        "".join(f"{module},,\n" for module in modules),
      )
      for module in modules:
        self.write(module)
    packages = source_tree.Packages(self.root)
    self.assertEqual(packages.label("ns.a"), "@pypi//a_b")
    self.assertEqual(packages.label("ns.sub.Name"), "@pypi//a_b")
    self.assertEqual(packages.label("ns.c.function"), "@pypi//c_d")
    self.assertIsNone(packages.label("ns"))
    self.assertIsNone(packages.label("other"))


if __name__ == "__main__":
  absltest.main()
