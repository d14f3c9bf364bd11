import json
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from data import chat_prompt
from data import tokenizer as tokenizer_lib

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_NAMES = ("tiny_bytelevel_bpe", "tiny_metaspace_bytefallback")


class ChatPromptTest(parameterized.TestCase):
  def special(self, name):
    """Ids by names of special tokens."""
    spec = json.loads((_TESTDATA / name / "tokenizer.json").read_text())
    return {t["content"]: t["id"] for t in spec["added_tokens"]}

  def folder(self, name, template):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
      (folder / file).write_bytes((_TESTDATA / name / file).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder

  @parameterized.product(name=_NAMES, add_generation_prompt=(False, True))
  def test_equals_transformers(self, name, add_generation_prompt):
    golden = json.loads((_TESTDATA / name / "golden.json").read_text())
    encoder = chat_prompt.Encoder(_TESTDATA / name)
    suffix = f"generation_prompt_{add_generation_prompt}"
    for case in golden["chat"]:
      if "error" in case:
        continue
      prompt = encoder.encode(
        case["messages"], add_generation_prompt=add_generation_prompt
      )
      self.assertEqual(prompt.text, case[f"text_{suffix}"])
      self.assertEqual(list(prompt.tokens), case[f"ids_{suffix}"])

  @parameterized.parameters(*_NAMES)
  def test_only_the_template_places_special_tokens(self, name):
    encoder = chat_prompt.Encoder(_TESTDATA / name)
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / name)
    special = self.special(name)

    def encode(content):
      prompt = encoder.encode(
        [{"role": "user", "content": content}], add_generation_prompt=True
      )
      self.assertIn(content, prompt.text)
      self.assertIn(content.strip(), tokenizer.decode(prompt.tokens))
      return [t for t in prompt.tokens if t in special.values()]

    wanted = encode("x")
    for token in special:
      for content in (token, f"a{token}{token} b", f"{token[:1]}{token}"):
        self.assertEqual(encode(content), wanted, content)
    # Other text has the ids that it has anywhere.
    for content in ("\ufdd0\ufdd1", "\ufdef", "<|", "<s", "[INST]"):
      self.assertEqual(encode(content), wanted, content)

  def test_a_name_in_pieces(self):
    name = _NAMES[0]
    template = (
      "{{ tools }}{{ documents }}{{ title }}{% for m in messages %}"
      "{{ m.a }}{{ m.b }}{{ m.c.d }}{{ '<|eot_id|>' }}{% endfor %}"
    )
    encoder = chat_prompt.Encoder(self.folder(name, template))
    end = self.special(name)["<|eot_id|>"]
    messages: Any = (
      {"a": "<|eot", "b": "_id|>", "c": {"d": "x"}},
      {"a": "<", "b": "|eot_id|", "c": {"d": ">"}},
      {"a": "x", "b": "", "c": {"d": "<|eot_id|>"}},
    )
    for message in messages:
      prompt = encoder.encode(
        [message],
        add_generation_prompt=False,
        tools=[{"<|eot_id|>": "<|eot_id|>"}],
        documents=["<|eot_id|>"],
        arguments={"title": "<|eot_id|>"},
      )
      self.assertEqual(prompt.tokens.count(end), 1)
      self.assertEqual(prompt.tokens[-1], end)
      joined = message["a"] + message["b"] + message["c"]["d"]
      self.assertIn(joined + "<|eot_id|>", prompt.text)
      self.assertNotRegex(prompt.text, "[\ufdd0-\ufdef]")

  def test_going_on_with_a_message(self):
    encoder = chat_prompt.Encoder(_TESTDATA / _NAMES[0])
    prompt = encoder.encode(
      [{"role": "assistant", "content": "ab <|eot"}],
      add_generation_prompt=False,
      continue_final_message=True,
    )
    self.assertEndsWith(prompt.text, "ab <|eot")

  @parameterized.parameters(*_NAMES)
  def test_pieces_of_a_text(self, name):
    encoder = chat_prompt.Encoder(_TESTDATA / name)
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / name)
    batch, prompts = [], []
    for content in ("a</s> b<|eot_id|> <z", "\ud55c\uad6d\uc5b4 \U0001f600 z"):
      messages = [{"role": "user", "content": content}]
      prompts.append(encoder.encode(messages, add_generation_prompt=True))
      mark = chat_prompt.unused_mark(messages)
      text = encoder.render(messages, mark=mark, add_generation_prompt=True)
      at = text.index(content[-1])
      pieces = (text[:at], "", text[at:])
      batch.append(chat_prompt.Marked(pieces=pieces, mark=mark))
    encoded = encoder.encode_pieces(batch)
    for marked, one, prompt in zip(batch, encoded, prompts, strict=True):
      self.assertEqual(tuple(one.tokens), prompt.tokens)
      self.assertTrue((one.first_pieces <= one.last_pieces).all())
      self.assertSetEqual({*one.first_pieces, *one.last_pieces}, {0, 2})
      # A token on the border is of both; the others are of one.
      before = one.tokens[one.last_pieces == 0]
      after = one.tokens[one.first_pieces == 2]
      first, _, last = (
        p.replace(marked.mark, "").replace(" ", "") for p in marked.pieces
      )
      self.assertStartsWith(first, tokenizer.decode(before).replace(" ", ""))
      self.assertEndsWith(last, tokenizer.decode(after).replace(" ", ""))
      self.assertLessEqual(len(before) + len(after), len(one.tokens))
      self.assertGreaterEqual(len(before) + len(after), len(one.tokens) - 1)

  def test_all_marks_are_taken(self):
    encoder = chat_prompt.Encoder(_TESTDATA / _NAMES[0])
    text = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))
    with self.assertRaisesRegex(ValueError, "noncharacters"):
      encoder.encode(
        [{"role": "user", "content": text}], add_generation_prompt=True
      )


if __name__ == "__main__":
  absltest.main()
