"""Corpora that Cacao prepares itself: from nothing to datasets in one call.

A recipe is prepared in one directory, in steps that each leave their result
whole or not at all, so an interrupted preparation goes on where it stopped:

    recipe.json   which version of the recipe this is
    text/         documents, <source>/<split>.jsonl; digests are in the tree
    tokenizer/    trained on the train split
    tokens/       datasets, <source>/<split>
    complete      everything above is there
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import time

from data import config as config_lib
from data import corpora
from data import directory_lock
from data import manifest
from data import tokenization
from data import tokenizer as tokenizer_lib
from data import wheels

# Raised when the preparation itself changes what it makes.
_VERSION = 1
# A process starts in half a second.
_BYTES_WORTH_A_PROCESS = 2_000_000
_LOCKS = pathlib.Path(__file__).parents[1] / "third_party" / "corpora"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One source of a recipe: its documents and its usual weight."""

  name: str
  weight: float
  extract: corpora.Extractor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What to prepare.

  Attributes:
    name: also the name of its directory.
    sources: the sources, all extracted from the packages of one lock.
    lock: requirements file with the packages and their sha256.
    digests: file with the sha256 of the texts, as sha256sum writes it.
    vocab_size: of the tokenizer.
    tokenizer_characters: text to train it on, shared out by the weights.
  """

  name: str
  sources: tuple[Source, ...]
  lock: pathlib.Path
  digests: pathlib.Path
  vocab_size: int
  tokenizer_characters: int

  @property
  def digest(self) -> str:
    """Changes when what the recipe makes does."""
    content = [_VERSION, self.vocab_size, self.tokenizer_characters]
    content += [[source.name, source.weight] for source in self.sources]
    content += [self.lock.read_text(), self.digests.read_text()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """Where a recipe's results are."""

  root: pathlib.Path
  tokenizer: pathlib.Path
  sources: tuple[config_lib.SourceConfig, ...]


QUICKSTART = Recipe(
  name="quickstart",
  sources=(
    Source(name="api_docs", weight=0.4, extract=corpora.api_docs),
    Source(name="prose", weight=0.1, extract=corpora.prose),
    Source(name="code", weight=0.3, extract=corpora.code),
    Source(name="korean", weight=0.2, extract=corpora.korean),
  ),
  lock=_LOCKS / "requirements.txt",
  digests=_LOCKS / "quickstart.sha256",
  vocab_size=8192,
  tokenizer_characters=12_000_000,
)
RECIPES = {QUICKSTART.name: QUICKSTART}


def resolve(config: config_lib.DataConfig) -> config_lib.DataConfig:
  """The config with its recipe, if it has one, prepared and filled in.

  Args:
    config: of any kind. For a recipe, its sources choose and weigh those of the
      recipe; none means all, with the recipe's weights.

  Returns:
    A config of kind `datasets` or `synthetic`, for `data.pipeline`.

  Raises:
    ValueError: there is no such recipe or source, or it cannot be prepared.
  """
  if config.kind is not config_lib.Kind.RECIPE:
    return config
  if config.recipe not in RECIPES:
    raise ValueError(
      f"data.recipe is {config.recipe!r}; it must be one of"
      f" {', '.join(RECIPES)}"
    )
  recipe = RECIPES[config.recipe]
  known = [source.name for source in recipe.sources]
  for source in config.sources:
    if source.name not in known:
      raise ValueError(
        f"data.sources has {source.name!r}; recipe {recipe.name} has"
        f" {', '.join(known)}"
      )
  root = pathlib.Path(config.root) if config.root else default_root(recipe)
  prepared = prepare(recipe, root)
  by_name = {source.name: source for source in prepared.sources}
  chosen = [
    dataclasses.replace(by_name[source.name], weight=source.weight)
    for source in config.sources
  ]
  return dataclasses.replace(
    config,
    kind=config_lib.Kind.DATASETS,
    recipe="",
    root="",
    tokenizer=str(prepared.tokenizer),
    sources=tuple(chosen) or prepared.sources,
  )


