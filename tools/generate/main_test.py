import contextlib
import io
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import numpy as np

from data import tokenizer as tokenizer_lib
from model import transformer
from model.hf import importer
from tools import trained_model
from tools import trained_model_fixtures as fixtures
from tools.generate import main

_PROMPTS = ("In the beginning", "def")


class GenerateTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.root = root
    folder = fixtures.write_tokenizer(root / "tokenizer")
    cls.tokenizer = tokenizer_lib.Tokenizer.load(folder)
    fixtures.write(root / "ours", tokenizer=folder)
    fixtures.write(
      root / "imported",
      tokenizer=folder,
      values={
        importer.CONFIG_FILE: {"eos_token_id": 7},
        importer.GENERATION_FILE: {"eos_token_id": [8, 9]},
      },
    )
    cls.ours = trained_model.load(root / "ours", compute_dtype="float32")
    cls.imported = trained_model.load(
      root / "imported", compute_dtype="float32"
    )

  def naive(self, ids, num_tokens):
    """The likeliest tokens, each from a forward pass over all before it."""

    @jax.jit
    def likeliest(params, tokens, length):
      model = transformer.bind(self.ours.graphdef, params)
      return jnp.argmax(model.logits(model(tokens).hidden)[0, length - 1])

    tokens = np.zeros((1, fixtures.SEQ_LEN), np.int32)
    tokens[0, : len(ids)] = ids
    for length in range(len(ids), len(ids) + num_tokens):
      tokens[0, length] = likeliest(self.ours.params, tokens, length)
    return tokens[0, len(ids) :][:num_tokens].tolist()

  def test_equals_the_naive_way(self):
    prompts = [
      main.encode(self.ours, self.tokenizer, prompt, as_message=False)
      for prompt in _PROMPTS
    ]
    self.assertNotEqual(len(prompts[0]), len(prompts[1]))
    wanted = [self.naive(ids, 6) for ids in prompts]
    texts = main.generate(self.ours, prompts, ends=set(), num_tokens=6)
    self.assertEqual(texts.prompts, prompts)
    self.assertEqual(texts.tokens, wanted)
    end = wanted[0][3]
    texts = main.generate(self.ours, prompts, ends={end}, num_tokens=6)
    self.assertEqual(texts.tokens[0], wanted[0][: wanted[0].index(end)])
    self.assertEqual(texts.num_computed, 12)

  def test_how_a_prompt_begins(self):
    text = "one<|pad|>"
    ids = self.tokenizer.encode("one")
    eos, pad = self.tokenizer.eos_id, self.tokenizer.pad_id
    for model, as_message, wanted in (
      (self.ours, False, [eos, *ids, pad]),
      (self.imported, False, [*ids, pad]),
      (
        self.ours,
        True,
        [
          *self.tokenizer.encode("user: one"),
          pad,
          eos,
          *self.tokenizer.encode("assistant:"),
        ],
      ),
    ):
      self.assertEqual(
        main.encode(model, self.tokenizer, text, as_message=as_message), wanted
      )
    empty = main.encode(self.imported, self.tokenizer, "", as_message=False)
    self.assertEqual(empty, [eos])

  def run_main(self, **values):
    # As bazel run does: elsewhere, with the user's directory in a variable.
    directory = {"BUILD_WORKING_DIRECTORY": str(self.root)}
    settings = {
      "checkpoint": "ours",
      "prompt": list(_PROMPTS),
      "num_tokens": 4,
      "compute_dtype": "float32",
      **values,
    }
    out = io.StringIO()
    with (
      mock.patch.dict(os.environ, directory),
      flagsaver.flagsaver(**settings),
      contextlib.redirect_stdout(out),
    ):
      main.main()
    return out.getvalue()

  def test_prints_texts(self):
    printed = self.run_main(show_ids=True)
    for prompt in _PROMPTS:
      self.assertRegex(printed, rf"(?m)^{prompt}")
    self.assertRegex(printed, r"ids \[1, .*\] -> \[")
    self.assertRegex(printed, r"2 x 4 tokens in .* tokens/s; compiled in")
    printed = self.run_main(chat=True, prompt=["hello"])
    self.assertStartsWith(printed, "> hello\n")

  def test_refuses_what_exceeds_the_context(self):
    with self.assertRaisesRegex(ValueError, "model's context of 64"):
      self.run_main(num_tokens=63)


if __name__ == "__main__":
  absltest.main()
