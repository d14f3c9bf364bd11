"""Checks what the documents say: their commands, their links."""

from collections.abc import Iterator
import pathlib
import re

from tools import source_tree

_COMMAND = re.compile(r"\./bazelw [^`#\n]*")
_LABEL = re.compile(r"(?<![\w@:])//[\w./-]*(?::[\w./-]+)?")
_CONFIG = re.compile(r"--config[= ]([\w./-]+)")
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


def _commands(lines: list[str]) -> Iterator[tuple[int, str]]:
  """Yields (line, command) of each ./bazelw command, joined where continued."""
  for number, line in enumerate(lines, start=1):
    rest = number
    while line.endswith("\\") and rest < len(lines):
      line = line.removesuffix("\\") + lines[rest]
      rest += 1
    for command in _COMMAND.findall(line):
      yield number, command


def check(root: pathlib.Path) -> list[source_tree.Problem]:
  """Returns the problems of every .md file of a tree."""
  labels = {
    target.label
    for path in source_tree.files(root, "BUILD")
    for target in source_tree.targets(root, path)
  }
  packages = {label.split(":")[0] for label in labels}
  bazelrc = (root / ".bazelrc").read_text()

  def exists(label: str) -> bool:
    if label.endswith("..."):
      prefix = label.removesuffix("...").rstrip("/")
      return any(f"{p}/".startswith(f"{prefix}/") for p in packages)
    if label.endswith(":all"):
      return label.removesuffix(":all") in packages
    return source_tree.absolute_label(label, "") in labels

  problems = []
  for path in source_tree.files(root, "*.md"):
    lines = (root / path).read_text().splitlines()
    for line, command in _commands(lines):
      for label in _LABEL.findall(command):
        if not exists(label):
          problems.append((path, line, f"{label} is not a target"))
      for config in _CONFIG.findall(command):
        if config.endswith(".py"):
          if not config.startswith("/") and not (root / config).is_file():
            problems.append((path, line, f"{config} is not a file"))
        elif f":{config} " not in bazelrc:
          problems.append((path, line, f".bazelrc has no --config={config}"))
    for number, line in enumerate(lines, start=1):
      for link in _LINK.findall(line):
        if "://" in link or link.startswith("mailto:"):
          continue
        if not (root / path).parent.joinpath(link).exists():
          problems.append((path, number, f"{link} leads nowhere"))
  fix = ". Fix: the document, or what it is about"
  return sorted(
    source_tree.Problem(path, line, message + fix)
    for path, line, message in problems
  )
