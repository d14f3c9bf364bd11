"""Installs a hash-locked requirements file and describes it to Bazel.

Run by `extension.bzl` as `install.py LOCK DEST` with the interpreter that the
packages are for; plain Python, standard library only. Writes

    DEST/site-packages/        the packages, byte-compiled
    DEST/BUILD                 exports their files
    DEST/<distribution>/BUILD  one py_library each
    DEST/accelerator           which lock it is: `cpu` of requirements_cpu.txt

uv installs (seconds where pip takes minutes), and pip, which every Python
has, only fetches uv. uv is told the user's pip settings, which it would not
read by itself.
"""

import ast
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from pip._vendor.packaging import requirements


def normalise(name):
  """Returns the Bazel package of a distribution: `ml-dtypes` -> `ml_dtypes`."""
  return re.sub(r"[-_.]+", "_", name).lower()


def asked_for(lock):
  """Returns the lock's requirements, parsed."""
  return [
    requirements.Requirement(line.rstrip("\\ "))
    for line in lock.read_text().splitlines()
    if re.match(r"\w", line)
  ]


def locked_requirement(lock, name):
  """Returns the lines of one requirement of the lock, with its hashes."""
  match = re.search(
    rf"^{name}==.*(?:\n +.*)*", lock.read_text(), flags=re.MULTILINE
  )
  if not match:
    raise SystemExit(f"{lock} locks no {name}: add it to requirements.in")
  return match.group()


def uv_environment():
  """Returns the environment that gives uv the settings pip has."""
  env = dict(os.environ)
  listed = subprocess.run(
    [sys.executable, "-m", "pip", "config", "list"],
    capture_output=True,
    text=True,
  ).stdout
  # Lines such as `global.index-url='https://...'`, the strongest place last.
  config = {}
  for place in ("global", "user", "site", ":env:"):
    for line in listed.splitlines():
      key, _, value = line.partition("=")
      if key.startswith(f"{place}."):
        option = key.removeprefix(f"{place}.").removeprefix("install.")
        config[option] = " ".join(ast.literal_eval(value).split())
  translated = {
    "UV_DEFAULT_INDEX": config.get("index-url"),
    "UV_INDEX": config.get("extra-index-url"),
    "UV_FIND_LINKS": config.get("find-links", "").replace(" ", ","),
    "UV_INSECURE_HOST": config.get("trusted-host"),
    "SSL_CERT_FILE": config.get("cert"),
    "UV_HTTP_TIMEOUT": config.get("default-timeout", config.get("timeout")),
    # As pip does; the hashes say which file it has to be.
    "UV_INDEX_STRATEGY": "unsafe-best-match",
  }
  for name, value in translated.items():
    if value:
      env.setdefault(name, value)
  return env


def run(command, env=None):
  """Runs a command; its failure ends the program with what it printed."""
  result = subprocess.run(
    command,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  if result.returncode:
    raise SystemExit(result.stdout)


def install(lock, site):
  """Installs the lock's wheels, each checked against its hashes."""
  with tempfile.TemporaryDirectory() as scratch:
    only_uv = pathlib.Path(scratch, "uv.txt")
    only_uv.write_text(locked_requirement(lock, "uv"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    wheels = ["--only-binary=:all:", "--require-hashes"]
    run([*pip, *wheels, "--target", f"{scratch}/uv", "--requirement", only_uv])
    run(
      [
        *(f"{scratch}/uv/bin/uv", "pip", "install", "--quiet", "--no-deps"),
        *wheels,
        *("--python", sys.executable, "--target", site, "--requirement", lock),
        "--compile-bytecode",
      ],
      # The files never change once installed: no need to compare their times.
      env=uv_environment() | {"PYC_INVALIDATION_MODE": "UNCHECKED_HASH"},
    )
  # A wheel's own BUILD files would cut its folders into Bazel packages.
  for name in ["BUILD", "BUILD.bazel"]:
    for file in site.rglob(name):
      file.unlink()


def dependencies(distributions, asked):
  """Returns distribution -> the installed distributions it depends on.

  Args:
    distributions: name -> importlib.metadata.Distribution.
    asked: the lock's requirements, whose extras count (`jax[tpu]`).
  """
  graph = {name: set() for name in distributions}
  todo = [
    (normalise(r.name), extra) for r in asked for extra in ["", *r.extras]
  ]
  seen = set()
  while todo:
    name, extra = node = todo.pop()
    if node in seen or name not in distributions:
      continue
    seen.add(node)
    for line in distributions[name].requires or []:
      needed = requirements.Requirement(line)
      if needed.marker and not needed.marker.evaluate({"extra": extra}):
        continue
      other = normalise(needed.name)
      todo += [(other, extra) for extra in ["", *needed.extras]]
      graph[name] |= {other} & distributions.keys() - {name}
  return graph


def components(graph):
  """Returns node -> all nodes in a dependency cycle with it, and itself."""

  def reach(start):
    seen, todo = set(), [start]
    while todo:
      new = graph[todo.pop()] - seen
      seen |= new
      todo += new
    return seen

  reachable = {node: reach(node) for node in graph}
  return {
    node: {node} | {n for n in reachable[node] if node in reachable[n]}
    for node in graph
  }


def py_library(name, data, deps):
  """Returns the BUILD file of one distribution."""

  def lines(labels):
    return "".join(
      f"\n        {json.dumps(label)}," for label in sorted(labels)
    )

  return f"""\
load("@rules_python//python:defs.bzl", "py_library")

py_library(
    name = "{name}",
    data = [{lines(data)}
    ],
    imports = ["../site-packages"],
    visibility = ["//visibility:public"],
    deps = [{lines(deps)}
    ],
)
"""


def main(lock, dest):
  """Installs `lock` below `dest`, and writes the BUILD files there."""
  lock, dest = pathlib.Path(lock), pathlib.Path(dest)
  site = dest / "site-packages"
  install(lock, site)

  distributions = {
    normalise(distribution.name): distribution
    for distribution in importlib.metadata.distributions(path=[str(site)])
  }
  # Whole folders, each one symlink in a program's runfiles where its files
  # would be thousands. A folder that several share, all of them list.
  entries = {
    name: {
      f"site-packages/{path.parts[0]}" for path in distribution.files or ()
    }
    for name, distribution in distributions.items()
  }
  graph = dependencies(distributions, asked_for(lock))
  cycle = components(graph)
  for name in distributions:
    package = dest / name
    package.mkdir()
    # All of a cycle's distributions have all of its files and dependencies.
    (package / "BUILD").write_text(
      py_library(
        name,
        data=[
          f"//:{path}" for member in cycle[name] for path in entries[member]
        ],
        deps=[
          f"//{dep}"
          for member in cycle[name]
          for dep in graph[member] - cycle[name]
        ],
      )
    )
  accelerator = lock.stem.removeprefix("requirements_")
  (dest / "accelerator").write_text(f"{accelerator}\n")
  exported = json.dumps(sorted({"accelerator"}.union(*entries.values())))
  (dest / "BUILD").write_text(f"exports_files({exported})\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
