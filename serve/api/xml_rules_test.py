from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from serve import grammar
from serve.api import errors
from serve.api import fixtures
from serve.api import messages
from serve.api import tool_formats
from serve.api import xml_rules

_ADD = messages.Function(
  name="add",
  parameters={
    "type": "object",
    "properties": {
      "a": {"$ref": "#/$defs/digit"},
      "unit": {"enum": ["C", 1]},
      "text": {"type": "string"},
    },
    "required": ["a", "text"],
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
  },
  strict=True,
)
_FUNCTIONS = (_ADD, messages.Function(name="look-up.x"))


def _add(a="3", text="one\n<b>\n\n"):
  return (
    f"<function=add>\n<parameter=a>\n{a}\n</parameter>\n"
    f"<parameter=text>\n{text}\n</parameter>\n</function>"
  )


_UNIT = "<parameter=unit>\nC\n</parameter>\n"
_TEXT = "<parameter=text>"
_LOOK_UP = (
  "<function=look-up.x>\n<parameter=any key>\n1\n</parameter>\n</function>"
)


def _marked(*calls):
  return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


class XmlRulesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._compiler = grammar.Compiler(
      fixtures.TOKENIZER, vocab_size=fixtures.VOCAB_SIZE, eos_ids=[2]
    )
    self._tokenizer = tokenizers.Tokenizer.from_file(
      str(fixtures.TOKENIZER / "tokenizer.json")
    )

  def obeys(self, source, text):
    matcher = self._compiler.compile(grammar.Lark(grammar=source))
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    try:
      matcher.accept([*ids, 2])
    except ValueError:
      return False
    return True

  @parameterized.parameters(True, False)
  def test_calls_are_enforced(self, is_parallel):
    source = xml_rules.forced(
      _FUNCTIONS, is_parallel=is_parallel, literal=tool_formats.quoted
    )
    for call in (_add(), _add().replace(_TEXT, _UNIT + _TEXT), _LOOK_UP):
      self.assertTrue(self.obeys(source, _marked(call)), call)
    both = _marked(_add(), _LOOK_UP)
    self.assertEqual(self.obeys(source, both), is_parallel)
    for wrong in (
      "",
      "Hi.",
      _add(),
      _marked(_add("x")),
      _marked(_add("10")),
      _marked(_add().replace("add>", "sub>")),
      _marked(_add().replace(_TEXT, _UNIT.replace("C", "D") + _TEXT)),
      _marked("<function=add>\n</function>"),
    ):
      self.assertFalse(self.obeys(source, wrong), wrong)

  def test_calls_are_allowed(self):
    source = xml_rules.allowed(_FUNCTIONS)
    call = _marked(_add())
    for text in (
      "",
      "a < b",
      call,
      f"Hm: {call} Bye.",
      _add(),
      f"{call}\n" * 2,
    ):
      self.assertTrue(self.obeys(source, text), text)
    for wrong in (_marked(_add("x")), _add("x"), _marked("<function=sub>")):
      self.assertFalse(self.obeys(source, wrong), wrong)

  def test_what_a_value_may_be(self):
    properties = {
      "unit": {"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}]},
      "more": {"type": "array", "items": {"$ref": "#/$defs/unit"}},
    }
    source = xml_rules.forced(
      [
        messages.Function(
          name="f",
          parameters={
            "properties": properties,
            "required": ["unit", "any"],
            "$defs": {"unit": {"enum": ["C", "F"]}},
          },
        )
      ],
      is_parallel=False,
      literal=tool_formats.quoted,
    )
    for unit, more, fits in (
      ("C", '["F", "C"]', True),
      ("null", "[]", True),
      ("D", "[]", False),
      ("C", '["D"]', False),
    ):
      call = _marked(
        f"<function=f>\n<parameter=unit>\n{unit}\n</parameter>\n"
        f"<parameter=more>\n{more}\n</parameter>\n"
        "<parameter=any>\n1\n</parameter>\n</function>"
      )
      self.assertEqual(self.obeys(source, call), fits, call)
      call = call.replace("<parameter=any>\n1\n</parameter>\n", "")
      self.assertFalse(self.obeys(source, call), call)

  @parameterized.parameters(
    ({"required": 5}, False, "required"),
    ({"required": ["a", 5]}, False, "required"),
    ({"properties": []}, False, "properties"),
    ({"$ref": "#/nowhere"}, False, "ref"),
    ({"$ref": "#"}, False, "ref"),
    ({"properties": {"a>b": {}}}, False, "a>b"),
    ({"properties": {"a": {"const": "</parameter>"}}}, False, "option"),
    ({"properties": {"a": {"type": "string", "title": "A"}}}, True, None),
    ({"properties": {"a": {"type": "string", "maxLength": 2}}}, False, None),
    ({"properties": {"a": {"maxLength": 2}}}, True, "maxLength"),
    (
      {"properties": {"a": {"anyOf": [{"type": "string", "pattern": "a"}]}}},
      True,
      "pattern",
    ),
    ({"properties": {"a": {"$ref": "#/$defs/none"}}}, True, "schema"),
    ({"properties": {"a": False}}, True, "schema"),
    ({"minProperties": 1}, True, "minProperties"),
    (None, True, None),
  )
  def test_what_cannot_be_enforced_is_refused(self, schema, strict, word):
    function = messages.Function(name="f", parameters=schema, strict=strict)

    def forced(functions):
      return xml_rules.forced(
        functions, is_parallel=True, literal=tool_formats.quoted
      )

    for make in (forced, xml_rules.allowed):
      if word is None:
        self._compiler.compile(grammar.Lark(grammar=make([function])))
        continue
      with self.assertRaisesRegex(errors.ApiError, word):
        make([function])


if __name__ == "__main__":
  absltest.main()
