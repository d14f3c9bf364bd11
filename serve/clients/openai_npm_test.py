"""OpenAI's npm client, and what it gets is what the model says.

Needs Node.js. The package is locked in npm/ and installed once, into the user's
cache, with the user's settings of npm.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest
import numpy as np

from serve.clients import fixtures

_PACKAGE = pathlib.Path(__file__).parent / "npm"
_FILES = ("package.json", "package-lock.json")
_HELLO = "user: Hello, how are you?<|end_of_text|>assistant:"
_PROMPT = "In the beginning"


def _find(program):
  found = shutil.which(program)
  if found is None:
    raise RuntimeError(
      f"No {program} on PATH: the client is an npm package. Fix: install"
      " Node.js; Debian: apt-get install npm"
    )
  return found


def _install():
  """Returns the folder with the locked package's node_modules."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  target = pathlib.Path(cache, "cacao", "openai-npm")
  lock = (_PACKAGE / "package-lock.json").read_bytes()
  kept = target / "package-lock.json"
  if kept.exists() and kept.read_bytes() == lock:
    return target
  npm = _find("npm")
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
    for name in _FILES:
      shutil.copyfile(_PACKAGE / name, pathlib.Path(scratch, name))
    made = subprocess.run(
      [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
      cwd=scratch,
      capture_output=True,
      text=True,
    )
    if made.returncode:
      raise RuntimeError(
        f"npm could not install openai:\n{made.stderr}"
        "Fix: check npm's registry and proxy with `npm config list`."
      )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scratch, target, symlinks=True)
  return target


class OpenaiNpmTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.node = _find("node")
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    # Node.js looks for packages beside the script.
    cls.script = shutil.copyfile(_PACKAGE / "client.mjs", folder / "client.mjs")
    (folder / "node_modules").symlink_to(_install() / "node_modules")
    cls.model = fixtures.Model(folder)
    cls.server = cls.enterClassContext(fixtures.Server(cls.model, folder))

  def run_task(self, name):
    made = subprocess.run(
      [self.node, self.script, self.server.base_url, name],
      capture_output=True,
      text=True,
      timeout=120,
    )
    self.assertEqual(made.returncode, 0, made.stderr)
    return json.loads(made.stdout)

  def test_chat(self):
    found = self.run_task("chat")
    prompt = self.model.tokenizer.encode_with_special_tokens(_HELLO)
    tokens = self.model.greedy(prompt, 12)
    self.assertEqual(found["text"], self.model.text(tokens))
    self.assertEqual(found["usage"]["prompt_tokens"], len(prompt))
    self.assertEqual(found["usage"]["completion_tokens"], 12)
    self.assertEqual(found["step"], str(fixtures.STEP))
    self.assertLen(found["requestId"], 32)

  def test_completion(self):
    found = self.run_task("completion")
    for text, answer in zip((_PROMPT, "def"), found, strict=True):
      prompt = self.model.prompt(text)
      tokens = self.model.greedy(prompt, 6)
      self.assertEqual(answer["text"], text + self.model.text(tokens))
      # What the server has begun the text with is not echoed.
      scores = answer["logprobs"]["token_logprobs"]
      all_ = [*prompt, *tokens]
      rows = self.model.logprobs(all_)
      wanted = rows[np.arange(len(all_) - 1), all_[1:]]
      self.assertIsNone(scores[0])
      np.testing.assert_allclose(scores[1:], wanted[1:], atol=1e-4)

  def test_stream(self):
    found = self.run_task("stream")
    self.assertEqual("".join(found["texts"]), found["whole"])
    self.assertEqual(found["final"], found["whole"])
    self.assertEqual(found["usage"], found["wholeUsage"])
    self.assertGreater(len(found["texts"]), 10)

  def test_abort(self):
    before = self.server.figures()["vllm:generation_tokens_total"]
    found = self.run_task("abort")
    self.assertGreaterEqual(found["chunks"], 10)
    self.server.until_idle(1.0)
    made = self.server.figures()["vllm:generation_tokens_total"] - before
    self.assertLess(made, 3600)

  def test_tools(self):
    found = self.run_task("tools")
    self.assertEqual(found["finish"], "tool_calls")
    (call,) = found["calls"]
    self.assertEqual(call["function"]["name"], "switch")
    arguments = json.loads(call["function"]["arguments"])
    self.assertIsInstance(arguments.pop("on"), bool)
    self.assertEmpty(arguments)
    (streamed,) = found["streamed"]
    self.assertEqual(streamed["function"]["name"], "switch")
    self.assertEqual(
      streamed["function"]["arguments"], call["function"]["arguments"]
    )
    self.assertIn(found["again"], ("length", "stop"))

  def test_schema(self):
    found = self.run_task("schema")
    self.assertIsInstance(found.pop("on"), bool)
    self.assertEmpty(found)

  def test_embeddings(self):
    packed, plain = self.run_task("embeddings")
    hidden = self.model.hidden(self.model.prompt(_PROMPT))
    np.testing.assert_allclose(plain, hidden.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(packed, plain, rtol=1e-6)

  def test_models(self):
    self.assertEqual(self.run_task("models"), [fixtures.NAME])

  def test_errors(self):
    found = self.run_task("errors")
    for task, name, status, param, code in (
      ("model", "NotFoundError", 404, "model", "model_not_found"),
      ("value", "BadRequestError", 400, "temperature", "invalid_type"),
      ("field", "BadRequestError", 400, "unheard_of", "unknown_parameter"),
      ("late", "APIError", 408, None, "timeout"),
      ("timeout", "APIConnectionTimeoutError", None, None, None),
      ("nobody", "APIConnectionError", None, None, None),
    ):
      error = found[task]
      self.assertTrue(error["isApiError"], task)
      self.assertEqual(error["name"], name)
      self.assertEqual(error["status"], status, task)
      self.assertEqual(error["param"], param)
      self.assertEqual(error["code"], code)
      self.assertEqual(error["requestId"] is None, status is None, task)
    self.server.until_idle(2.0)


if __name__ == "__main__":
  absltest.main()
