from absl.testing import absltest
from absl.testing import parameterized

from serve.api import xml_values

_ROOT = {
  "$defs": {
    "unit": {"enum": ["C", "F"]},
    "size": {"type": "integer"},
    "loop": {"$ref": "#/$defs/loop"},
  }
}


class XmlValuesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, []),
    (None, []),
    ({"type": "string"}, ["string"]),
    ({"type": ["string", "null"]}, ["string", "null"]),
    ({"const": True}, ["boolean"]),
    ({"enum": ["a", 1, None]}, ["string", "integer", "null"]),
    ({"anyOf": [{"type": "number"}, {"type": "null"}]}, ["number", "null"]),
    ({"$ref": "#/$defs/unit"}, ["string"]),
    ({"$ref": "#/$defs/loop"}, []),
    ({"$ref": "#/nowhere/x"}, []),
    ({"properties": {}}, ["object"]),
    ({"items": {}}, ["array"]),
  )
  def test_types(self, schema, names):
    self.assertEqual(xml_values.types(schema, _ROOT), set(names))
    is_text = xml_values.is_text(schema, _ROOT)
    self.assertEqual(is_text, set(names) <= {"string"})

  @parameterized.parameters(
    ({"enum": ["a", 1, None]}, ["a", "1", "null"]),
    ({"const": "a"}, ["a"]),
    ({"$ref": "#/$defs/unit"}, ["C", "F"]),
    ({"allOf": [{"$ref": "#/$defs/unit"}]}, ["C", "F"]),
    (
      {"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}]},
      ["C", "F", "null"],
    ),
    ({"anyOf": [{"const": 1}, {"type": "boolean"}]}, ["1", "true", "false"]),
    ({"anyOf": [{"const": 1}, {"type": "string"}]}, None),
    ({"allOf": [{"const": 1}, {"const": 2}]}, None),
    ({"$ref": "#/$defs/loop"}, None),
    ({"type": ["null", "string"]}, None),
    ({}, None),
    (True, None),
  )
  def test_options(self, schema, texts):
    self.assertEqual(xml_values.options(schema, _ROOT), texts)

  def test_parameters(self):
    properties = {"a": {"type": "integer"}, "b": True}
    for root, names, required in (
      (None, [], []),
      ({}, [], []),
      ({"properties": 5, "required": 5}, [], []),
      ({"properties": properties}, ["a", "b"], []),
      (
        {"properties": properties, "required": ["c", "b", 1]},
        ["a", "b", "c"],
        ["c", "b"],
      ),
      (
        {"$ref": "#/$defs/x", "$defs": {"x": {"properties": properties}}},
        ["a", "b"],
        [],
      ),
    ):
      self.assertEqual([*xml_values.parameters(root)], names)
      self.assertEqual(xml_values.required(root), required)

  @parameterized.parameters(
    ("5", {"$ref": "#/$defs/size"}, "5"),
    (" -5\n", {"type": "integer"}, "-5"),
    ("5", {"type": "string"}, '"5"'),
    ("5", {}, '"5"'),
    ("5.5", {"type": "number"}, "5.5"),
    ("5", {"type": "number"}, "5"),
    ("five", {"type": "number"}, '"five"'),
    ("NaN", {"type": "number"}, '"NaN"'),
    ("True", {"type": "boolean"}, "true"),
    ("false", {"type": "boolean"}, "false"),
    ("true", {"type": "integer"}, '"true"'),
    ("None", {"type": ["string", "null"]}, "null"),
    ("None", {"type": "string"}, '"None"'),
    ('{"a": [1]}', {"type": "object"}, '{"a": [1]}'),
    ("[1, 2", {"type": "array"}, '"[1, 2"'),
    ("[" * 100_000, {"type": "array"}, f'"{"[" * 100_000}"'),
    ('say "한"\n', {"type": ["string", "null"]}, '"say \\"한\\"\\n"'),
    ('"a"', {"type": ["string", "null"]}, '"\\"a\\""'),
  )
  def test_values(self, text, schema, wanted):
    self.assertEqual(xml_values.to_json(text, schema, _ROOT), wanted)


if __name__ == "__main__":
  absltest.main()
