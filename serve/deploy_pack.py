"""Packs a Python program and all it needs into one executable file.

Run by `deploy.bzl`. The same inputs give the same bytes: entries are sorted,
have one date and no owner, and compiled code does not say where it was
compiled. The file is `deploy.sh`, then a zip archive:

  __main__.py       deploy_unpack.py
  tree/start.py     deploy_start.py
  tree/main         the program's file, relative to tree/app
  tree/app/         the program's sources and data
  tree/packages/    installed packages
"""

import argparse
from collections.abc import Iterable, Iterator
from concurrent import futures
import functools
import hashlib
import importlib.util
import json
import marshal
import multiprocessing
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import warnings
import zipfile

# The first that a zip archive can say.
_DATE = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
# 78 MB/s; 6 makes it 5% smaller at half the speed.
_LEVEL = 3
# Programs of packages, which name the interpreter of the machine they were
# installed on. Folders called `tests` stay: numpy.testing imports from one.
_LEFT_OUT = ("tree/packages/bin/",)


def entries(
  items: Iterable[tuple[str, pathlib.Path]],
) -> Iterator[tuple[str, pathlib.Path]]:
  """Name in the archive and path of every file, sorted, folders opened.

  Args:
    items: Names and paths of files and folders.
  """
  found: dict[str, pathlib.Path] = {}
  for name, path in items:
    if not path.is_dir():
      found[name] = path
      continue
    for root, _, files in os.walk(path, followlinks=True):
      relative = pathlib.PurePosixPath(name, os.path.relpath(root, path))
      for file in files:
        found[str(relative / file)] = pathlib.Path(root, file)
  for name in sorted(found):
    if "/__pycache__/" not in name and not name.startswith(_LEFT_OUT):
      yield name, found[name]


def compiled(name: str, path: pathlib.Path) -> bytes | None:
  """What Python would keep of a source file; None if it cannot compile it.

  It is not compared with the source at the start, and names it relative to the
  tree, until it is loaded from somewhere.
  """
  source = path.read_bytes()
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      code = compile(
        source, name.removeprefix("tree/"), "exec", dont_inherit=True
      )
  except (SyntaxError, ValueError):
    # Packages have templates and examples for other versions.
    return None
  flags = (0b01).to_bytes(4, "little")
  digest = importlib.util.source_hash(source)
  return importlib.util.MAGIC_NUMBER + flags + digest + marshal.dumps(code)


def _compile_entry(entry: tuple[str, pathlib.Path]) -> bytes | None:
  return compiled(*entry)


def cache_name(name: str) -> str:
  """Where Python looks for a source file's compiled form."""
  folder, _, file = name.rpartition("/")
  tag = sys.implementation.cache_tag
  return f"{folder}/__pycache__/{file.removesuffix('.py')}.{tag}.pyc"


class _Archive:
  """A zip file whose bytes depend on its contents alone."""

  def __init__(self, path: pathlib.Path):
    self._file = zipfile.ZipFile(path, "w")

  def __enter__(self) -> "_Archive":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()

  def add(self, name: str, content: bytes, *, executable: bool = False) -> None:
    """Adds a file."""
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix: it has permissions.
    entry.external_attr = (0o100755 if executable else 0o100644) << 16
    self._file.writestr(entry, content, compresslevel=_LEVEL)

  def copy(self, name: str, path: pathlib.Path) -> None:
    """Adds a file that exists."""
    self.add(name, path.read_bytes(), executable=os.access(path, os.X_OK))


def write_archive(
  archive: pathlib.Path,
  items: Iterable[tuple[str, pathlib.Path]],
  *,
  main: str,
  unpack: pathlib.Path,
  start: pathlib.Path,
  num_workers: int,
) -> None:
  """Writes the zip file; sources are compiled on `num_workers` processes."""
  files = list(entries(items))
  sources = [entry for entry in files if entry[0].endswith(".py")]
  assert f"tree/app/{main}" in dict(sources), main
  context = multiprocessing.get_context("spawn")
  with (
    _Archive(archive) as target,
    futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool,
  ):
    target.copy("__main__.py", unpack)
    target.copy("tree/start.py", start)
    target.add("tree/main", main.encode())
    codes = pool.map(_compile_entry, sources, chunksize=32)
    for name, path in files:
      target.copy(name, path)
      if name.endswith(".py"):
        code = next(codes)
        if code is not None:
          target.add(cache_name(name), code)


def header(template: str, archive: pathlib.Path, **values: str) -> bytes:
  """The script before an archive.

  Args:
    template: Has `@NAME@` where the value of `name` goes.
    archive: The zip file that follows.
    **values: The rest; DIGEST and SIZE are of the archive.
  """
  with archive.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  version = tuple(sys.version_info[:2])
  values |= {
    "digest": digest[:16],
    "machine": platform.machine(),
    "python": ".".join(map(str, version)),
    "system": platform.system(),
    "version": json.dumps([sys.implementation.name, *version]),
  }
  for name, value in values.items():
    template = template.replace(f"@{name.upper()}@", value)
  # The size counts its own digits.
  size = archive.stat().st_size
  script = functools.partial(template.replace, "@SIZE@")
  total = size + len(script("0" * len(str(size + len(template)))).encode())
  content = script(str(total)).encode()
  assert len(content) + size == total
  return content


def main(args: list[str]) -> None:
  """Packs what the arguments name."""
  parser = argparse.ArgumentParser(fromfile_prefix_chars="@")
  for name in ("output", "name", "main", "template", "unpack", "start"):
    parser.add_argument(f"--{name}", required=True)
  parser.add_argument("--accelerator", required=True, type=pathlib.Path)
  parser.add_argument("--item", action="append", default=[])
  parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1)
  flags = parser.parse_args(args)
  items = [item.split("=", 1) for item in flags.item]
  output = pathlib.Path(flags.output)
  with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
    archive = pathlib.Path(scratch, "archive.zip")
    write_archive(
      archive,
      [(name, pathlib.Path(path)) for name, path in items],
      main=flags.main,
      unpack=pathlib.Path(flags.unpack),
      start=pathlib.Path(flags.start),
      num_workers=flags.num_workers,
    )
    script = header(
      pathlib.Path(flags.template).read_text(),
      archive,
      name=flags.name,
      accelerator=flags.accelerator.read_text().strip(),
    )
    with output.open("wb") as target, archive.open("rb") as source:
      target.write(script)
      shutil.copyfileobj(source, target, _CHUNK)
  output.chmod(0o755)


if __name__ == "__main__":
  main(sys.argv[1:])
