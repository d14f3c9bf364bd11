"""Runs a test file as a program, and fails if no test ran.

The main of every `py_test` of //tools:py.bzl. A test file that forgets
`absltest.main()`, and a filter that selects nothing, end well on their own.
A shard with no test is fine as long as another has one; so is a skipped test.
"""

import os
import pathlib
import runpy
import sys
import unittest

_ROOT = pathlib.Path(__file__).parents[1]


def count_calls(cls, method, amount):
  """Wraps a method so that it counts `amount(its result)`.

  Args:
    cls: the class that has the method.
    method: its name.
    amount: function of what a call returned.

  Returns:
    A list with one element, the count.
  """
  original = getattr(cls, method)
  count = [0]

  def counting(*args, **kwargs):
    result = original(*args, **kwargs)
    count[0] += amount(result)
    return result

  setattr(cls, method, counting)
  return count


def main(argv):
  """Runs `argv[0]`, a path from the root of the tree, as `__main__`."""
  if "TEST_TMPDIR" in os.environ:  # Not the user's cache directory.
    os.environ["XDG_CACHE_HOME"] = os.environ["TEST_TMPDIR"] + "/cache"
  # Found before sharding, started after it.
  found = count_calls(unittest.TestLoader, "getTestCaseNames", len)
  started = count_calls(unittest.TestResult, "startTest", lambda _: 1)
  skipped = count_calls(unittest.TestResult, "addSkip", lambda _: 1)
  path = str(_ROOT / argv[0])
  sys.argv = [path, *argv[1:]]
  code = None
  try:
    runpy.run_path(path, run_name="__main__")
  except SystemExit as end:
    code = end.code
  if not code and not (started[0] or skipped[0] or found[0]):
    code = (
      f"{argv[0]}: no test ran. Fix: end the file with `if __name__ =="
      ' "__main__": absltest.main()`, and check --test_filter if one was given.'
    )
  sys.exit(code)


if __name__ == "__main__":
  main(sys.argv[1:])
