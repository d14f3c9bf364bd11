import unittest

from absl.testing import absltest
import msgspec

from serve import grammar
from serve.api import constraints
from serve.api import errors
from serve.api import fixtures
from serve.api import requests

_SCHEMA = {"type": "object"}


def _read(**fields):
  body = {"model": "m", "prompt": "a", **fields}
  return constraints.read(msgspec.convert(body, requests.Completion))


class ConstraintsTest(absltest.TestCase, unittest.IsolatedAsyncioTestCase):
  def test_fields(self):
    schema = grammar.JsonSchema(schema=_SCHEMA)
    lenient = grammar.JsonSchema(schema=_SCHEMA, is_strict=False)
    named = {"name": "x", "schema": _SCHEMA}
    regex = grammar.Regex(pattern="a")
    choice = grammar.Choice(texts=("a", "b"))
    lark = grammar.Lark(grammar='start: "a"')
    for field, value, rule in (
      ("response_format", {"type": "json_object"}, grammar.JSON_OBJECT),
      (
        "response_format",
        {"type": "json_schema", "json_schema": named},
        schema,
      ),
      (
        "response_format",
        {"type": "json_schema", "json_schema": named | {"strict": False}},
        lenient,
      ),
      ("guided_json", _SCHEMA, schema),
      ("guided_json", '{"type": "object"}', schema),
      ("guided_regex", "a", regex),
      ("guided_choice", ["a", "b"], choice),
      ("guided_grammar", 'start: "a"', lark),
      ("structured_outputs", {"json": _SCHEMA}, schema),
      ("structured_outputs", {"json_object": True}, grammar.JSON_OBJECT),
      ("structured_outputs", {"regex": "a"}, regex),
      ("structured_outputs", {"choice": ["a", "b"]}, choice),
      ("structured_outputs", {"grammar": 'start: "a"'}, lark),
    ):
      found = _read(**{field: value})
      assert found is not None
      self.assertEqual(found.rule, rule)
      self.assertStartsWith(found.param, field)
    for fields in (
      {},
      {"response_format": {"type": "text"}},
      {"structured_outputs": {}},
    ):
      self.assertIsNone(_read(**fields))

  def test_only_one(self):
    for fields in (
      {"guided_regex": "a", "guided_json": {}},
      {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    ):
      with self.assertRaisesRegex(errors.ApiError, "are both rules"):
        _read(**fields)

  async def test_each_answer_has_its_own(self):
    context = fixtures.context(fixtures.FakeEngine())
    rule = constraints.Rule(rule=grammar.Regex(pattern="M"), param="x")
    first, second = await constraints.compile_rule(rule, context, 2)
    assert first is not None and second is not None
    first.accept([50])
    self.assertTrue(first.is_complete)
    self.assertFalse(second.is_complete)
    none = await constraints.compile_rule(None, context, 2)
    self.assertEqual(list(none), [None, None])
    with self.assertRaises(errors.ApiError) as caught:
      bad = constraints.Rule(rule=grammar.Regex(pattern="("), param="x")
      await constraints.compile_rule(bad, context, 1)
    self.assertEqual(caught.exception.body.error.param, "x")


if __name__ == "__main__":
  absltest.main()
