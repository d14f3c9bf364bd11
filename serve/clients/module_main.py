"""Runs a module of @pypi_clients as its program: `module_main lm_eval --help`.

Tests start it: the clients' packages and the server's cannot be in one process.
"""

import runpy
import sys

if __name__ == "__main__":
  if len(sys.argv) < 2:
    sys.exit("Usage: module_main MODULE [ARGUMENTS]")
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
