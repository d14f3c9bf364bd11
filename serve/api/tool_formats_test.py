from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from serve import grammar
from serve.api import fixtures
from serve.api import messages
from serve.api import tool_formats

_F = tool_formats.Format
_ADD = messages.Function(
  name="add",
  parameters={
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
  },
  strict=True,
)
_FUNCTIONS = (_ADD, messages.Function(name="look-up.x"))
_ONE = '{"name": "add", "arguments": {"a": 1, "b": "x"}}'
_TWO = '{"name": "look-up.x", "arguments": {"q": [1]}}'
_WRONG = '{"name": "add", "arguments": {"a": "1", "b": "x"}}'
# By format: one call, two calls. XML is in xml_rules_test.py.
_TEXTS = {
  _F.HERMES: (
    f"<tool_call>\n{_ONE}\n</tool_call>",
    f"<tool_call>\n{_ONE}\n</tool_call>\n<tool_call>\n{_TWO}\n</tool_call>",
  ),
  _F.MISTRAL: (f"<|eot_id|>[{_ONE}]", f"<|eot_id|>[{_ONE}, {_TWO}]"),
  _F.MISTRAL_ARGS: (
    '<|eot_id|>add[ARGS]{"a": 1, "b": "x"}',
    '<|eot_id|>add[ARGS]{"a": 1, "b": "x"}<|eot_id|>look-up.x[ARGS]{}',
  ),
  _F.LLAMA: (_ONE, f"{_ONE}; {_TWO}"),
  _F.JSON: (_ONE, f"[{_ONE}, {_TWO}]"),
}


def _literal(text):
  # The tokenizer has no [TOOL_CALLS].
  if text == "[TOOL_CALLS]":
    return f"<[{fixtures.END}]>"
  return tool_formats.quoted(text)


class ToolFormatsTest(parameterized.TestCase):
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

  @parameterized.product(kind=tuple(_TEXTS), is_parallel=(True, False))
  def test_calls_are_enforced(self, kind, is_parallel):
    source = tool_formats.forced(
      kind, _FUNCTIONS, is_parallel=is_parallel, literal=_literal
    )
    one, two = _TEXTS[kind]
    if kind is _F.JSON and is_parallel:
      one = f"[{one}]"
    if kind is _F.LLAMA:
      one, two = (t.replace("arguments", "parameters") for t in (one, two))
    self.assertTrue(self.obeys(source, one))
    self.assertEqual(self.obeys(source, two), is_parallel)
    for wrong in ("", "Hi.", one[:-1], one.replace("1", '"1"')):
      self.assertFalse(self.obeys(source, wrong), wrong)

  @parameterized.product(kind=tuple(_TEXTS), is_strict=(True, False))
  def test_references_are_to_the_functions_own_schema(self, kind, is_strict):
    def function(name, value):
      schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/value"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"value": value},
      }
      return messages.Function(name=name, parameters=schema, strict=is_strict)

    source = tool_formats.forced(
      kind,
      (function("f", {"const": 1}), function("g", {"const": "x"})),
      is_parallel=False,
      literal=_literal,
    )
    one = _TEXTS[kind][0].replace("add", "%s").replace('1, "b": "x"', "%s")
    if kind is _F.LLAMA:
      one = one.replace("arguments", "parameters")
    for name, value, obeys in (
      ("f", "1", True),
      ("g", '"x"', True),
      ("f", '"x"', False),
      ("g", "1", False),
    ):
      self.assertEqual(self.obeys(source, one % (name, value)), obeys)

  def test_calls_are_allowed(self):
    source = tool_formats.allowed(_F.HERMES, _FUNCTIONS)
    one, two = _TEXTS[_F.HERMES]
    for text in ("", "Hi.", "a < b", one, f"Hm: {one}", f"{two} Bye."):
      self.assertTrue(self.obeys(source, text), text)
    self.assertFalse(self.obeys(source, one.replace(_ONE, _WRONG)))
    self.assertIsNone(tool_formats.allowed(_F.LLAMA, _FUNCTIONS))

  def test_overlap(self):
    for text, num in (("", 0), ("a<to", 3), ("<tool", 0), ("a<t<", 1)):
      self.assertEqual(tool_formats.overlap(text, "<tool"), num)

  @parameterized.parameters(
    ("{{ '<tool_call>' }}", _F.HERMES),
    ("<tool_call>\n<function=f>\n<parameter=p>", _F.XML),
    ("[TOOL_CALLS][", _F.MISTRAL),
    ("[TOOL_CALLS]{{ name }}[ARGS]", _F.MISTRAL_ARGS),
    ("<|python_tag|>", _F.LLAMA),
    ('{"name": function name, "parameters": dictionary}', _F.LLAMA),
    ("{{ tools }}", _F.JSON),
  )
  def test_detects(self, template, kind):
    self.assertIs(tool_formats.detect(template), kind)


if __name__ == "__main__":
  absltest.main()
