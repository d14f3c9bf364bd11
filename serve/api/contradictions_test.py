from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from serve.api import contradictions
from serve.api import errors
from serve.api import requests

_USAGE = requests.StreamOptions(include_usage=True)


def _completion(**fields: Any) -> requests.Completion:
  return requests.Completion(model="m", prompt="a", **fields)


def _chat(**fields: Any) -> requests.Chat:
  return requests.Chat(model="m", messages=[], **fields)


class ContradictionsTest(parameterized.TestCase):
  @parameterized.parameters(
    (_completion, {"stream_options": _USAGE}, "stream_options"),
    (_chat, {"stream": False, "stream_options": _USAGE}, "stream_options"),
    (_completion, {"n": 3, "best_of": 2}, "best_of"),
    (_completion, {"best_of": 2, "stream": True}, "best_of"),
    (_chat, {"top_logprobs": 1}, "top_logprobs"),
    (_chat, {"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
  )
  def test_refuses(self, make, fields, param):
    with self.assertRaises(errors.ApiError) as caught:
      contradictions.check(make(**fields))
    self.assertEqual(caught.exception.body.error.param, param)

  @parameterized.parameters(
    (_completion, {}),
    (_completion, {"stream": True, "stream_options": _USAGE, "best_of": 1}),
    (_completion, {"n": 2, "best_of": 2}),
    (_completion, {"n": 2, "best_of": 3}),
    (_chat, {"stream": True, "stream_options": _USAGE}),
    (_chat, {"top_logprobs": 0}),
    (_chat, {"logprobs": True, "top_logprobs": 1}),
  )
  def test_allows(self, make, fields):
    contradictions.check(make(**fields))

  def test_lengths(self):
    for least in (None, 0, 5):
      contradictions.check_lengths(least, 5)
    with self.assertRaisesRegex(errors.ApiError, "at most 5 tokens"):
      contradictions.check_lengths(6, 5)


if __name__ == "__main__":
  absltest.main()
