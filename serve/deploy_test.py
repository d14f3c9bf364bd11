"""The packed server alone: no Bazel, no network, no environment.

Bazel shuts the network off (the tag block-network). It is the only test with a
whole artefact: packing takes half a minute, and 800 MB are unpacked.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from absl import logging
from absl.testing import absltest

from data import tokenizer as tokenizer_lib
from serve import checkpoint_fixtures as fixtures

_ARTEFACT = pathlib.Path(__file__).parent / "decode_server_deploy"


class DeployTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # Not among the test's outputs, which are kept.
    self.root = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.root)
    # As a user copies it.
    self.program = self.root / "elsewhere/program"
    self.program.parent.mkdir()
    shutil.copy(_ARTEFACT, self.program)
    self.log = self.root / "log"

  def start(self, *args):
    """Starts it; returns the process and where it listens, when it is ready."""
    with self.log.open("w") as log:
      process = subprocess.Popen(
        [self.program, *args],
        env={
          "PATH": "/usr/bin:/bin",
          "HOME": str(self.root),
          "CACAO_PYTHON": os.path.realpath(sys.executable),
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": os.environ["XLA_FLAGS"],
        },
        cwd="/",
        stderr=log,
      )
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    while True:
      self.assertIsNone(process.poll(), self.log.read_text())
      found = self.log.read_text().partition("Listening at ")[2]
      address = found.partition(";")[0]
      if address and self.is_ready(address):
        return process, address
      time.sleep(0.1)

  def is_ready(self, address):
    try:
      with urllib.request.urlopen(f"{address}/health") as answer:
        return json.load(answer)["ready"]
    except urllib.error.HTTPError:
      # 503 until it is.
      return False

  def ask(self, address, **body):
    request = urllib.request.Request(
      f"{address}/v1/completions",
      data=json.dumps(body).encode(),
      headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
      return json.load(answer)

  def test_serves(self):
    folder = fixtures.write_tokenizer(self.root / "tokenizer")
    fixtures.write(self.root / "run", step=7, tokenizer=folder)
    tokenizer = tokenizer_lib.Tokenizer.load(folder)
    texts, seconds = set(), []
    for _ in range(2):
      begin = time.perf_counter()
      process, address = self.start(
        f"--checkpoint={self.root / 'run'}",
        "--port=0",
        "--config.runner.max_rows=1",
      )
      seconds.append(time.perf_counter() - begin)
      answer = self.ask(
        address, model="tiny", prompt="the word", max_tokens=5, temperature=0
      )
      texts.add(answer["choices"][0]["text"])
      usage = answer["usage"]
      # A text of ours follows the end of another.
      num_tokens = 1 + len(tokenizer.encode("the word"))
      self.assertEqual(usage["prompt_tokens"], num_tokens)
      self.assertLessEqual(usage["completion_tokens"], 5)
      with urllib.request.urlopen(address) as page:
        self.assertIn(b"<html", page.read())
      process.send_signal(signal.SIGTERM)
      self.assertEqual(process.wait(), 0)
    self.assertLen(texts, 1)
    logging.info("Ready after %.1f s, then %.1f s.", *seconds)
    trees = self.root.glob(".cache/cacao/deploy/*/start.py")
    self.assertLen(list(trees), 1)


if __name__ == "__main__":
  absltest.main()
