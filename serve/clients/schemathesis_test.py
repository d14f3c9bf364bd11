"""Schemathesis finds nothing wrong between /openapi.json and the real server.

It sends what the document allows and what it forbids, to all operations, with
probes such as NUL characters, and checks status, headers and bodies. No request
is left out. What the document allows must be accepted, but where no schema can
tell that it cannot be: which texts are grammars, regexes or schemas that can be
followed; which names are in another list; which of two numbers is larger; how
many tokens a text has; and which `timeout` is enough. Such a refusal must be
the documented one of that field: a 400 whose `param` names it, or a 408.
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
_MAX_CHOICES = 4
_PROGRAM = """
import sys
from schemathesis import cli

sys.exit(cli.schemathesis())
"""
_HOOKS = """
import schemathesis
from schemathesis.specs.openapi import checks

PATTERNS = {
  "structured_outputs.grammar",
  "structured_outputs.regex",
  "structured_outputs.json",
  "guided_grammar",
  "guided_regex",
  "guided_json",
  "response_format.json_schema.schema",
  # Schemas of their arguments; and names, each of which may be there once.
  "tools",
  # A name that must be in `tools`, or tools that must be there.
  "tool_choice",
}


def may_refuse(status, error, body):
  param, code = error["param"], error["code"]
  if status == 408:
    return body.get("timeout", 60) < 60
  if status != 400:
    return False
  if code == "context_length_exceeded":
    return param in ("prompt", "messages", "input", "max_tokens")
  if param in PATTERNS:
    return code in ("invalid_value", "unsupported_value")
  n, best_of = body.get("n") or 1, body.get("best_of")
  if param in ("n", "best_of"):
    num = max(n, best_of or 1)
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    total = num * (len(prompt) if several else 1)
    return total > MAX_CHOICES or best_of is not None and best_of < n
  if param == "min_tokens":
    return body["min_tokens"] > 0
  if param == "stream_options":
    return not body.get("stream")
  return False


@schemathesis.check
def what_is_allowed_is_accepted(ctx, response, case):
  try:
    return checks.positive_data_acceptance(ctx, response, case)
  except AssertionError:
    error = response.json()["error"]
    if not may_refuse(response.status_code, error, case.body):
      raise
"""


class SchemathesisTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    model = fixtures.Model(cls.folder)
    cls.server = cls.enterClassContext(
      fixtures.Server(model, cls.folder, api__max_choices=_MAX_CHOICES)
    )

  def test_nothing_is_found(self):
    hooks = self.folder / "hooks.py"
    hooks.write_text(f"MAX_CHOICES = {_MAX_CHOICES}\n{_HOOKS}")
    # Of the server's other routes no document tells.
    made = subprocess.run(
      [
        *(sys.executable, "-c", _PROGRAM, "run"),
        f"{self.server.url}/openapi.json",
        f"--max-examples={_NUM_EXAMPLES}",
        *("--mode=all", "--phases=examples,coverage,fuzzing"),
        *("--checks=all", "--exclude-checks=positive_data_acceptance"),
        *("--generation-deterministic", "--generation-allow-x00=true"),
        "--no-color",
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
