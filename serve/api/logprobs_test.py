import math
from typing import Any

from absl.testing import absltest

from serve import detokenizer
from serve import request as request_lib
from serve.api import fixtures
from serve.api import logprobs


class LogprobsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.vocabulary = detokenizer.Vocabulary.load(fixtures.TOKENIZER)

  def test_completion(self):
    entry = request_lib.TokenLogprobs(
      logprob=-3.0, rank=9, top=((50, -0.5), (51, -math.inf))
    )
    made = logprobs.completion([1, 52], [None, entry], [0, 0], self.vocabulary)
    self.assertEqual(made.tokens, ["<|begin_of_text|>", "O"])
    self.assertEqual(made.token_logprobs, [None, -3.0])
    # The token itself is there, even if it was unlikely.
    self.assertEqual(
      made.top_logprobs, [None, {"M": -0.5, "N": -9999.0, "O": -3.0}]
    )

  def test_torn_characters_are_bytes(self):
    torn = next(
      token
      for token in range(fixtures.VOCAB_SIZE)
      if self.vocabulary.token_bytes(token) == b"\xed"
    )
    self.assertEqual(logprobs.text(torn, self.vocabulary), "bytes:\\xed")
    self.assertEqual(logprobs.text(torn, None), f"token_id:{torn}")
    entry = request_lib.TokenLogprobs(logprob=-1.0, rank=1, top=((torn, -1.0),))
    content: Any = logprobs.chat([torn], [entry], self.vocabulary).content
    (made,) = content
    self.assertEqual(made.bytes, [0xED])
    self.assertEqual(made.token, "�")
    self.assertEqual(made.top_logprobs[0].bytes, [0xED])

  def test_prompt(self):
    entry = request_lib.TokenLogprobs(
      logprob=-3.0, rank=9, top=((50, -0.5), (51, -1.0))
    )
    found: Any = logprobs.prompt([1, 52], [None, entry], self.vocabulary)
    first, second = found
    self.assertIsNone(first)
    ranks = {token: entry.rank for token, entry in second.items()}
    self.assertEqual(ranks, {"50": 1, "51": 2, "52": 9})


if __name__ == "__main__":
  absltest.main()
