"""Resolves requirements.in into one hash-locked file per accelerator.

requirements_clients.in and requirements_beam.in are resolved for themselves.

    ./bazelw run //third_party/python:lock                # what changed
    ./bazelw run //third_party/python:lock -- --upgrade   # newest versions

Arguments go to `uv pip compile`. The files hold for every platform that the
packages have wheels for, and name no index.
"""

import os
import pathlib
import subprocess
import sys

import uv

from third_party.python import install

_EXTRAS = {"cpu": "", "cuda": "[cuda13]", "tpu": "[tpu]"}
# They have no wheels, and nothing is built from source here. lm-eval imports
# them where a task scores summaries, or its cache is asked for.
_NO_WHEELS = ("rouge-score", "sqlitedict", "word2number")
# The version that Beam itself asks for from Python 3.13 on: the one that it
# asks for before has no wheel.
_WITH_WHEELS = ("google-apitools>=0.5.35",)
# Resolved for themselves: what uv reads as the file `-`, and what is in it.
_OTHERS = {
  "beam": ("--overrides", _WITH_WHEELS),
  "clients": ("--excludes", _NO_WHEELS),
}


def compile_command(name, args):
  """Returns the uv command that writes requirements_<name>.txt."""
  command = [
    *(uv.find_uv_bin(), "pip", "compile", "--quiet", "--universal"),
    *("--python-version", "3.12", "--python", sys.executable),
    *("--generate-hashes", "--no-strip-extras", "--no-emit-index-url"),
    *("--custom-compile-command", "./bazelw run //third_party/python:lock"),
    *("--output-file", f"requirements_{name}.txt"),
  ]
  if name in _OTHERS:
    return [*command, f"requirements_{name}.in", _OTHERS[name][0], "-", *args]
  command += ["requirements.in", "-"]
  # The accelerators differ by what they add, not by version.
  if name != "cpu":
    command += ["--constraints", "requirements_cpu.txt"]
  return command + args


def standard_input(name):
  """Returns what the command reads as the file `-`."""
  if name in _OTHERS:
    return "\n".join(_OTHERS[name][1])
  return f"jax{_EXTRAS[name]}"


def main(args):
  """Locks every accelerator's requirements, the CPU's first; then others."""
  folder = pathlib.Path(
    os.environ["BUILD_WORKSPACE_DIRECTORY"], "third_party/python"
  )
  for name in (*_EXTRAS, *_OTHERS):
    print(f"requirements_{name}.txt", flush=True)
    subprocess.run(
      compile_command(name, args),
      cwd=folder,
      env=install.uv_environment(),
      input=standard_input(name),
      text=True,
      check=True,
    )


if __name__ == "__main__":
  main(sys.argv[1:])
