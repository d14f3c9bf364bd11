import json
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import schema
from model.hf import importer
from serve import checkpoint_fixtures as fixtures
from serve import conventions


def meta(**values: Any) -> checkpoint.Meta:
  described = {"model": schema.to_dict(fixtures.config())}
  files = {checkpoint.CONFIG_FILE: described} | values
  return checkpoint.Meta(
    files={name: json.dumps(value).encode() for name, value in files.items()},
    array_digests={},
  )


def imported(generation: Any = None, **config: Any) -> checkpoint.Meta:
  values = {importer.CONFIG_FILE: config}
  if generation is not None:
    values[importer.GENERATION_FILE] = generation
  return meta(**values)


class TextsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(absltest.get_default_test_tmpdir(), "tokenizer")
    fixtures.write_tokenizer(folder)
    cls.tokenizer = tokenizer_lib.Tokenizer.load(folder)
    # A BOS before every text, as Llama's has it.
    spec = json.loads((folder / "tokenizer.json").read_text())
    bos = {"id": tokenizer_lib.BOS, "type_id": 0}
    spec["post_processor"] = {
      "type": "TemplateProcessing",
      "single": [
        {"SpecialToken": bos},
        {"Sequence": {"id": "A", "type_id": 0}},
      ],
      "pair": [
        {"SpecialToken": bos},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
      ],
      "special_tokens": {
        tokenizer_lib.BOS: {
          "id": tokenizer_lib.BOS,
          "ids": [cls.tokenizer.bos_id],
          "tokens": [tokenizer_lib.BOS],
        }
      },
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    cls.with_bos = tokenizer_lib.Tokenizer.load(folder)

  def test_how_texts_begin(self):
    ids = self.tokenizer.encode("one")
    eos, bos = self.tokenizer.eos_id, self.tokenizer.bos_id
    for begin, tokenizer, text, wanted in (
      (conventions.start(meta()), self.tokenizer, "one", [eos, *ids]),
      (conventions.start(meta()), self.with_bos, "one", [eos, *ids]),
      (conventions.start(imported()), self.tokenizer, "one", ids),
      (conventions.start(imported()), self.with_bos, "one", [bos, *ids]),
      (conventions.start(imported()), self.with_bos, "", [bos]),
      (conventions.start(imported()), self.tokenizer, "", [eos]),
      (conventions.start(meta()), self.tokenizer, "", [eos]),
    ):
      found = conventions.encode(text, tokenizer, begin)
      self.assertEqual(found, wanted, (begin, text))
      first = conventions.begin_id(tokenizer, begin)
      if text:
        put = [] if first is None else [first]
        self.assertEqual([*put, *ids], wanted, (begin, text))

  def test_defaults_as_fields(self):
    self.assertEqual(conventions.Generation().fields, {})
    given = conventions.Generation(temperature=0.0, top_k=20, max_tokens=9)
    fields = {"temperature": 0.0, "top_k": 20, "max_tokens": 9}
    self.assertEqual(given.fields, fields)

  def test_what_ends_texts(self):
    eos = self.tokenizer.eos_id
    self.assertEqual(conventions.end_ids(meta(), self.tokenizer), {eos})
    self.assertEmpty(conventions.end_ids(meta(), None))
    several = imported({"eos_token_id": [8, 9]}, eos_token_id=7)
    self.assertEqual(
      conventions.end_ids(several, self.tokenizer), {eos, 7, 8, 9}
    )
    # Beyond the vocabulary, and null.
    odd = imported({"eos_token_id": 300}, eos_token_id=None)
    self.assertEqual(conventions.end_ids(odd, self.tokenizer), {eos})


class GenerationTest(parameterized.TestCase):
  def test_nothing_is_said(self):
    nothing = conventions.Generation()
    self.assertEqual(conventions.generation(meta()), nothing)
    self.assertEqual(conventions.generation(imported({})), nothing)
    harmless = {"eos_token_id": 3, "transformers_version": "5", "num_beams": 1}
    self.assertEqual(conventions.generation(imported(harmless)), nothing)

  def test_settings(self):
    found = conventions.generation(
      imported(
        {
          "do_sample": True,
          "temperature": 0.6,
          "top_k": 20,
          "top_p": 0.95,
          "min_p": 0.05,
          "repetition_penalty": 1.1,
          "max_new_tokens": 2048,
        }
      )
    )
    self.assertEqual(
      found,
      conventions.Generation(
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=0.05,
        repetition_penalty=1.1,
        max_tokens=2048,
      ),
    )

  def test_greedy(self):
    found = conventions.generation(
      imported({"do_sample": False, "temperature": 0.6, "top_k": 0})
    )
    self.assertEqual(found, conventions.Generation(temperature=0.0))

  def test_what_cannot_be_done_is_said(self):
    found = conventions.generation(
      imported({"num_beams": 4, "knob": [1], "other": None, "typical_p": 1.0})
    )
    self.assertEqual(found.left_out, ("num_beams=4", "knob=[1]"))

  @parameterized.parameters(
    ("temperature", -1), ("top_p", 2), ("top_k", "all"), ("min_p", True)
  )
  def test_refused(self, name, value):
    with self.assertRaisesRegex(
      ValueError, f"generation_config.json: {name} is {value!r}; it must be a"
    ):
      conventions.generation(imported({name: value}))


if __name__ == "__main__":
  absltest.main()
