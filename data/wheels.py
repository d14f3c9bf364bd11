"""Gets the packages of a lock file, without running or importing them.

Text comes from package registries because every place that can install our
dependencies can reach one, and because a lock pins it by sha256. The user's own
installer is asked, so mirrors, proxies and certificates work as they do for
everything else: pip, which reads pip.conf, or uv where Python has no pip.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import uv

# uv does not read pip's settings; a user behind a mirror often has only these.
_PIP_TO_UV = {
  "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
  "PIP_EXTRA_INDEX_URL": "UV_INDEX",
  "PIP_FIND_LINKS": "UV_FIND_LINKS",
  "PIP_CERT": "SSL_CERT_FILE",
}


def unpack(
  lock: pathlib.Path, target: pathlib.Path, *, wheels: pathlib.Path
) -> None:
  """Unpacks the locked packages into `target`, all or nothing.

  Args:
    lock: requirements with versions and sha256 digests.
    target: directory to make; if it exists it is complete, and left as is.
    wheels: if this directory exists the packages are taken from it, and the
      network is not used.

  Raises:
    ValueError: a package cannot be had, or does not have the locked digest.
  """
  if target.is_dir():
    return
  partial = target.with_name(target.name + ".partial")
  offline = wheels.is_dir()
  failures = []
  for tool, command, environment in _installers():
    shutil.rmtree(partial, ignore_errors=True)
    command = [*command, "--no-deps", "--require-hashes", "--only-binary=:all:"]
    if offline:
      command += ["--no-index", f"--find-links={wheels}"]
    command += [f"--target={partial}", "-r", str(lock)]
    done = subprocess.run(command, env=environment, capture_output=True)
    if done.returncode == 0:
      partial.rename(target)
      return
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    failures.append(f"{tool}: " + "\n".join(lines[-12:]))
  shutil.rmtree(partial, ignore_errors=True)
  raise ValueError(
    f"cannot get the packages of {lock} "
    + (f"from {wheels}" if offline else "from the package index")
    + "\n"
    + "\n".join(failures)
    + f"\nThe packages are {', '.join(_pins(lock))}. Without a network: run"
    f" `pip download --no-deps --only-binary=:all: -r {lock} -d wheels` where"
    f" there is one and put the wheels in {wheels}. With a mirror: set its"
    " address in pip.conf or PIP_INDEX_URL, and its certificate in PIP_CERT."
  )


def _installers() -> list[tuple[str, list[str], dict[str, str]]]:
  """Name, command and environment of the installers, the best first."""
  environment = dict(os.environ)
  installers = []
  if importlib.util.find_spec("pip") is not None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += ["--no-input", "--disable-pip-version-check"]
    installers.append(("pip", pip, environment))
  for theirs, ours in _PIP_TO_UV.items():
    if theirs in environment:
      environment = {ours: environment[theirs], **environment}
  command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-cache"]
  command += [f"--python={sys.executable}"]
  installers.append(("uv", command, environment))
  return installers


def _pins(lock: pathlib.Path) -> list[str]:
  lines = lock.read_text(encoding="utf-8").splitlines()
  return [line.split()[0] for line in lines if "==" in line]
