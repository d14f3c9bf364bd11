from absl.testing import absltest

from serve import request as request_lib
from serve.api import choices
from serve.api import prompts
from serve.api import usage


def _choice(prompt, tokens, *, leader=None, num_cached=0):
  request = request_lib.Request(
    id="a", prompt=prompt, max_tokens=9, leader=leader
  )
  choice = choices.Choice(
    0, prompts.Prompt(tokens=prompt), request, None, frozenset()
  )
  choice.tokens = list(tokens)
  choice.num_cached = num_cached
  return choice


class UsageTest(absltest.TestCase):
  def test_a_prompt_counts_once(self):
    found = usage.of(
      [
        _choice((1, 2, 3), (4,), num_cached=2),
        _choice((1, 2, 3), (4, 5), leader="a", num_cached=3),
        _choice((1,), ()),
      ]
    )
    self.assertEqual(found.prompt_tokens, 4)
    self.assertEqual(found.completion_tokens, 3)
    self.assertEqual(found.total_tokens, 7)
    self.assertEqual(found.prompt_tokens_details.cached_tokens, 2)

  def test_one_of_several_answers(self):
    found = usage.of([_choice((1, 2, 3), (4, 5), leader="a")])
    self.assertEqual(found.total_tokens, 5)


if __name__ == "__main__":
  absltest.main()
