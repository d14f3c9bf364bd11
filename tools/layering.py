"""The rules of the tree: its layers, its BUILD files, what nothing may do.

    third_party <- model, data <- train, serve <- tools

A layer imports from its left only. `model` and `data` are strangers to each
other, and so are `train` and `serve`.
"""

import ast
import collections
from collections.abc import Iterator
import pathlib

from tools import source_tree

_LAYERS = {
  "third_party": {"third_party"},
  "model": {"third_party", "model"},
  "data": {"third_party", "data"},
  "train": {"third_party", "model", "data", "train"},
  "serve": {"third_party", "model", "data", "serve"},
  "tools": {"third_party", "model", "data", "train", "serve", "tools"},
}
# What serve takes from data.
_SERVE_FROM_DATA = ("data.chat", "data.chat_prompt", "data.tokenizer")
# Packages that a layer does without, and why.
_BANNED_PACKAGES = {
  "data": (("jax", "flax"), "data is host side: numpy"),
  "model": (
    ("absl.app", "absl.flags", "absl.logging", "logging"),
    "model is pure: no flags, no logging",
  ),
}
_PICKLES = ("cloudpickle", "dill", "joblib", "pickle", "shelve")
# A module needs no test of its own where its folder has one for all of them,
# where it is a program, or where it is there for tests (testonly).
_TESTED_TOGETHER = ("configs", "families", "presets", "testdata")
_PROGRAM_SUFFIXES = (
  "_benchmark.py",
  "/benchmark.py",
  "/main.py",
  "__init__.py",
)


class Tree:
  """All Python files and targets below a root, read once."""

  def __init__(self, root: pathlib.Path, packages: source_tree.Packages):
    self.packages = packages
    self.syntax = {
      path: ast.parse((root / path).read_text(), filename=path)
      for path in source_tree.files(root, "*.py")
    }
    self.imports = {
      path: list(source_tree.imports(syntax))
      for path, syntax in self.syntax.items()
    }
    self.targets = []
    self.kept = set()
    for path in source_tree.files(root, "BUILD"):
      self.targets += source_tree.targets(root, path)
      package = str(pathlib.PurePosixPath(path).parent)
      self.kept |= {
        (path, source_tree.absolute_label(label, package))
        for label in source_tree.kept((root / path).read_text())
      }
    self.libraries = collections.defaultdict(set)
    for target in self.targets:
      if target.rule == "py_library":
        for src in target.srcs:
          self.libraries[src].add(target.label)

  def file(self, name: str) -> str | None:
    """Returns the file of the tree that an imported name is, or is in."""
    for module in (name, name.rpartition(".")[0]):
      path = module.replace(".", "/") + ".py"
      if path in self.syntax:
        return path
    return None

  def is_own(self, name: str) -> bool:
    """Returns whether a name is below one of the tree's top folders."""
    return name.split(".")[0] in _LAYERS


def _is_or_in(name: str, modules) -> bool:
  return any(name == m or name.startswith(m + ".") for m in modules)


def layers(tree: Tree) -> Iterator[source_tree.Problem]:
  """Yields the imports that point to the right, or to a stranger."""
  for path, imports in tree.imports.items():
    layer = path.split("/")[0]
    if layer not in _LAYERS:
      yield source_tree.Problem(
        path, 1, f"Python outside of {', '.join(_LAYERS)}. Fix: move it"
      )
      continue
    for found in imports:
      top = found.name.split(".")[0]
      banned, why = _BANNED_PACKAGES.get(layer, ((), ""))
      if found.name.startswith("."):
        message = "relative import. Fix: import from the root of the tree"
      elif tree.is_own(found.name) and top not in _LAYERS[layer]:
        message = (
          f"{layer} imports {found.name}; it may import"
          f" {', '.join(sorted(_LAYERS[layer]))}. Fix: move what is shared to"
          " a layer that both may import"
        )
      elif (layer, top) == ("serve", "data") and not _is_or_in(
        found.name, _SERVE_FROM_DATA
      ):
        message = (
          f"serve imports {found.name}; from data it may import"
          f" {', '.join(_SERVE_FROM_DATA)}. Fix: take it from the checkpoint"
        )
      elif _is_or_in(found.name, banned):
        message = f"{layer} imports {found.name}. Fix: {why}"
      else:
        continue
      yield source_tree.Problem(path, found.line, message)


