"""Reads the tree: its Python files and their imports, its BUILD targets."""

import ast
from collections.abc import Iterator, Sequence
import dataclasses
import fnmatch
import importlib.metadata
import itertools
import pathlib
import re
import sys


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
  """What is wrong, where, and how to mend it."""

  path: str
  line: int
  message: str

  def __str__(self):
    return f"{self.path}:{self.line}: {self.message}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
  """One imported name.

  Attributes:
    name: in full: `from a import b` imports `a.b`, a module or what is in one.
    line: where.
    optional: in a `try` whose `except` takes an ImportError.
  """

  name: str
  line: int
  optional: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """One target of a BUILD file; labels and paths are from the root."""

  label: str
  rule: str
  build_file: str
  line: int
  srcs: tuple[str, ...]
  deps: tuple[str, ...]
  testonly: bool


def tree_root() -> pathlib.Path:
  """Returns the checkout that a test of the whole tree is about."""
  root = pathlib.Path(__file__).resolve().parents[1]
  if not (root / "MODULE.bazel").exists():
    raise FileNotFoundError(
      f"{root} is not the tree. Fix: run the test locally, it reads files that"
      " it does not declare"
    )
  return root


def files(root: pathlib.Path, pattern: str) -> list[str]:
  """Returns the paths of matching files, no hidden or generated ones."""
  found = []
  for folder, folders, names in root.walk():
    folders[:] = sorted(
      name
      for name in folders
      if not name.startswith((".", "bazel-"))
      and name not in ("node_modules", "__pycache__")
    )
    found += [
      str((folder / name).relative_to(root))
      for name in fnmatch.filter(sorted(names), pattern)
    ]
  return found


def imports(syntax: ast.Module) -> Iterator[Import]:
  """Yields what a module imports, wherever in it."""
  optional = set()
  for node in ast.walk(syntax):
    if isinstance(node, ast.Try) and any(
      "ImportError" in ast.dump(handler.type) if handler.type else False
      for handler in node.handlers
    ):
      optional |= {id(child) for stmt in node.body for child in ast.walk(stmt)}
  for node in ast.walk(syntax):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = "." * node.level + (node.module or "")
      names = [f"{base}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      yield Import(name=name, line=node.lineno, optional=id(node) in optional)


def absolute_label(label: str, package: str) -> str:
  """Returns a label in full: `//package:name`, or `@repository//package`."""
  if label.startswith("@"):
    name = label.split("//")[1]
    package, _, target = name.partition(":")
    return label if target != package.split("/")[-1] else label.split(":")[0]
  if label.startswith("//"):
    package, _, target = label[2:].partition(":")
    return f"//{package}:{target or package.split('/')[-1]}"
  return f"//{package}:{label.removeprefix(':')}"


def targets(root: pathlib.Path, build_file: str) -> list[Target]:
  """Returns the targets of a BUILD file.

  BUILD files are Starlark, a subset of Python as far as ours go: the file is
  run with rules that write down what they are called with.
  """
  folder = pathlib.PurePosixPath(build_file).parent
  package = "" if folder == pathlib.PurePosixPath(".") else str(folder)
  found = []

  def rule(name: str):
    def record(**attributes):
      if "name" not in attributes:
        return
      srcs = [
        f"{package}/{src}".lstrip("/")
        for src in attributes.get("srcs", ())
        if ":" not in src
      ]
      deps = [
        absolute_label(dep, package) for dep in attributes.get("deps", ())
      ]
      found.append(
        Target(
          label=f"//{package}:{attributes['name']}",
          rule=name,
          build_file=build_file,
          line=sys._getframe(1).f_lineno,
          srcs=tuple(srcs),
          deps=tuple(deps),
          testonly=bool(attributes.get("testonly", False)),
        )
      )

    return record

  def glob(include: Sequence[str], exclude: Sequence[str] = (), **_):
    paths = [
      str(path.relative_to(root / folder))
      for pattern in include
      for path in sorted((root / folder).glob(pattern))
    ]
    return [
      path
      for path in paths
      if not any(fnmatch.fnmatch(path, pattern) for pattern in exclude)
    ]

  class Names(dict):
    def __missing__(self, name):
      return rule(name)

  ignored = ("exports_files", "licenses", "load", "package")
  names = Names({name: lambda *_, **__: None for name in ignored})
  names["glob"] = glob
  names["select"] = lambda branches: list(itertools.chain(*branches.values()))
  code = compile((root / build_file).read_text(), build_file, "exec")
  # A name that the (empty) globals lack is looked up in the locals.
  exec(code, {"__builtins__": {}}, names)
  return found


def kept(text: str) -> set[str]:
  """Returns the labels that a BUILD file marks `# keep`, as they are written.

  They are needed though nothing imports them: a plugin, a config given by path.
  """
  return set(re.findall(r'"([^"]+)",\s*# keep', text))


class Packages:
  """Which distribution of @pypi has which module."""

  def __init__(self, site: pathlib.Path):
    """Reads the metadata of all distributions in a site-packages folder."""
    self._owner = {}
    for distribution in importlib.metadata.distributions(path=[str(site)]):
      label = "@pypi//" + re.sub(r"[-_.]+", "_", distribution.name).lower()
      for path in distribution.files or []:
        if path.suffix not in (".py", ".so", ".pyi"):
          continue
        parts = [*path.parts[:-1], path.name.split(".")[0]]
        if parts[-1] == "__init__":
          parts.pop()
        self._owner[".".join(parts)] = label

  def label(self, name: str) -> str | None:
    """Returns the label that has a module, or the module a name is in."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
      label = self._owner.get(".".join(parts[:length]))
      if label:
        return label
    return None


def is_standard(name: str) -> bool:
  """Returns whether a name comes with Python: its library, and pip."""
  return name.split(".")[0] in {*sys.stdlib_module_names, "pip"}
