import json

from absl.testing import absltest
import msgspec

from serve.api import answers
from serve.api import errors
from serve.api import fixtures


class _Body(msgspec.Struct):
  text: str


class AnswersTest(absltest.TestCase):
  def test_json_says_which_checkpoint(self):
    response = answers.json(_Body("한"), step=7)
    self.assertEqual(response.headers[answers.STEP_HEADER], "7")
    self.assertEqual(json.loads(response.text or ""), {"text": "한"})
    self.assertNotIn(answers.STEP_HEADER, answers.json(_Body("")).headers)

  def test_ids_and_fingerprints_differ(self):
    self.assertNotEqual(answers.new_id("a"), answers.new_id("a"))
    self.assertNotEqual(answers.fingerprint(1), answers.fingerprint(2))

  def test_number(self):
    context = fixtures.context(fixtures.FakeEngine(), max_choices=4)
    answers.check_number("n", 2, context, num_prompts=2)
    with self.assertRaisesRegex(errors.ApiError, "max_choices"):
      answers.check_number("n", 2, context, num_prompts=3)

  def test_nobody_in_particular_outside_of_a_call(self):
    self.assertEqual(answers.user(), "")


if __name__ == "__main__":
  absltest.main()
