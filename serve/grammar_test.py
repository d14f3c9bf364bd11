from concurrent import futures
import json
import pathlib
import re
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import tokenizer as tokenizer_lib
from serve import grammar

_TESTDATA = pathlib.Path("data/testdata")
_TEXT = (
  "In the beginning was the word, and the word was 1234 bytes long. "
  "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다. "
)
_EOS = (1, 3)  # The end of a text, and a reserved token.
_VOCAB_SIZE = 333  # More than the tokenizer's 300, and no multiple of 32.
_SPECIAL = range(16)


def _allowed(mask) -> list[int]:
  bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
  return np.flatnonzero(bits).tolist()


class _Case(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(absltest.get_default_test_tmpdir(), cls.__name__)
    cls.tokenizer = tokenizer_lib.Tokenizer.train([_TEXT], vocab_size=300)
    cls.tokenizer.save(folder)
    cls.folder = folder
    cls.compiler = grammar.Compiler(
      folder, vocab_size=_VOCAB_SIZE, eos_ids=_EOS
    )

  def walk(self, rule, *, seed, most=400) -> str | None:
    """A random text under the masks; None if it does not end."""
    rng = np.random.default_rng(seed)
    matcher = self.compiler.compile(rule)
    tokens = []
    for _ in range(most):
      mask = matcher.masks([])
      self.assertEqual(mask.shape, (1, 11))
      self.assertEqual(mask.dtype, np.uint32)
      allowed = _allowed(mask[0])
      self.assertLess(max(allowed), 300)
      may_end = _EOS[0] in allowed
      self.assertEqual(may_end, _EOS[1] in allowed)
      texts = [token for token in allowed if token not in _EOS]
      self.assertEmpty(set(texts) & set(_SPECIAL))
      if matcher.is_complete:
        self.assertEmpty(texts)
      if may_end and (not texts or rng.random() < 0.3):
        matcher.accept([_EOS[int(rng.integers(2))]])
        self.assertTrue(matcher.is_complete)
        return self.tokenizer.decode(tokens)
      tokens.append(int(rng.choice(texts)))
      matcher.accept(tokens[-1:])
    return None

  def takes(self, rule, text: str) -> bool:
    """Whether a text, as the tokenizer writes it, obeys a rule."""
    matcher = self.compiler.compile(rule)
    for token in self.tokenizer.encode(text):
      if token not in _allowed(matcher.masks([])[0]):
        with self.assertRaisesRegex(ValueError, "is not allowed"):
          matcher.accept([token])
        return False
      matcher.accept([token])
    return _EOS[0] in _allowed(matcher.masks([])[0])


class RulesTest(_Case):
  def test_random_json_follows_its_schema(self):
    schema: dict[str, Any] = {
      "type": "object",
      "properties": {
        "이름": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {
          "type": "array",
          "items": {"enum": ["a", "b", "다"]},
          "minItems": 1,
          "maxItems": 3,
        },
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
      },
      "required": ["이름", "age", "tags", "more"],
      "additionalProperties": False,
      "$defs": {
        "point": {
          "type": "object",
          "properties": {"x": {"type": "boolean"}},
          "required": ["x"],
          "additionalProperties": False,
        }
      },
    }
    rule = grammar.JsonSchema(schema=schema)
    for seed in range(20):
      text = self.walk(rule, seed=seed)
      assert text is not None
      value = json.loads(text)
      self.assertEqual(list(value), ["이름", "age", "tags", "more"])
      self.assertIsInstance(value["이름"], str)
      self.assertLessEqual(len(value["이름"]), 8)
      self.assertBetween(value["age"], 0, 120)
      self.assertBetween(len(value["tags"]), 1, 3)
      self.assertContainsSubset(value["tags"], {"a", "b", "다"})
      self.assertIn(value["more"], [None, {"x": True}, {"x": False}])
    compact = '{"이름":"문장의 순서","age":7,"tags":["다"],"more":null}'
    self.assertTrue(self.takes(rule, compact))
    self.assertFalse(self.takes(rule, compact.replace(":", ": ")))
    self.assertFalse(self.takes(rule, compact.replace("7", "121")))

  def test_any_object(self):
    rule = grammar.JSON_OBJECT
    self.assertTrue(self.takes(rule, '{"a":[1.5e3,{"b":null}],"끝":"\\n한"}'))
    self.assertFalse(self.takes(rule, "[1]"))
    self.assertFalse(self.takes(rule, '{"a":01}'))

  def test_random_matches_of_a_regex(self):
    pattern = r"(문장|[0-9]{3}-[a-f]+)(, (문장|\d))*\.?"
    for seed in range(20):
      text = self.walk(grammar.Regex(pattern=pattern), seed=seed)
      assert text is not None
      self.assertIsNotNone(re.fullmatch(pattern, text), text)

  def test_random_choices(self):
    texts = ["모든", "모든 문장", 'a "b"\n\\', "", "the"]
    rule = grammar.Choice(texts=texts)
    seen = {self.walk(rule, seed=seed) for seed in range(40)}
    self.assertEqual(seen, set(texts))

  def test_random_derivations(self):
    rule = grammar.Lark(
      grammar='start: "(" start ")" | sum\nsum: N ("+" N)*\nN: /[1-9]/\n'
    )
    for seed in range(20):
      text = self.walk(rule, seed=seed)
      if text is not None:
        self.assertRegex(text, r"^\(*[1-9](\+[1-9])*\)*$")
        self.assertEqual(text.count("("), text.count(")"))
    self.assertTrue(self.takes(rule, "((1+2))"))
    self.assertFalse(self.takes(rule, "((1+2)"))

  def test_special_tokens(self):
    (first,) = self.tokenizer.encode_with_special_tokens("<|reserved_4|>")
    rule = grammar.Lark(grammar=f'start: <[{first}]> "a" <[{first + 1}]>')
    matcher = self.compiler.compile(rule)
    for token in (first, *self.tokenizer.encode("a"), first + 1):
      self.assertEqual(_allowed(matcher.masks([])[0]), [token])
      matcher.accept([token])
    self.assertTrue(matcher.is_complete)

  @parameterized.parameters("tiny_bytelevel_bpe", "tiny_metaspace_bytefallback")
  def test_other_kinds_of_tokenizers(self, name):
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / name)
    compiler = grammar.Compiler(
      _TESTDATA / name / "tokenizer.json",
      vocab_size=tokenizer.vocab_size,
      eos_ids=[tokenizer.eos_id],
    )
    rng = np.random.default_rng(0)
    rule = grammar.JsonSchema(
      schema={"type": "array", "items": {"enum": ["한글", "é", 5]}}
    )
    for _ in range(10):
      matcher, tokens = compiler.compile(rule), []
      while True:
        allowed = _allowed(matcher.masks([])[0])
        token = int(rng.choice(allowed))
        if tokenizer.eos_id in allowed:
          token = tokenizer.eos_id
        matcher.accept([token])
        if token == tokenizer.eos_id:
          break
        tokens.append(token)
      value = json.loads(tokenizer.decode(tokens))
      self.assertContainsSubset(value, ["한글", "é", 5])


