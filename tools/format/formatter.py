"""Formats and lints the tree: Python with ruff, Bazel files with buildifier.

ruff is a locked package of third_party/python. buildifier is an npm package,
locked beside this file; npm installs it into the user's cache, once, with the
user's settings.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import ruff

_BAZEL_FILES = ("BUILD", "MODULE.bazel", "WORKSPACE")


def bazel_files(root):
  """Returns the tree's BUILD and .bzl files, no hidden or generated ones."""
  found = []
  for folder, folders, files in root.walk():
    folders[:] = sorted(
      name for name in folders if not name.startswith((".", "bazel-"))
    )
    found += [
      folder / name
      for name in sorted(files)
      if name in _BAZEL_FILES or name.endswith(".bzl")
    ]
  return found


def ruff_commands(root, *, check):
  """Returns the commands that format (or check) the Python files."""
  program = pathlib.Path(ruff.__file__).parents[1] / "bin/ruff"
  settings = ["--quiet", "--no-cache", "--config", root / "pyproject.toml"]
  lint = [program, "check", *settings, *([] if check else ["--fix"]), root]
  layout = [program, "format", *settings, *(["--diff"] if check else []), root]
  return [lint, layout]


def buildifier_command(root, program, *, check):
  """Returns the command that formats (or checks) the Bazel files."""
  mode = ["-mode=diff", "-lint=warn"] if check else ["-mode=fix", "-lint=fix"]
  return [program, *mode, *bazel_files(root)]


def install_buildifier(package):
  """Returns the buildifier of a folder with a package-lock.json.

  Args:
    package: the folder. npm checks what it downloads against the lock.

  Raises:
    SystemExit: there is no npm, or it could not install the package.
  """
  lock = (package / "package-lock.json").read_bytes()
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  target = pathlib.Path(cache, "cacao", "buildifier")
  program = target / "node_modules/.bin/buildifier"
  if program.exists() and (target / "package-lock.json").read_bytes() == lock:
    return program
  npm = shutil.which("npm")
  if not npm:
    raise SystemExit(
      "No npm on PATH: buildifier, which formats the Bazel files, is an npm"
      " package. Fix: install Node.js; Debian: apt-get install npm"
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
    for name in ("package.json", "package-lock.json"):
      shutil.copy(package / name, scratch)
    result = subprocess.run(
      [npm, "ci", "--no-audit", "--no-fund", "--prefix", scratch],
      capture_output=True,
      text=True,
    )
    if result.returncode:
      raise SystemExit(
        f"npm could not install buildifier:\n{result.stderr}"
        "Fix: check npm's registry and proxy with `npm config list`."
      )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scratch, target, symlinks=True)
  return program


def main(args):
  """Runs every formatter, and says what is left to do by hand."""
  if args not in ([], ["--check"]):
    raise SystemExit(f"arguments {args}: there is only --check")
  check = args == ["--check"]
  root = pathlib.Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
  buildifier = install_buildifier(root / "tools/format")
  commands = [
    *ruff_commands(root, check=check),
    buildifier_command(root, buildifier, check=check),
  ]
  codes = [subprocess.run(command, cwd=root).returncode for command in commands]
  if any(codes):
    sys.exit("Fix: ./bazelw run //tools:format" if check else 1)


if __name__ == "__main__":
  main(sys.argv[1:])
