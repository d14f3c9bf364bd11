import datetime
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from data import chat
from data import tokenizer as tokenizer_lib

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_HELLO = [{"role": "user", "content": "Hello!"}]


class ChatTest(parameterized.TestCase):
  def folder(self, template=None, **config):
    """A tokenizer's folder with a template in its config."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    if template is not None:
      config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder

  def render(self, template, messages=_HELLO, **config):
    return chat.render(
      messages, self.folder(template, **config), add_generation_prompt=True
    )

  @parameterized.product(
    name=("tiny_bytelevel_bpe", "tiny_metaspace_bytefallback"),
    add_generation_prompt=(False, True),
  )
  def test_equals_transformers(self, name, add_generation_prompt):
    golden = json.loads((_TESTDATA / name / "golden.json").read_text())
    tokenizer = tokenizer_lib.Tokenizer.load(_TESTDATA / name)
    suffix = f"generation_prompt_{add_generation_prompt}"
    self.assertNotEmpty(golden["chat"])
    for case in golden["chat"]:
      if "error" in case:
        with self.assertRaisesRegex(ValueError, case["error"]):
          chat.render(
            case["messages"],
            _TESTDATA / name,
            add_generation_prompt=add_generation_prompt,
          )
        continue
      text = chat.render(
        case["messages"],
        _TESTDATA / name,
        add_generation_prompt=add_generation_prompt,
      )
      self.assertEqual(text, case[f"text_{suffix}"])
      self.assertEqual(
        tokenizer.encode_with_special_tokens(text), case[f"ids_{suffix}"]
      )

  def test_blocks_leave_no_white_space(self):
    template = "{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n"
    self.assertEqual(self.render(template + "{% endfor %}\n"), "x\n")

  def test_special_tokens_are_text(self):
    text = self.render(
      "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
      bos_token="<s>",
      eos_token={"content": "</s>", "special": True},
      pad_token=None,
    )
    self.assertEqual(text, "<s>|</s>|")

  def test_json_is_not_escaped(self):
    self.assertEqual(
      self.render("{{ messages[0] | tojson }}", [{"content": "<한글>'&"}]),
      '{"content": "<한글>\'&"}',
    )
    self.assertEqual(
      self.render("{{ messages | tojson(indent=1) }}", [1]), "[\n 1\n]"
    )

  def test_what_templates_of_published_models_use(self):
    year = datetime.datetime.now().strftime("%Y")
    self.assertIn(
      self.render("{{ strftime_now('%Y') }}"), (year, str(int(year) + 1))
    )
    loop = "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}"
    self.assertEqual(self.render(loop + "{{ i }}{% endfor %}"), "1")
    span = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    self.assertEqual(self.render(span), "Hello!")
    unset = "{{ tools is none }} {{ documents is none }} {{ date is defined }}"
    self.assertEqual(self.render(unset), "True True False")

  def test_where_the_template_is(self):
    named = [
      {"name": "tool_use", "template": "tools"},
      {"name": "default", "template": "plain"},
    ]
    self.assertEqual(self.render(named), "plain")
    with self.assertRaisesRegex(ValueError, "has tool_use, but no 'default'"):
      self.render(named[:1])
    folder = self.folder(named)
    (folder / "chat_template.jinja").write_text("file")
    self.assertEqual(
      chat.render(_HELLO, folder, add_generation_prompt=True), "file"
    )
    for empty in (self.folder(), self.create_tempdir().full_path):
      with self.assertRaisesRegex(ValueError, "has no chat template"):
        chat.render(_HELLO, empty, add_generation_prompt=True)

  def test_templates_beside_each_other(self):
    named = [
      {"name": "tool_use", "template": "{{ tools | length }}"},
      {"name": "default", "template": "plain"},
    ]
    folder = self.folder(named)
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ documents | length }}")
    templates = chat.load(folder)
    self.assertSameElements(templates.sources, ("default", "tool_use", "rag"))
    for tools, text in ((None, "plain"), ([], "plain"), ([{}, {}], "2")):
      self.assertEqual(
        templates.render(_HELLO, add_generation_prompt=True, tools=tools), text
      )

  def test_what_else_a_template_asks_for(self):
    templates = chat.load(
      self.folder(
        "{{ bos_token }}{% if enable_thinking %}{{ documents }}{% endif %}",
        bos_token="<s>",
      )
    )
    self.assertEqual(
      templates.variables(), {"bos_token", "enable_thinking", "documents"}
    )
    for arguments, text in (
      ({}, "<s>"),
      ({"enable_thinking": True}, "<s>['a']"),
      # What the model has is not the request's to say.
      ({"bos_token": "x", "documents": "y", "messages": 1}, "<s>"),
    ):
      self.assertEqual(
        templates.render(
          _HELLO,
          add_generation_prompt=True,
          documents=["a"],
          arguments=arguments,
        ),
        text,
      )

  def test_going_on_with_the_last_message(self):
    templates = chat.load(
      self.folder(
        "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
        "{% if add_generation_prompt %}[{% endif %}"
      )
    )
    messages = [*_HELLO, {"role": "assistant", "content": " Hello!"}]

    def render(messages, *, add_generation_prompt=False):
      return templates.render(
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=True,
      )

    self.assertEqual(render(messages), "[Hello!][Hello!")
    with self.assertRaisesRegex(ValueError, "are both true"):
      render(messages, add_generation_prompt=True)
    with self.assertRaisesRegex(ValueError, "content is text"):
      render([{"role": "assistant", "content": None}])
    silent = chat.load(self.folder("{{ messages | length }}"))
    with self.assertRaisesRegex(ValueError, "cannot be gone on with"):
      silent.render(
        messages, add_generation_prompt=False, continue_final_message=True
      )

  @parameterized.parameters(
    ("{{ raise_exception('no system role') }}", "no system role"),
    ("{% for m in messages %}", "TemplateSyntaxError"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
  )
  def test_refuses(self, template, message):
    with self.assertRaisesRegex(ValueError, message):
      self.render(template)


if __name__ == "__main__":
  absltest.main()