class MasksTest(_Case):
  def test_behind_drafts(self):
    rng = np.random.default_rng(1)
    rules = (
      grammar.Regex(pattern="[0-9]{1,9}(문장)*"),
      grammar.JsonSchema(
        schema={"type": "array", "items": {"type": "integer"}, "maxItems": 3}
      ),
    )
    for rule in rules:
      for _ in range(10):
        matcher = self.compiler.compile(rule)
        text: list[int] = []
        while not matcher.is_complete:
          # Drafts of which some are wrong, some the end and some no tokens.
          ghost = self.compiler.compile(rule)
          ghost.accept(text)
          drafts, expected = [], [ghost.masks([])[0]]
          for _ in range(4):
            allowed = _allowed(expected[-1])
            draft = int(rng.choice([*allowed, *allowed, 5, 320, 9999]))
            drafts.append(draft)
            if draft not in allowed or draft in _EOS:
              break
            ghost.accept([draft])
            expected.append(ghost.masks([])[0])
          masks = matcher.masks([*drafts, 7, 7])
          self.assertEqual(masks.shape, (len(drafts) + 3, 11))
          for got, want in zip(masks, expected, strict=False):
            self.assertEqual(_allowed(got), _allowed(want))
          np.testing.assert_array_equal(masks[len(drafts) + 1 :], 0xFFFFFFFF)
          chosen = int(rng.choice(_allowed(masks[0])))
          matcher.accept([chosen])
          text.append(chosen)

  def test_the_end(self):
    matcher = self.compiler.compile(grammar.Choice(texts=["12", "123"]))
    with self.assertRaisesRegex(ValueError, "token 1 is not allowed"):
      matcher.accept([_EOS[0]])
    one, two, three = (self.tokenizer.encode(digit)[0] for digit in "123")
    matcher.accept([one, two])
    self.assertFalse(matcher.is_complete)
    self.assertEqual(_allowed(matcher.masks([])[0]), [*_EOS, three])
    matcher.accept([three])
    self.assertTrue(matcher.is_complete)
    masks = matcher.masks([_EOS[1], 8])
    self.assertEqual(_allowed(masks[0]), list(_EOS))
    np.testing.assert_array_equal(masks[1:], 0xFFFFFFFF)
    # Asking changed nothing.
    self.assertEqual(_allowed(matcher.masks([])[0]), list(_EOS))
    matcher.accept([_EOS[1]])
    self.assertTrue(matcher.is_complete)
    self.assertEqual(matcher.masks([8]).shape, (2, 11))
    for token in (8, _EOS[0]):
      with self.assertRaisesRegex(ValueError, "is not allowed"):
        matcher.accept([token])

  def test_threads(self):
    rule = grammar.JsonSchema(
      schema={"type": "array", "items": {"type": "boolean"}, "maxItems": 5}
    )
    with futures.ThreadPoolExecutor(4) as pool:
      walks = list(
        pool.map(lambda seed: self.walk(rule, seed=seed % 8), range(32))
      )
    for seed, text in enumerate(walks):
      self.assertIsInstance(json.loads(text or ""), list)
      self.assertEqual(text, walks[seed % 8])


