from absl.testing import absltest

from serve import detokenizer
from serve import request as request_lib
from serve.api import choices
from serve.api import fixtures
from serve.api import prompts


def _choice(*, stops=(), stop_ids=(fixtures.END,)):
  request = request_lib.Request(
    id="a", prompt=(1,), max_tokens=9, stop_ids=frozenset(stop_ids)
  )
  text = detokenizer.Detokenizer(
    detokenizer.Vocabulary.load(fixtures.TOKENIZER), (1,), stops=stops
  )
  return choices.Choice(
    0,
    prompts.Prompt(tokens=(1,)),
    request,
    text,
    frozenset([fixtures.END]),
  )


def _output(*tokens, finish=None, **more):
  return request_lib.Output(
    request_id="a",
    tokens=tokens,
    logprobs=tuple(fixtures.logprobs(token, 0) for token in tokens),
    finish=finish,
    **more,
  )


class ChoicesTest(absltest.TestCase):
  def test_pieces(self):
    choice = _choice()
    first = choice.push(_output(50, 51, num_cached=1))
    self.assertEqual((first.text, first.offsets), ("MN", (0, 1)))
    self.assertFalse(first.is_last)
    stop = request_lib.FinishReason.STOP
    last = choice.push(_output(52, fixtures.END, finish=stop))
    self.assertEqual((last.text, last.offsets), ("O", (2, 3)))
    self.assertTrue(last.is_last)
    self.assertEqual(choice.text, "MNO")
    self.assertEqual(choice.finish, "stop")
    self.assertIsNone(choice.stop_reason)
    self.assertEqual(choice.num_cached, 1)
    self.assertLen(choice.logprobs, 4)
    self.assertAlmostEqual(
      choice.mean_logprob, -(50 + 51 + 52 + fixtures.END) / 400
    )

  def test_a_stop_string_within_an_output(self):
    choice = _choice(stops=("N",))
    piece = choice.push(_output(50, 51, 52))
    self.assertEqual(piece.text, "M")
    self.assertTrue(piece.is_last)
    self.assertEqual(choice.stop_reason, "N")
    self.assertLen(choice.offsets, 3)
    self.assertLen(choice.tokens, 3)

  def test_a_stop_string_that_only_began(self):
    choice = _choice(stops=("NX",))
    self.assertEqual(choice.push(_output(50, 51)).text, "M")
    length = request_lib.FinishReason.LENGTH
    self.assertEqual(choice.push(_output(finish=length)).text, "N")
    self.assertEqual(choice.finish, "length")

  def test_a_stop_token_of_the_request(self):
    choice = _choice(stop_ids=(fixtures.END, 51))
    stop = request_lib.FinishReason.STOP
    choice.push(_output(50, 51, finish=stop))
    self.assertEqual(choice.text, "M")
    self.assertEqual(choice.stop_reason, 51)

  def test_ended_by_us(self):
    choice = _choice()
    self.assertTrue(choice.end().is_last)
    self.assertEqual(choice.finish, "stop")


if __name__ == "__main__":
  absltest.main()