def _needed(tree: Tree, target: source_tree.Target):
  """Yields (import, file, labels that have it) for a target's sources."""
  for src in target.srcs:
    for found in tree.imports.get(src, ()):
      name = found.name
      if source_tree.is_standard(name) or name.startswith("."):
        continue
      path = tree.file(name) if tree.is_own(name) else None
      if path in target.srcs:
        continue
      if tree.is_own(name):
        labels = tree.libraries[path] if path else set()
      else:
        label = tree.packages.label(name)
        labels = {label} if label else set()
      if labels or not found.optional:
        yield found, src, labels


def dependencies(tree: Tree) -> Iterator[source_tree.Problem]:
  """Yields where a target's deps are not what its sources import."""
  for target in tree.targets:
    if target.rule not in ("py_binary", "py_library", "py_test"):
      continue
    used = set()
    for found, src, labels in _needed(tree, target):
      used |= labels
      if not labels:
        yield source_tree.Problem(
          src,
          found.line,
          f"nothing has {found.name}. Fix: give it a py_library, or add its"
          " package to third_party/python/requirements.in and run"
          " //third_party/python:lock",
        )
      elif not labels & set(target.deps):
        yield source_tree.Problem(
          target.build_file,
          target.line,
          f"{target.label} lacks what {src}:{found.line} imports. Fix: add"
          f' "{min(labels)}" to its deps',
        )
    for dep in target.deps:
      if dep not in used and (target.build_file, dep) not in tree.kept:
        yield source_tree.Problem(
          target.build_file,
          target.line,
          f"{target.label} has {dep}, which its srcs do not import. Fix:"
          " remove it, or say `# keep: why` beside it",
        )


def tests(tree: Tree) -> Iterator[source_tree.Problem]:
  """Yields modules in no target, and modules without a test beside them."""
  known = {src for target in tree.targets for src in target.srcs}
  tested = {
    src
    for target in tree.targets
    if target.rule == "py_test"
    for src in target.srcs
  }
  for_tests = {
    src for target in tree.targets if target.testonly for src in target.srcs
  }
  for path in tree.syntax:
    folder = pathlib.PurePosixPath(path).parent
    if path not in known and "testdata" not in folder.parts:
      yield source_tree.Problem(
        path, 1, f"is in no target. Fix: a py_library in {folder}/BUILD"
      )
    if (
      path.endswith(("_test.py", *_PROGRAM_SUFFIXES))
      or folder.name in _TESTED_TOGETHER
      or path in for_tests
    ):
      continue
    test = path.removesuffix(".py") + "_test.py"
    if test not in tested:
      yield source_tree.Problem(
        path, 1, f"has no test. Fix: a py_test of {test}"
      )


def bans(tree: Tree) -> Iterator[source_tree.Problem]:
  """Yields what may run code that is hidden in data: pickles."""
  fix = "Fix: save arrays with Orbax or numpy.savez, the rest as JSON"
  for path, syntax in tree.syntax.items():
    for found in tree.imports[path]:
      # A test may check that an object survives the trip to another process.
      if _is_or_in(found.name, _PICKLES) and not path.endswith("_test.py"):
        yield source_tree.Problem(
          path, found.line, f"imports {found.name}. {fix}"
        )
    for node in ast.walk(syntax):
      if (
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and not node.value.value)
      ):
        yield source_tree.Problem(
          path, node.value.lineno, f"allows a pickle. {fix}"
        )
      if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
        yield source_tree.Problem(
          path, node.lineno, f"torch.load reads a pickle. {fix}"
        )


def check(
  root: pathlib.Path, packages: source_tree.Packages
) -> list[source_tree.Problem]:
  """Returns all problems of a tree, in order."""
  tree = Tree(root, packages)
  rules = (layers, dependencies, tests, bans)
  return sorted({problem for rule in rules for problem in rule(tree)})
