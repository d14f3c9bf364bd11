import dataclasses
import hashlib
import os
import pathlib
from unittest import mock

from absl.testing import absltest

from data import catalog
from data import config as config_lib
from data import corpora
from data import fixtures
from data import manifest
from data import recipes
from data import tokenization
from data import tokenizer as tokenizer_lib
from data import wheels


def packages_of(name, suffix, prefix):
  """300 files in 100 folders, so that some folder is held out."""
  files = {}
  for index in range(300):
    lines = [f"{prefix}{fixtures.text(17 * index + k)}" for k in range(8)]
    text = "\n".join(
      f"{line} 모든 문장은 끝에서 다시 시작한다" for line in lines
    )
    files[f"{name}/{index // 3}/{index}{suffix}"] = text + "\n"
  return files


class RecipesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # The quicker of the installers; wheels_test has both.
    tools = [tool for tool in wheels._installers() if tool[0] == "uv"]
    self.enter_context(mock.patch.object(wheels, "_installers", lambda: tools))
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.root = self.folder / "root"
    pins = [
      fixtures.write_wheel(self.root / "wheels", name, packages_of(name, *rest))
      for name, *rest in (("sympy", ".py", "# "), ("dartlab", ".md", ""))
    ]
    lock = self.folder / "requirements.txt"
    lock.write_text("".join(pins))
    self.recipe = recipes.Recipe(
      name="tiny",
      sources=(
        recipes.Source(name="code", weight=0.75, extract=corpora.code),
        recipes.Source(name="korean", weight=0.25, extract=corpora.korean),
      ),
      lock=lock,
      digests=self.folder / "tiny.sha256",
      vocab_size=320,
      tokenizer_characters=20_000,
    )
    self.write_digests()

  def write_digests(self):
    """As `sha256sum` would, of what the extraction makes."""
    packages, text = self.folder / "packages", self.folder / "text"
    wheels.unpack(self.recipe.lock, packages, wheels=self.root / "wheels")
    for source in self.recipe.sources:
      corpora.write(source.extract, packages, text / source.name)
    lines = [
      f"{hashlib.sha256(file.read_bytes()).hexdigest()}"
      f"  {file.relative_to(text).as_posix()}\n"
      for file in sorted(text.rglob("*.jsonl"))
    ]
    self.recipe.digests.write_text("".join(lines))

  def test_prepares_datasets_that_open(self):
    prepared = recipes.prepare(self.recipe, self.root)
    config = config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=prepared.sources,
      tokenizer=str(prepared.tokenizer),
    )
    self.assertEqual(catalog.eval_sources(config), ("code", "korean"))
    self.assertEqual(catalog.vocab_size(config), 320)
    for source in catalog.open_train(config):
      self.assertGreater(source.tokens.num_tokens, 1000)
    self.assertFalse((self.root / "packages").exists())

  def test_is_done_once(self):
    first = recipes.prepare(self.recipe, self.root)
    for module, name in ((wheels, "unpack"), (tokenization, "run")):
      patch = mock.patch.object(module, name, side_effect=AssertionError)
      self.enter_context(patch)
    self.assertEqual(recipes.prepare(self.recipe, self.root), first)

  def test_goes_on_after_every_step(self):
    expected = recipes.prepare(self.recipe, self.root)
    digests = [manifest.load(s.path).digest for s in expected.sources]
    for step in ("_write_text", "_train_tokenizer", "_tokenize"):
      other = self.folder / step
      other.mkdir()
      (other / "wheels").symlink_to(self.root / "wheels")
      original = getattr(recipes, step)

      def stop(*args, original=original):
        original(*args)
        raise KeyboardInterrupt

      with (
        mock.patch.object(recipes, step, stop),
        self.assertRaises(KeyboardInterrupt),
      ):
        recipes.prepare(self.recipe, other)
      with mock.patch.object(
        tokenizer_lib.Tokenizer,
        "train",
        side_effect=tokenizer_lib.Tokenizer.train,
      ) as train:
        prepared = recipes.prepare(self.recipe, other)
      self.assertEqual(train.called, step == "_write_text")
      self.assertEqual(
        [manifest.load(s.path).digest for s in prepared.sources], digests
      )

  def test_refuses_text_with_another_digest(self):
    lines = self.recipe.digests.read_text().splitlines()
    lines[1] = "0" * 64 + lines[1][64:]
    self.recipe.digests.write_text("\n".join(lines) + "\n")
    with self.assertRaisesRegex(ValueError, r"code/train.jsonl .* has 0000"):
      recipes.prepare(self.recipe, self.root)
    self.assertFalse((self.root / "text").exists())

  def test_refuses_text_without_a_digest(self):
    lines = self.recipe.digests.read_text().splitlines()
    self.recipe.digests.write_text("\n".join(lines[1:]) + "\n")
    with self.assertRaisesRegex(ValueError, "code/held_out.jsonl .* has None"):
      recipes.prepare(self.recipe, self.root)

  def test_refuses_the_root_of_another_version(self):
    recipes.prepare(self.recipe, self.root)
    other = dataclasses.replace(self.recipe, vocab_size=330)
    with self.assertRaisesRegex(ValueError, "holds another version"):
      recipes.prepare(other, self.root)

  def test_resolve(self):
    self.enter_context(
      mock.patch.object(recipes, "RECIPES", {"tiny": self.recipe})
    )
    config = config_lib.DataConfig(
      kind=config_lib.Kind.RECIPE, recipe="tiny", root=str(self.root), seed=5
    )
    resolved = recipes.resolve(config)
    self.assertEqual(resolved.kind, config_lib.Kind.DATASETS)
    self.assertEqual(resolved.seed, 5)
    self.assertEqual(
      [(s.name, s.weight) for s in resolved.sources],
      [("code", 0.75), ("korean", 0.25)],
    )
    self.assertEqual(recipes.resolve(resolved), resolved)
    chosen = (config_lib.SourceConfig(name="korean", weight=3.0),)
    resolved = recipes.resolve(dataclasses.replace(config, sources=chosen))
    self.assertEqual(
      [(s.name, s.weight) for s in resolved.sources], [("korean", 3.0)]
    )
    unknown = (config_lib.SourceConfig(name="other"),)
    with self.assertRaisesRegex(ValueError, "'other'; recipe tiny has code"):
      recipes.resolve(dataclasses.replace(config, sources=unknown))
    with self.assertRaisesRegex(ValueError, "data.recipe is 'x'; .* tiny"):
      recipes.resolve(dataclasses.replace(config, recipe="x"))

  def test_the_default_root_is_in_the_users_cache(self):
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": "/cache"}):
      root = recipes.default_root(recipes.QUICKSTART)
    self.assertEqual(root, pathlib.Path("/cache/cacao/data/quickstart"))

  def test_quickstart_has_its_lock_and_digests(self):
    names = {
      line.split()[1].split("/")[0]
      for line in recipes.QUICKSTART.digests.read_text().splitlines()
    }
    self.assertEqual(names, {s.name for s in recipes.QUICKSTART.sources})
    self.assertLen(wheels._pins(recipes.QUICKSTART.lock), 4)


if __name__ == "__main__":
  absltest.main()
