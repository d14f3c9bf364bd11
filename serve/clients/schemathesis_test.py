"""Schemathesis finds nothing wrong between /openapi.json and the real server.

It sends what the document allows and what it forbids, to all operations, with
probes such as NUL characters, and checks status, headers and bodies.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest

from serve.clients import fixtures

_SECONDS = 1500
_NUM_EXAMPLES = 50
_PROGRAM = """
import sys
from schemathesis import cli

sys.exit(cli.schemathesis())
"""
# What a text must be to be a grammar, a schema cannot say; nor which time is
# enough.
_HOOKS = """
import schemathesis


@schemathesis.hook
def filter_case(context, case):
  body = case.body
  if not isinstance(body, dict):
    return True
  seconds = body.get("timeout")
  if type(seconds) in (int, float) and 0 < seconds < 60:
    return False
  outputs = body.get("structured_outputs")
  if isinstance(outputs, dict) and (
    outputs.get("grammar") or outputs.get("regex") or outputs.get("json")
  ):
    return False
  return not any(
    body.get(field)
    for field in ("guided_grammar", "guided_regex", "guided_json")
  )
"""


class SchemathesisTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    model = fixtures.Model(cls.folder)
    cls.server = cls.enterClassContext(fixtures.Server(model, cls.folder))

  def test_nothing_is_found(self):
    hooks = self.folder / "hooks.py"
    hooks.write_text(_HOOKS)
    # Of the server's other routes no document tells.
    made = subprocess.run(
      [
        *(sys.executable, "-c", _PROGRAM, "run"),
        f"{self.server.url}/openapi.json",
        f"--max-examples={_NUM_EXAMPLES}",
        *("--mode=all", "--phases=examples,coverage,fuzzing"),
        *("--checks=all", "--generation-deterministic", "--no-color"),
        *("--suppress-health-check=all", "--request-timeout=60"),
      ],
      env=fixtures.environment() | {"SCHEMATHESIS_HOOKS": str(hooks)},
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=_SECONDS,
    )
    self.assertEqual(made.returncode, 0, made.stdout)
    tested = re.search(r"Tested: (\d+)", made.stdout)
    self.assertIsNotNone(tested, made.stdout)
    self.assertGreaterEqual(int(tested[1]), 7)
    # It still answers, and has made no mistakes that it knows of.
    status, _ = self.server.ask("GET", "/readyz")
    self.assertEqual(status, 200)
    self.assertNotIn("Traceback", "".join(self.server.log))


if __name__ == "__main__":
  absltest.main()