def default_root(recipe: Recipe) -> pathlib.Path:
  """Where a recipe is prepared: in the user's cache directory."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "cacao" / "data" / recipe.name


def prepare(recipe: Recipe, root: str | pathlib.Path) -> Prepared:
  """Prepares a recipe in `root`, or finishes it; at once if it is complete.

  Raises:
    ValueError: the packages cannot be had, their text is not what the digests
      say, or `root` holds another version of the recipe or cannot be written.
  """
  root = pathlib.Path(root).absolute()
  prepared = Prepared(
    root=root,
    tokenizer=root / "tokenizer",
    sources=tuple(
      config_lib.SourceConfig(
        name=source.name,
        weight=source.weight,
        path=str(root / "tokens" / source.name / "train"),
        eval_path=str(root / "tokens" / source.name / "held_out"),
      )
      for source in recipe.sources
    ),
  )
  with directory_lock.hold(root):
    _claim(recipe, root)
    if not (root / "complete").is_file():
      print(f"Preparing the {recipe.name} data in {root}", flush=True)
      _write_text(recipe, root)
      _train_tokenizer(recipe, root)
      _tokenize(recipe, root)
      manifest.write_atomically(root / "complete", recipe.digest + "\n")
  return prepared


def _claim(recipe: Recipe, root: pathlib.Path) -> None:
  """Notes which recipe `root` is for, or checks that it is this one."""
  file = root / "recipe.json"
  ours = {"name": recipe.name, "digest": recipe.digest}
  if not file.is_file():
    manifest.write_atomically(file, json.dumps(ours) + "\n")
  elif json.loads(file.read_text(encoding="utf-8")) != ours:
    raise ValueError(
      f"data.root {str(root)!r} holds another version of the data, or another"
      f" recipe, than this {recipe.name}; remove it or set data.root to another"
      " directory"
    )


def _write_text(recipe: Recipe, root: pathlib.Path) -> None:
  """Packages to JSONL, checked against the digests in the tree."""
  text = root / "text"
  if text.is_dir():
    return
  packages, partial = root / "packages", root / "text.partial"
  with _step("get packages"):
    wheels.unpack(recipe.lock, packages, wheels=root / "wheels")
  with _step("extract documents"):
    shutil.rmtree(partial, ignore_errors=True)
    with concurrent.futures.ProcessPoolExecutor(
      min(len(recipe.sources), os.cpu_count() or 1),
      multiprocessing.get_context("spawn"),
    ) as pool:
      futures = [
        pool.submit(
          corpora.write, source.extract, packages, partial / source.name
        )
        for source in recipe.sources
      ]
      for future in futures:
        future.result()
    _check_digests(recipe, partial)
    partial.rename(text)
    shutil.rmtree(packages)


def _check_digests(recipe: Recipe, text: pathlib.Path) -> None:
  expected = {}
  for line in recipe.digests.read_text(encoding="utf-8").splitlines():
    digest, name = line.split()
    expected[name] = digest
  found = {
    file.relative_to(text).as_posix(): manifest.sha256(file)
    for file in sorted(text.rglob("*.jsonl"))
  }
  for name in sorted(expected | found):
    if expected.get(name) != found.get(name):
      raise ValueError(
        f"{recipe.name} text {name} has the sha256 {found.get(name)}, but"
        f" {recipe.digests.name} has {expected.get(name)}; if the extraction"
        f" was changed on purpose, correct that line (see data/README.md)"
      )


def _train_tokenizer(recipe: Recipe, root: pathlib.Path) -> None:
  folder, partial = root / "tokenizer", root / "tokenizer.partial"
  if folder.is_dir():
    return
  with _step(f"train a tokenizer of {recipe.vocab_size} tokens"):
    total = sum(source.weight for source in recipe.sources)
    texts = itertools.chain.from_iterable(
      _first_texts(
        root / "text" / source.name / "train.jsonl",
        int(recipe.tokenizer_characters * source.weight / total),
      )
      for source in recipe.sources
    )
    tokenizer = tokenizer_lib.Tokenizer.train(
      texts, vocab_size=recipe.vocab_size
    )
    tokenizer.save(partial)
    partial.rename(folder)


def _first_texts(file: pathlib.Path, characters: int):
  """Texts from the beginning of a file, up to so many characters."""
  with file.open(encoding="utf-8") as stream:
    for line in stream:
      text = json.loads(line)["text"][:characters]
      characters -= len(text)
      if text:
        yield text


def _tokenize(recipe: Recipe, root: pathlib.Path) -> None:
  with _step("tokenize"):
    for source in recipe.sources:
      for split in corpora.SPLITS:
        file = root / "text" / source.name / f"{split}.jsonl"
        shards = max(1, min(4, file.stat().st_size // _BYTES_WORTH_A_PROCESS))
        result = tokenization.run(
          [file],
          root / "tokens" / source.name / split,
          tokenizer=root / "tokenizer",
          options=tokenization.Options(
            num_shards=shards, num_workers=os.cpu_count() or 1
          ),
        )
        print(
          f"  {source.name} {split}: {result.num_documents:,} documents,"
          f" {result.num_bytes:,} bytes, {result.num_tokens:,} tokens",
          flush=True,
        )


@contextlib.contextmanager
def _step(name: str):
  print(f"  {name} ...", flush=True)
  started = time.monotonic()
  yield
  print(f"  {name}: {time.monotonic() - started:.1f} s", flush=True)