class RefusalTest(_Case):
  @parameterized.parameters(
    (grammar.JsonSchema(schema={"type": "strin"}), "JsonSchema: .*strin"),
    (grammar.JsonSchema(schema={"not": {}}), "JsonSchema: .*not"),
    (grammar.JsonSchema(schema={"enum": []}), "JsonSchema: Unsatisfiable"),
    (grammar.JsonSchema(schema={"$ref": "http://a/b"}), "JsonSchema: .*http"),
    (grammar.JsonSchema(schema="x"), "JsonSchema: "),
    (grammar.Regex(pattern="(a"), "Regex: .*unclosed group"),
    (grammar.Regex(pattern="(?=a)b"), "Regex: .*look-around"),
    (grammar.Regex(pattern=r"[^\s\S]"), "Regex: there is no text"),
    (grammar.Choice(texts=[]), "Choice: there is nothing"),
    (grammar.Lark(grammar="start: a"), 'Lark: .*unknown name: "a"'),
    (grammar.Lark(grammar=""), "Lark: "),
    # More than the limits allow: 1 s without them, 0.1 s with them.
    (grammar.Regex(pattern="x(a{1000}){1000}"), "Regex: .*too many"),
    # More than max_bytes.
    (grammar.JsonSchema(schema={"const": "a" * 70_000}), "at most 65536"),
    (grammar.Regex(pattern="a" * 70_000), "Regex: 70000 bytes"),
    (grammar.Choice(texts=["a"] * 30_000), "Choice: .* at most"),
    (grammar.Lark(grammar="#" * 70_000), "Lark: 70000 bytes"),
  )
  def test_says_why(self, rule, reason):
    with self.assertRaisesRegex(ValueError, f"(?s){reason}"):
      self.compiler.compile(rule)

  def test_the_name_of_an_end_is_no_text(self):
    name = tokenizer_lib.EOS
    for rule in (
      grammar.Choice(texts=[name]),
      grammar.Lark(grammar=f'start: <[{_EOS[0]}]> "a"'),
    ):
      with self.assertRaisesRegex(ValueError, "ends a text"):
        self.compiler.compile(rule)

  def test_deep_nesting(self):
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
      schema = {"type": "array", "items": schema}
    with self.assertRaisesRegex(ValueError, "JsonSchema: recursion limit"):
      self.compiler.compile(grammar.JsonSchema(schema=schema))
    for _ in range(100_000):
      schema = {"items": schema}
    with self.assertRaisesRegex(ValueError, "JsonSchema: too deeply nested"):
      self.compiler.compile(grammar.JsonSchema(schema=schema))
    while schema:  # Python would free it recursively.
      schema = schema.pop("items", {})

  def test_keywords_that_cannot_be_enforced(self):
    schema = {"type": "array", "uniqueItems": True, "maxItems": 1}
    with self.assertRaisesRegex(ValueError, "uniqueItems"):
      self.compiler.compile(grammar.JsonSchema(schema=schema))
    rule = grammar.JsonSchema(schema=schema, is_strict=False)
    self.assertTrue(self.takes(rule, "[]"))
    self.assertFalse(self.takes(rule, "[1,1]"))

  def test_one_that_grows_too_complex_fails_alone(self):
    ambiguous = grammar.Lark(grammar='start: x\nx: x x | x x x | "a" | "b" |\n')
    matcher = self.compiler.compile(ambiguous)
    token = self.tokenizer.encode("a")[0]
    with self.assertRaisesRegex(ValueError, "(?i)too many|max is 500"):
      for _ in range(200):
        matcher.masks([token])
        matcher.accept([token])
    with self.assertRaises(ValueError):
      matcher.masks([])
    self.assertEqual(
      _allowed(self.compiler.compile(ambiguous).masks([])[0])[:2], list(_EOS)
    )

  def test_tokenizers(self):
    with self.assertRaisesRegex(ValueError, "does not exist"):
      grammar.Compiler("nowhere", vocab_size=300, eos_ids=[1])
    with self.assertRaisesRegex(ValueError, "vocab_size 299"):
      grammar.Compiler(self.folder, vocab_size=299, eos_ids=[1])
    with self.assertRaisesRegex(ValueError, "cannot be used"):
      grammar.Compiler(self.folder, vocab_size=300, eos_ids=[300])
    broken = self.create_tempfile("tokenizer.json", "{}").full_path
    with self.assertRaisesRegex(ValueError, "cannot be used"):
      grammar.Compiler(broken, vocab_size=300, eos_ids=[1])


if __name__ == "__main__":
  absltest.main()
