"""The program as it is started: mistakes, a model served, signals."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from absl.testing import absltest

from serve import checkpoint_fixtures

_SECONDS = 240


class MainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def _start(self, *arguments):
    process = subprocess.Popen(
      [sys.executable, "-m", "serve.main", *arguments],
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAX_PLATFORMS": "cpu",
        "BUILD_WORKING_DIRECTORY": str(self.root),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    return process

  def _assert_refused(self, message, *arguments):
    process = self._start(*arguments)
    _, log = process.communicate(timeout=_SECONDS)
    self.assertEqual(process.returncode, 1, log)
    self.assertRegex(log, f"^Error: .*{message}")
    self.assertLen(log.splitlines(), 1)

  def test_an_unprotected_server_is_refused(self):
    self._assert_refused("--api_keys=FILE", "--checkpoint=.", "--host=0.0.0.0")

  def test_an_unknown_setting_is_refused(self):
    self._assert_refused("prot.*port", "--checkpoint=.", "--config.api.prot=80")

  def test_serves_a_checkpoint_until_a_signal(self):
    tokenizer = checkpoint_fixtures.write_tokenizer(self.root / "tokenizer")
    checkpoint_fixtures.write(
      self.root / "run" / "checkpoints", step=3, tokenizer=tokenizer
    )
    process = self._start(
      *(
        "--checkpoint=run",
        "--port=0",
        "--watch",
        "--config.api.model_name=me",
      ),
      "--config.runner.max_rows=2",
      *("--config.runner.prefill_tokens=32", f"--import_folder={self.root}/in"),
      "--config.runner.compilation_cache=",
    )
    log = []
    assert process.stderr is not None
    for line in process.stderr:
      log.append(line)
      if "Ready after" in line:
        break
    else:
      self.fail("".join(log))
    ((host, port),) = re.findall(r"http://([\w.]+):(\d+)", log[-1])
    connection = http.client.HTTPConnection(host, int(port), timeout=60)

    def ask(method, path, body=None):
      headers = {"Content-Type": "application/json"}
      connection.request(method, path, body and json.dumps(body), headers)
      response = connection.getresponse()
      return response.status, response.read().decode()

    self.assertEqual(ask("GET", "/readyz")[0], 200)
    body = {"model": "me", "prompt": "In the", "max_tokens": 9, "seed": 1}
    status, answer = ask("POST", "/v1/completions", body)
    self.assertEqual(status, 200, answer)
    self.assertEqual(json.loads(answer)["system_fingerprint"], "step-3")
    _, figures = ask("GET", "/metrics")
    label = '{model_name="me"}'
    self.assertIn(f"cacao:checkpoint_step{label} 3.0", figures)
    self.assertIn(f"cacao:compiles_after_ready_total{label} 0.0", figures)
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 0, rest)
    lines = [json.loads(x) for x in rest.splitlines() if x.startswith("{")]
    (entry,) = [x for x in lines if x["route"] == "/v1/completions"]
    self.assertEqual(entry["model"], "me")
    self.assertEqual(entry["generated_tokens"], 9)
    self.assertIn("Ended after", rest.splitlines()[-1])


if __name__ == "__main__":
  absltest.main()
