"""Loads by NVIDIA's AIPerf and vLLM: all succeeds, all count tokens alike.

vLLM is in no lock, and its test is skipped, unless
--test_env=CACAO_VLLM_PYTHON=... names a Python that has it.
"""

import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from serve.clients import fixtures

_SECONDS = 240
_NUM_REQUESTS = 48
_NEW_TOKENS = 16


class LoadTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model = fixtures.Model(folder)
    cls.server = cls.enterClassContext(fixtures.Server(cls.model, folder))

  @parameterized.product(
    endpoint=("completions", "chat"), is_streamed=(True, False)
  )
  def test_aiperf(self, endpoint, is_streamed):
    folder = pathlib.Path(self.create_tempdir().full_path)
    before = self.server.figures()
    fixtures.run_client(
      *("aiperf", "profile", "--model", fixtures.NAME),
      *("--url", self.server.url, "--endpoint-type", endpoint),
      *("--tokenizer", str(self.model.tokenizer_folder)),
      *("--concurrency", "8", "--request-count", str(_NUM_REQUESTS)),
      *("--synthetic-input-tokens-mean", "64"),
      *("--output-tokens-mean", str(_NEW_TOKENS)),
      *("--extra-inputs", "ignore_eos:true", "--ui", "none"),
      *("--output-artifact-dir", str(folder / "out")),
      *(("--streaming",) if is_streamed else ()),
      folder=folder,
      seconds=_SECONDS,
    )
    found = json.loads(
      (folder / "out" / "profile_export_aiperf.json").read_text()
    )
    self.assertEmpty(found["error_summary"])
    self.assertFalse(found["was_cancelled"])
    self.assertEqual(found["request_count"]["avg"], _NUM_REQUESTS)
    made = found["total_usage_completion_tokens"]["avg"]
    self.assertEqual(made, _NUM_REQUESTS * _NEW_TOKENS)
    after = self.server.figures()

    def difference(name):
      return after[name] - before[name]

    self.assertEqual(difference("vllm:generation_tokens_total"), made)
    self.assertEqual(
      difference("vllm:prompt_tokens_total"),
      found["total_usage_prompt_tokens"]["avg"],
    )
    self.assertEqual(difference("vllm:request_success_total"), _NUM_REQUESTS)
    self.assertEqual(after["cacao:compiles_after_ready_total"], 0)
    self.server.until_idle(1.0)

  @parameterized.parameters(
    ("openai", "completions"), ("openai-chat", "chat/completions")
  )
  def test_vllm(self, backend, route):
    if "CACAO_VLLM_PYTHON" not in os.environ:
      self.skipTest("CACAO_VLLM_PYTHON names no Python that has vllm.")
    folder = pathlib.Path(self.create_tempdir().full_path)
    before = self.server.figures()
    fixtures.run_client(
      *("vllm.entrypoints.cli.main", "bench", "serve", "--backend", backend),
      *("--base-url", self.server.url, "--endpoint", f"/v1/{route}"),
      *("--model", fixtures.NAME),
      *("--tokenizer", str(self.model.tokenizer_folder)),
      *("--dataset-name", "random", "--random-input-len", "64"),
      *("--random-output-len", str(_NEW_TOKENS), "--ignore-eos"),
      *("--num-prompts", str(_NUM_REQUESTS), "--max-concurrency", "8"),
      # None beside those that are counted.
      *("--ready-check-timeout-sec", "0"),
      *("--save-result", "--result-dir", str(folder / "out")),
      folder=folder,
      seconds=_SECONDS,
    )
    (file,) = (folder / "out").glob("*.json")
    found = json.loads(file.read_text())
    self.assertEqual(found["completed"], _NUM_REQUESTS)
    made = _NUM_REQUESTS * _NEW_TOKENS
    self.assertEqual(found["total_output_tokens"], made)
    after = self.server.figures()
    name = "vllm:request_success_total"
    self.assertEqual(after[name] - before[name], _NUM_REQUESTS)
    name = "vllm:generation_tokens_total"
    self.assertEqual(after[name] - before[name], made)
    self.server.until_idle(1.0)


if __name__ == "__main__":
  absltest.main()
