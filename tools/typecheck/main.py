"""Checks the tree's types with pyrefly, against the packages of @pypi."""

import os
import pathlib
import subprocess
import sys

import pyrefly


def main(args):
  """Runs `pyrefly check`, with its settings in pyproject.toml."""
  root = pathlib.Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
  # The folder of all packages: a program's runfiles have only its own.
  packages = pathlib.Path(pyrefly.__file__).resolve().parents[1]
  command = [
    *(packages / "bin/pyrefly", "check", "--config", root / "pyproject.toml"),
    *("--site-package-path", packages, "--python-interpreter-path"),
    *(sys.executable, *args),
  ]
  # Bazel's import path is of this program, not of the tree.
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  sys.exit(subprocess.run(command, cwd=root, env=env).returncode)


if __name__ == "__main__":
  main(sys.argv[1:])
