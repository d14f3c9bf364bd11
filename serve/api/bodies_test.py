from absl.testing import absltest
from absl.testing import parameterized

from serve.api import bodies
from serve.api import errors
from serve.api import requests


class BodiesTest(parameterized.TestCase):
  @parameterized.parameters(
    (b'{"prompt":"a"}', "model", "missing_required_parameter"),
    (b'{"model":"m","prompt":"a","x":1}', "x", "unknown_parameter"),
    (
      b'{"model":"m","prompt":"a","stream_options":{"x":1}}',
      "stream_options.x",
      "unknown_parameter",
    ),
    (b'{"model":"m","prompt":1}', "prompt", "invalid_type"),
    (
      b'{"model":"m","prompt":"a","suffix":"b"}',
      "suffix",
      "unsupported_parameter",
    ),
    (
      b'{"model":"m","prompt":"a","length_penalty":2}',
      "length_penalty",
      "unsupported_value",
    ),
    (b'{"model":"m"', None, "invalid_json"),
    (b'{"model":"\xff"', None, "invalid_json"),
  )
  def test_refuses(self, body, param, code):
    with self.assertRaises(errors.ApiError) as caught:
      bodies.decode(body, requests.Completion)
    error = caught.exception.body.error
    self.assertEqual(caught.exception.status, 400)
    self.assertEqual(error.param, param)
    self.assertEqual(error.code, code)
    if param is not None:
      self.assertIn(param, error.message)

  def test_null_is_as_if_left_out(self):
    names = requests.Completion.__struct_fields__
    optional = [n for n in names if n not in ("model", "prompt")]
    rest = ",".join(f'"{name}":null' for name in optional)
    body = b'{"model":"m","prompt":"a",' + rest.encode() + b"}"
    self.assertEqual(
      bodies.decode(body, requests.Completion),
      bodies.decode(b'{"model":"m","prompt":"a"}', requests.Completion),
    )

  def test_whole_numbers_with_a_point(self):
    body = b'{"model":"m","prompt":[1.0,2],"n":2.0,"temperature":1}'
    decoded = bodies.decode(body, requests.Completion)
    self.assertEqual(decoded.prompt, [1, 2])
    self.assertEqual(decoded.n, 2)
    with self.assertRaises(errors.ApiError):
      bodies.decode(b'{"model":"m","prompt":[1.5]}', requests.Completion)

  def test_what_changes_nothing_may_be_said(self):
    body = b'{"model":"m","prompt":"a","use_beam_search":false,"bad_words":[]}'
    self.assertFalse(bodies.decode(body, requests.Completion).use_beam_search)


if __name__ == "__main__":
  absltest.main()
