import contextlib
import io
import math
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from data import fixtures as data_fixtures
from data import tokenizer as tokenizer_lib
from model import transformer
from tools import trained_model_fixtures as fixtures
from tools.evaluate import main

_TEXTS = [data_fixtures.text(index) for index in range(6)]
_SEQ_LEN = 16


class EvaluateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.root = root
    folder = fixtures.write_tokenizer(root / "tokenizer")
    cls.tokenizer = tokenizer_lib.Tokenizer.load(folder)
    cls.params = fixtures.write(root / "run", tokenizer=folder)
    cls.graphdef, _ = transformer.abstract(
      fixtures.config(), fixtures.EXECUTION
    )
    data_fixtures.write_jsonl(root / "in.jsonl", _TEXTS)
    logits = jax.jit(cls._log_probs)
    cls.log_probs = staticmethod(
      lambda row: np.asarray(logits(cls.params, row))
    )

  @classmethod
  def _log_probs(cls, params, row):
    model = transformer.bind(cls.graphdef, params)
    hidden = model(row[None]).hidden
    return jax.nn.log_softmax(model.logits(hidden)[0])

  def losses(self, separator):
    """(token, its loss) of the whole text, row by row, without masks."""
    stream = [separator]
    for text in _TEXTS:
      stream += [*self.tokenizer.encode(text), separator]
    found = []
    for start in range(0, len(stream) - 1, _SEQ_LEN):
      row = stream[start : start + _SEQ_LEN]
      targets = stream[start + 1 : start + _SEQ_LEN + 1]
      padded = row + [0] * (_SEQ_LEN - len(row))
      log_probs = self.log_probs(jnp.array(padded))
      found += [
        (token, -float(log_probs[i, token])) for i, token in enumerate(targets)
      ]
    return found

  def run_main(self, **values):
    # As bazel run does: elsewhere, with the user's directory in a variable.
    directory = {"BUILD_WORKING_DIRECTORY": str(self.root)}
    settings = {
      "checkpoint": "run",
      "input": ["in.jsonl"],
      "seq_len": _SEQ_LEN,
      "batch_size": 2,
      "compute_dtype": "float32",
      **values,
    }
    out = io.StringIO()
    with (
      mock.patch.dict(os.environ, directory),
      mock.patch.object(os, "cpu_count", return_value=1),
      flagsaver.flagsaver(**settings),
      contextlib.redirect_stdout(out),
    ):
      main.main()
    return out.getvalue()

  def assert_printed(self, printed, losses, num_bytes):
    nats = sum(losses) / len(losses)
    bits = sum(losses) / math.log(2) / num_bytes
    self.assertIn(f"scored: {len(losses):,} tokens", printed)
    self.assertIn(f"{num_bytes:,.0f} bytes in", printed)
    self.assertRegex(printed, r"bytes in .* tokens/s; compiled in")
    found = printed.split("loss: ")[1].split()
    self.assertAlmostEqual(float(found[0]), nats, delta=2e-4)
    self.assertAlmostEqual(
      float(found[3].rstrip("),")), math.exp(nats), delta=1e-3 * math.exp(nats)
    )
    self.assertAlmostEqual(float(found[4]), bits, delta=2e-4)

  def test_every_token_is_scored_once(self):
    num_bytes = sum(len(text.encode()) for text in _TEXTS)
    eos = self.tokenizer.eos_id
    losses = self.losses(eos)
    printed = self.run_main()
    self.assertIn(f"6 documents, {len(losses):,} tokens", printed)
    self.assert_printed(printed, [loss for _, loss in losses], num_bytes)
    self.assert_printed(
      self.run_main(score_ends=False),
      [loss for token, loss in losses if token != eos],
      num_bytes,
    )

  def test_another_separator(self):
    losses = self.losses(self.tokenizer.bos_id)
    self.assert_printed(
      self.run_main(separator="<|begin_of_text|>"),
      [loss for _, loss in losses],
      sum(len(text.encode()) for text in _TEXTS),
    )
    with self.assertRaisesRegex(ValueError, "'<none>', which is not in"):
      self.run_main(separator="<none>")

  def test_documents_masked_from_each_other(self):
    # Each document on its own predicts its tokens, its end the next one's
    # first; an end alone predicts the first of all.
    texts = ["one two", "add(a, b)"]
    data_fixtures.write_jsonl(self.root / "two.jsonl", texts)
    eos = self.tokenizer.eos_id
    segments = [[eos], *([*self.tokenizer.encode(t), eos] for t in texts)]
    losses = []
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
      targets = segment[1:] + (following[:1] if following else [])
      padded = segment + [0] * (64 - len(segment))
      log_probs = self.log_probs(jnp.array(padded))
      losses += [-float(log_probs[i, t]) for i, t in enumerate(targets)]
    settings = {"input": ["two.jsonl"], "seq_len": 64}
    num_bytes = sum(map(len, texts))
    printed = self.run_main(mask_documents=True, **settings)
    self.assert_printed(printed, losses, num_bytes)
    self.assertNotEqual(
      self.run_main(**settings).split("loss:")[1], printed.split("loss:")[1]
    )

  def test_the_beginning_only(self):
    losses = self.losses(self.tokenizer.eos_id)
    share = 2 * _SEQ_LEN / len(losses)
    num_bytes = sum(len(text.encode()) for text in _TEXTS)
    self.assert_printed(
      self.run_main(max_batches=1),
      [loss for _, loss in losses[: 2 * _SEQ_LEN]],
      share * num_bytes,
    )
    whole = self.run_main(max_batches=10_000)
    self.assertIn(f"scored: {len(losses):,} tokens", whole)

  @parameterized.parameters(
    ({"seq_len": 65}, "--seq_len=65 must be from 1 to .* 64"),
    ({"batch_size": 3}, "--batch_size=3 must be a multiple of 2"),
    ({"input": ["missing"]}, "missing.* does not exist"),
    ({"field": "body"}, "no field 'body'"),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      self.run_main(**settings)


if __name__ == "__main__":
  absltest.main()
