"""Unpacks the archive that this is the `__main__.py` of.

Run by `deploy.sh` as `python ARCHIVE FOLDER`; standard library only. The folder
appears complete, by one rename. Of programs that start at the same time one
unpacks, and the others wait.
"""

from concurrent import futures
import contextlib
import fcntl
import os
import pathlib
import shutil
import sys
import tempfile
import time
import zipfile

PREFIX = "tree/"
_MAX_THREADS = 8
# Trees of other versions that nobody has started for so long are deleted.
_KEPT_SECONDS = 30 * 24 * 3600


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> bool:
  """Unpacks what is below `tree/` into the new `folder`.

  Returns:
    Whether it had to: False if another program did.

  Raises:
    OSError: There is no room, or no permission.
    zipfile.BadZipFile: The archive is damaged.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _locked(folder.with_name(f"{folder.name}.lock")):
    if folder.is_dir():
      return False
    # Of one who was killed: nobody else is at work here.
    for left in folder.parent.glob(f"{folder.name}.partial-*"):
      shutil.rmtree(left, ignore_errors=True)
    work = tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent)
    try:
      # Others may read it, if they may read the folder it is in.
      os.chmod(work, 0o755)
      _extract(archive, work)
      # A folder that is there is complete, after a loss of power, too.
      os.sync()
      os.rename(work, folder)
    except BaseException:
      shutil.rmtree(work, ignore_errors=True)
      raise
  return True


def forget(folder: pathlib.Path) -> list[pathlib.Path]:
  """Deletes other versions beside `folder` that are not used any more.

  Returns:
    What it deleted.
  """
  program, dash, digest = folder.name.rpartition("-")
  if not dash or not digest:
    return []
  gone = []
  for other in folder.parent.glob(f"{program}-{'[0-9a-f]' * len(digest)}"):
    if other == folder:
      continue
    with contextlib.suppress(OSError), open(other / "main") as file:
      if time.time() - os.stat(file.fileno()).st_mtime < _KEPT_SECONDS:
        continue
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      work = other.with_name(f"{other.name}.partial-old")
      os.rename(other, work)
      shutil.rmtree(work, ignore_errors=True)
      other.with_name(f"{other.name}.lock").unlink(missing_ok=True)
      gone.append(other)
  return gone


def _extract(archive: pathlib.Path, work: str) -> None:
  with zipfile.ZipFile(archive) as file:
    entries = [e for e in file.infolist() if e.filename.startswith(PREFIX)]
    needed = sum(entry.file_size for entry in entries)
    free = shutil.disk_usage(work).free
    if free < needed:
      raise OSError(f"{needed:,} bytes are needed, and {free:,} are free")

    def extract(entry: zipfile.ZipInfo) -> None:
      path = os.path.join(work, entry.filename.removeprefix(PREFIX))
      with file.open(entry) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
      if entry.external_attr >> 16 & 0o111:
        os.chmod(path, 0o755)

    for name in sorted({os.path.dirname(e.filename) for e in entries}):
      os.makedirs(os.path.join(work, name.removeprefix(PREFIX)), exist_ok=True)
    # Decompressing lets other threads run.
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with futures.ThreadPoolExecutor(num_threads) as pool:
      for _ in pool.map(extract, entries):
        pass


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """Alone among processes, where the file system has locks."""
  with open(path, "w") as lock:
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def main(archive: str, folder: str) -> None:
  """Unpacks, and says so: it takes a while."""
  name = os.path.basename(archive)
  print(f"{name}: unpacking into {folder}, once", file=sys.stderr)
  start = time.perf_counter()
  try:
    unpack(pathlib.Path(archive), pathlib.Path(folder))
    for other in forget(pathlib.Path(folder)):
      print(f"{name}: deleted {other}, long unused", file=sys.stderr)
  except zipfile.BadZipFile as error:
    sys.exit(f"{name}: {archive} is damaged ({error}). Copy it again.")
  except OSError as error:
    sys.exit(
      f"{name}: cannot unpack into {os.path.dirname(folder)}: {error}. Make"
      " room, or name another folder: CACAO_UNPACK_DIR=/path"
    )
  seconds = time.perf_counter() - start
  print(f"{name}: unpacked in {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
  main(*sys.argv)
