"""Resolves requirements.in into one hash-locked file per accelerator.

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


def compile_command(accelerator, args):
  """Returns the uv command that locks one accelerator's requirements."""
  command = [
    *(uv.find_uv_bin(), "pip", "compile", "--quiet", "--universal"),
    *("--python-version", "3.12", "--python", sys.executable),
    *("--generate-hashes", "--no-strip-extras", "--no-emit-index-url"),
    *("--custom-compile-command", "./bazelw run //third_party/python:lock"),
    *("--output-file", f"requirements_{accelerator}.txt"),
    *("requirements.in", "-"),
  ]
  # The accelerators differ by what they add, not by version.
  if accelerator != "cpu":
    command += ["--constraints", "requirements_cpu.txt"]
  return command + args


def main(args):
  """Locks every accelerator's requirements, the CPU's first."""
  folder = pathlib.Path(
    os.environ["BUILD_WORKSPACE_DIRECTORY"], "third_party/python"
  )
  for accelerator, extras in _EXTRAS.items():
    print(f"requirements_{accelerator}.txt", flush=True)
    subprocess.run(
      compile_command(accelerator, args),
      cwd=folder,
      env=install.uv_environment(),
      input=f"jax{extras}\n",
      text=True,
      check=True,
    )


if __name__ == "__main__":
  main(sys.argv[1:])
