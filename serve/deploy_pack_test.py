"""What is packed, and what the packed file does where it is started."""

import json
import marshal
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import zipfile

from absl.testing import absltest

from serve import deploy_pack

_FOLDER = pathlib.Path(__file__).parent
_NAME = "program"
_MAIN = """\
import json, os, sys
import package
from sub import part
with open(os.path.join(os.path.dirname(__file__), "data.txt")) as file:
  data = file.read()
print(json.dumps({
  "argv": sys.argv,
  "data": data,
  "package": package.VALUE,
  "part": part.VALUE,
  "name": __name__,
  "cached": bool(part.__cached__) and os.path.exists(part.__cached__),
  "file": part.place.__code__.co_filename,
  "path": sys.path,
  "site": "site" in sys.modules,
}))
sys.exit(int(os.environ.get("CODE", "0")))
"""


class DeployTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.shared = pathlib.Path(absltest.get_default_test_tmpdir(), "deploy")
    cls.artefact = cls.pack("once")

  @classmethod
  def pack(cls, name, *, num_workers=2):
    """Packs a program with one source, one package; returns the file."""
    root = cls.shared / name
    shutil.rmtree(root, ignore_errors=True)
    files = {
      "app/main.py": _MAIN,
      "app/data.txt": "some data",
      "app/part.py": "VALUE = 3\ndef place(): pass\n",
      "site/package/__init__.py": "VALUE = 'of the package'\n",
      "site/package/template.py": "no {{ python }} at all\n",
      "site/package/run": "#!/bin/sh\n",
      # Of another machine: not to be taken along.
      "site/package/__pycache__/__init__.cpython-312.pyc": "nonsense",
      "site/bin/tool": "#!/home/somebody/python\n",
    }
    for file, content in files.items():
      path = root / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)
    (root / "site/package/run").chmod(0o755)
    (root / "file").write_text("cpu\n")
    items = {
      "tree/app/main.py": "app/main.py",
      "tree/app/data.txt": "app/data.txt",
      "tree/app/sub/__init__.py": "app/empty.py",
      "tree/app/sub/part.py": "app/part.py",
      "tree/packages/bin": "site/bin",
      "tree/packages/package": "site/package",
    }
    (root / "app/empty.py").touch()
    deploy_pack.main(
      [
        f"--output={root / _NAME}",
        f"--name={_NAME}",
        "--main=main.py",
        f"--template={_FOLDER / 'deploy.sh'}",
        f"--unpack={_FOLDER / 'deploy_unpack.py'}",
        f"--start={_FOLDER / 'deploy_start.py'}",
        f"--accelerator={root / 'file'}",
        f"--num_workers={num_workers}",
        *(f"--item={name}={root / path}" for name, path in items.items()),
      ]
    )
    return root / _NAME

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.python = self.root / "bin"
    self.python.mkdir()
    (self.python / "python3.12").symlink_to(sys.executable)
    # All that it needs of a machine.
    self.tools = self.root / "tools"
    self.tools.mkdir()
    for tool in ("uname", "wc"):
      (self.tools / tool).symlink_to(shutil.which(tool) or tool)

  def start(self, *args, artefact=None, path=None, **env):
    """Starts it with nothing in the environment but what is given."""
    env = {
      "PATH": f"{self.tools}:{path or self.python}",
      "HOME": self.root,
    } | env
    return subprocess.run(
      [artefact or self.artefact, *args],
      env={name: str(value) for name, value in env.items() if value},
      capture_output=True,
      text=True,
      cwd=self.root,
    )

  def answer(self, *args, **settings):
    result = self.start(*args, **settings)
    self.assertEqual(result.returncode, 0, result.stderr)
    return json.loads(result.stdout)

  def assert_fails(self, message, **settings):
    result = self.start(**settings)
    self.assertNotEqual(result.returncode, 0)
    self.assertRegex(result.stderr, message)
    self.assertNotIn("Traceback", result.stderr)

  def tree(self):
    (tree,) = (self.root / ".cache/cacao/deploy").glob(
      f"{_NAME}-????????????????"
    )
    return tree

  def test_unpacks_once(self):
    first = self.start("--flag=1", "two words")
    self.assertRegex(first.stderr, "program: unpacking into .*, once\n")
    answer = json.loads(first.stdout)
    self.assertEqual(
      answer["argv"], [str(self.artefact), "--flag=1", "two words"]
    )
    self.assertEqual(answer["data"], "some data")
    self.assertEqual(answer["package"], "of the package")
    self.assertEqual((answer["part"], answer["name"]), (3, "__main__"))
    marker = self.tree() / "app/data.txt"
    marker.write_text("other data")
    second = self.start()
    self.assertEqual(second.stderr, "")
    self.assertIn("other data", second.stdout)
    self.assertEqual(os.listdir(self.tree() / "packages"), ["package"])
    run = self.tree() / "packages/package/run"
    self.assertTrue(os.access(run, os.X_OK))

  def test_exit_code(self):
    self.assertEqual(self.start(CODE="7").returncode, 7)

  def test_sees_nothing_of_the_machine(self):
    outside = self.root / "outside"
    outside.mkdir()
    (outside / "package.py").write_text("VALUE = 'of the machine'\n")
    (self.root / "json.py").write_text("raise ImportError\n")
    answer = self.answer(
      PYTHONPATH=outside, PYTHONHOME="/nowhere", PYTHONSTARTUP="/nowhere"
    )
    self.assertEqual(answer["package"], "of the package")
    self.assertFalse(answer["site"])
    self.assertNotIn(str(outside), answer["path"])
    self.assertNotIn("", answer["path"])

  def test_sources_are_compiled_already(self):
    answer = self.answer()
    self.assertTrue(answer["cached"])
    self.assertEqual(answer["file"], str(self.tree() / "app/sub/part.py"))
    self.assertEmpty(list(self.tree().rglob("template*.pyc")))

  def test_other_folders(self):
    self.answer(XDG_CACHE_HOME=self.root / "xdg")
    self.assertLen(list(self.root.glob("xdg/cacao/deploy/*/start.py")), 1)
    self.answer(CACAO_UNPACK_DIR=self.root / "mine", HOME="")
    self.assertLen(list(self.root.glob("mine/*/start.py")), 1)
    self.assert_fails("neither HOME .*CACAO_UNPACK_DIR=/path", HOME="")
    (self.root / "file").write_text("")
    self.assert_fails(
      "cannot unpack into .*another folder: CACAO_UNPACK_DIR",
      CACAO_UNPACK_DIR=self.root / "file",
    )

  def test_read_only_places(self):
    """The file and its unpacked tree need not be writable."""
    copy = self.root / "media" / _NAME
    copy.parent.mkdir()
    shutil.copy(self.artefact, copy)
    copy.parent.chmod(0o555)
    self.answer(artefact=copy)
    for folder in (self.tree(), *self.tree().rglob("*/")):
      folder.chmod(0o555)
    before = sorted(self.tree().rglob("*"))
    self.answer(artefact=copy)
    self.assertEqual(sorted(self.tree().rglob("*")), before)
    for folder in (copy.parent, self.tree(), *self.tree().rglob("*/")):
      folder.chmod(0o755)

  def test_started_together(self):
    results = []
    threads = [
      threading.Thread(target=lambda: results.append(self.start()))
      for _ in range(6)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEqual({r.returncode for r in results}, {0})
    self.tree()
    self.assertEmpty(
      list((self.root / ".cache/cacao/deploy").glob("*.partial-*"))
    )

  def test_what_a_killed_one_left_is_removed(self):
    self.answer()
    left = self.tree().with_name(f"{self.tree().name}.partial-x")
    shutil.move(self.tree(), left)
    self.answer()
    self.assertFalse(left.exists())

  def test_wrong_python(self):
    other = self.root / "other"
    other.mkdir()
    (other / "python3.12").write_text("#!/bin/sh\nexit 1\n")
    (other / "python3.12").chmod(0o755)
    self.assert_fails(
      "needs CPython 3.12, and there is none on PATH.*CACAO_PYTHON=", path=other
    )
    self.assert_fails(
      "CACAO_PYTHON=/bin/false is no CPython 3.12", CACAO_PYTHON="/bin/false"
    )
    self.answer(path=other, CACAO_PYTHON=sys.executable)

  def test_other_machine(self):
    uname = self.tools / "uname"
    uname.unlink()
    uname.write_text("#!/bin/sh\necho aarch64\n")
    uname.chmod(0o755)
    self.assert_fails("was built for Linux .*, but this is aarch64")

  def test_damaged(self):
    copy = self.root / _NAME
    content = self.artefact.read_bytes()
    copy.write_bytes(content[:-100])
    copy.chmod(0o755)
    self.assert_fails("is damaged: it has .* Copy it again", artefact=copy)
    with zipfile.ZipFile(self.artefact) as archive:
      place = archive.getinfo("tree/app/data.txt").header_offset + 50
    changed = bytearray(content)
    changed[place] ^= 0xFF
    copy.write_bytes(changed)
    self.assert_fails("is damaged .* Copy it again", artefact=copy)
    self.assertEmpty(list((self.root / ".cache/cacao/deploy").glob("*/")))

  def test_same_bytes(self):
    again = self.pack("elsewhere/and deeper", num_workers=1)
    self.assertEqual(again.read_bytes(), self.artefact.read_bytes())

  def test_says_what_it_is_for(self):
    text = self.artefact.read_bytes()[:500].decode(errors="replace")
    self.assertIn("needs but CPython 3.12", text)
    self.assertIn("accelerator: cpu", text)
    self.assertNotIn("@", text)

  def test_compiled(self):
    file = self.root / "code.py"
    file.write_text("x = 1\n")
    content = deploy_pack.compiled("tree/app/code.py", file)
    assert content is not None
    self.assertEqual(marshal.loads(content[16:]).co_filename, "app/code.py")
    file.write_text("x =\n")
    self.assertIsNone(deploy_pack.compiled("tree/app/code.py", file))


if __name__ == "__main__":
  absltest.main()
