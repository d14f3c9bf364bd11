"""EleutherAI's lm-evaluation-harness gets what the model itself computes.

Each way in which it asks is compared with the plain forward pass: every
log-probability, and the accuracies that come of them. The model is random, so
that of some texts it is asked for what it would say itself.
"""

import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from serve.clients import fixtures

_SECONDS = 240
_MAX_NEW = 8
# Contexts and choices; the first choice counts as right.
_QUESTIONS = (
  ("The quick brown fox", (" jumps", " answered", " over the lazy dog")),
  ("In the beginning was the", (" word", " server", " evening")),
  ("def add(a, b):\n    return", (" a + b", " b", " 0123456789")),
  ("모든 문장은 끝에서", (" 다시", " 섞인다.", " 시작한다")),
  ("What is the weather?", (" Seoul", " I am well.", " 😀", " false")),
  ("user: Hello, how are you?\nassistant:", (" I am well.", " And you?")),
)
_TEXTS = (
  "The server answered whoever asked.",
  "Příliš žluťoučký kůň; 0123456789 times.",
  "문장의 순서는 섞인다.",
)
_TABLE = {
  "choose": {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
  },
  "recall": {
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{choices[0]}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
  },
  "read": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "byte_perplexity"}],
  },
  "say": {
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{said}}",
    "generation_kwargs": {
      "until": ["\n"],
      "max_gen_toks": _MAX_NEW,
      "do_sample": False,
    },
    "metric_list": [{"metric": "exact_match"}],
  },
}


class LmEvalTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model = fixtures.Model(folder)
    cls.server = cls.enterClassContext(fixtures.Server(cls.model, folder))

  def evaluate(self, docs, *tasks, kind="local-completions", path, **settings):
    """Metrics and samples of each task."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    for task in tasks:
      texts = [{"text": text} for text in _TEXTS]
      lines = map(json.dumps, texts if task == "read" else docs)
      (folder / f"{task}.jsonl").write_text("\n".join(lines))
      described = _TABLE[task] | {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {
          "data_files": {"test": str(folder / f"{task}.jsonl")}
        },
        "test_split": "test",
        "target_delimiter": "",
        "metadata": {"version": 1},
      }
      # JSON is YAML, too.
      (folder / f"{task}.yaml").write_text(json.dumps(described))
    settings = {
      "model": fixtures.NAME,
      "base_url": f"{self.server.base_url}/{path}",
      "max_length": fixtures.MAX_LEN,
      "max_retries": 1,
    } | settings
    chat = ["--apply_chat_template"] if kind == "local-chat-completions" else []
    fixtures.run_client(
      *("lm_eval", "run", "--model", kind),
      "--model_args",
      ",".join(f"{name}={value}" for name, value in settings.items()),
      *("--tasks", ",".join(tasks), "--include_path", str(folder)),
      # Prompts of a request; a chat has one.
      *(() if chat else ("--batch_size", "2")),
      *("--output_path", str(folder / "out"), "--log_samples", *chat),
      folder=folder,
      seconds=_SECONDS,
    )
    (results,) = (folder / "out").rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    samples = {}
    for task in tasks:
      (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
      lines = map(json.loads, file.read_text().splitlines())
      samples[task] = sorted(lines, key=lambda sample: sample["doc_id"])
    return metrics, samples

  def say(self, prompt):
    """What the model says, up to the end of a line or of the text."""
    ends = [self.model.tokenizer.eos_id]
    text = self.model.text(self.model.greedy(prompt, _MAX_NEW, ends=ends))
    return text.partition("\n")[0]

  def make_docs(self, prompt):
    """Questions; every other wants what the model says to `prompt(context)`."""
    return [
      {
        "context": context,
        "choices": list(choices),
        "answer": 0,
        "said": self.say(prompt(context)) if index % 2 else "no",
      }
      for index, (context, choices) in enumerate(_QUESTIONS)
    ]

  def check_scores(self, metrics, samples, begin):
    """Of `choose` and `recall`, for prompts that begin with some ids."""
    encode = self.model.tokenizer.encode
    right, right_norm, likeliest, scores = [], [], [], []
    for index, (context, choices) in enumerate(_QUESTIONS):
      prompt = encode(context)
      wanted = [
        self.model.score(
          [*begin, *prompt], encode(context + choice)[len(prompt) :]
        )
        for choice in choices
      ]
      found = samples["choose"][index]["filtered_resps"]
      for (score, greedy), (own, own_greedy) in zip(found, wanted, strict=True):
        self.assertAlmostEqual(float(score), own, delta=2e-4)
        self.assertEqual(str(greedy), str(own_greedy))
      ((score, _),) = samples["recall"][index]["filtered_resps"]
      self.assertAlmostEqual(float(score), wanted[0][0], delta=2e-4)
      values = np.array([own for own, _ in wanted])
      lengths = np.array([len(choice) for choice in choices])
      right.append(values.argmax() == 0)
      right_norm.append((values / lengths).argmax() == 0)
      scores.append(values[0])
      likeliest.append(wanted[0][1])
    chosen, recalled = metrics["choose"], metrics["recall"]
    self.assertAlmostEqual(chosen["acc,none"], np.mean(right))
    self.assertAlmostEqual(chosen["acc_norm,none"], np.mean(right_norm))
    self.assertAlmostEqual(recalled["acc,none"], np.mean(likeliest))
    self.assertAlmostEqual(
      recalled["perplexity,none"] / math.exp(-np.mean(scores)), 1, delta=1e-3
    )

  def check_perplexity(self, metrics, begin):
    """Of `read`: texts that begin with some ids."""
    total = sum(
      self.model.score(begin, self.model.tokenizer.encode(text))[0]
      for text in _TEXTS
    )
    num = sum(len(text.encode()) for text in _TEXTS)
    self.assertAlmostEqual(
      metrics["read"]["byte_perplexity,none"],
      math.exp(-total / num),
      delta=1e-3,
    )

  @parameterized.parameters("remote", "huggingface")
  def test_ids(self, backend):
    settings = {"tokenizer_backend": backend, "tokenized_requests": True}
    if backend == "huggingface":
      settings |= {
        "tokenizer": self.model.tokenizer_folder,
        # The tokenizer has a BOS, but texts follow the end of another.
        "custom_prefix_token_id": self.model.tokenizer.eos_id,
      }
    else:
      settings["num_concurrent"] = 4
    metrics, samples = self.evaluate(
      self.make_docs(self.model.tokenizer.encode),
      *("choose", "recall", "read", "say"),
      path="completions",
      **settings,
    )
    self.check_scores(metrics, samples, [])
    self.check_perplexity(metrics, [self.model.tokenizer.eos_id])
    self.assertEqual(metrics["say"]["exact_match,none"], 0.5)

  def test_texts(self):
    metrics, samples = self.evaluate(
      self.make_docs(self.model.prompt),
      *("choose", "recall", "say"),
      path="completions",
      tokenizer_backend="remote",
      tokenized_requests=False,
      num_concurrent=4,
    )
    self.check_scores(metrics, samples, [self.model.tokenizer.eos_id])
    self.assertEqual(metrics["say"]["exact_match,none"], 0.5)

  def test_chat(self):
    encode = self.model.tokenizer.encode_with_special_tokens
    metrics, samples = self.evaluate(
      self.make_docs(
        lambda text: encode(f"user: {text}<|end_of_text|>assistant:")
      ),
      "say",
      kind="local-chat-completions",
      path="chat/completions",
      num_concurrent=4,
      eos_string="<|end_of_text|>",
    )
    self.assertEqual(metrics["say"]["exact_match,none"], 0.5)
    for sample in samples["say"]:
      self.assertNotEmpty(sample["filtered_resps"][0])


if __name__ == "__main__":
  absltest.main()
