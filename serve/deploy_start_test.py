import contextlib
import io
import pathlib
import sys
from unittest import mock

from absl.testing import absltest

from serve import deploy_start

_MAIN = """\
'''What it does.'''
import sys
import own, packed
def here(): pass
if __name__ == "__main__":
  print(sys.argv, own.VALUE, packed.VALUE, __file__, __doc__)
  print(sys.modules["__main__"].here is here)
"""


class StartTest(absltest.TestCase):
  def test_start(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    for file, content in {
      "main": "some/main.py",
      "app/some/main.py": _MAIN,
      "app/own.py": "VALUE = 1",
      "packages/own.py": "VALUE = 2",
      "packages/packed.py": "VALUE = 3",
    }.items():
      (root / file).parent.mkdir(parents=True, exist_ok=True)
      (root / file).write_text(content)
    out = io.StringIO()
    with (
      mock.patch.dict(sys.modules),
      mock.patch.object(sys, "path", list(sys.path)),
      mock.patch.object(sys, "argv", ["start.py"]),
      contextlib.redirect_stdout(out),
    ):
      deploy_start.start(str(root), ["program", "--flag"])
    self.assertEqual(
      out.getvalue(),
      f"['program', '--flag'] 1 3 {root}/app/some/main.py What it does.\n"
      "True\n",
    )


if __name__ == "__main__":
  absltest.main()
