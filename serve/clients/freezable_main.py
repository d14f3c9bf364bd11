"""The server, but that its decode loop stands still while $CACAO_FREEZE exists.

Takes the arguments of `serve.main`. A step that is launched then never ends, as
when a device hangs; all else is as users have it.
"""

import os
import pathlib
import runpy
import time
from unittest import mock

from serve import batch
from serve import runner

_FILE = pathlib.Path(os.environ["CACAO_FREEZE"])
_result = runner.Handle.result


def _wait_and_result(handle: runner.Handle) -> list[batch.RowResult]:
  while _FILE.exists():
    time.sleep(0.01)
  return _result(handle)


if __name__ == "__main__":
  with mock.patch.object(runner.Handle, "result", _wait_and_result):
    runpy.run_module("serve.main", run_name="__main__", alter_sys=True)
