"""Files on this machine and elsewhere: any URL that fsspec opens.

Remote text is read where it is, once, to tokenize it. What shuffled training
reads, every place of it many times over, is copied to the cache folder first.
The copy is made again when the file changes there, told by its size and its
etag, checksum or time; by its size alone where a file system tells no more.
"""

import collections
import collections.abc
import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import tempfile
import typing

import fsspec
from fsspec import core
from fsspec import spec
import tqdm

from data import directory_lock
from data import manifest

# Suffixes of compressed files that `data/documents.py` opens.
COMPRESSED = (".gz", ".bz2", ".zst")

# Of what a file system says of a file, that which changes with its content, in
# whatever spelling: ETag, etag, md5Hash, Content-MD5, Last-Modified.
_VERSION_FIELDS = frozenset(
  (
    *("size", "etag", "generation", "versionid", "blobid", "sha"),
    *("md5", "md5hash", "contentmd5", "digest", "sha256", "crc", "crc32c"),
    *("mtime", "modified", "lastmodified", "modify", "modificationtime"),
    *("updated", "lastwritetime", "datetime", "created"),
  )
)
_BLOCK = 1 << 22
_COPIES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """A file that was found.

  Attributes:
    name: its path or URL, for messages.
    relative: its path below the folder that it was found in, or its name.
    remote: how it is read, if it is not on this machine.
  """

  name: str
  relative: str
  remote: "_Remote | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Remote:
  """A file of a file system of fsspec.

  Attributes:
    filesystem: it is of.
    path: of the file there.
    folder: that it was found in.
    url: that opens it by itself; empty if there is none.
    version: what was said of it when it was found, of _VERSION_FIELDS.
  """

  filesystem: spec.AbstractFileSystem
  path: str
  folder: str
  url: str
  version: dict[str, typing.Any]


def cache_dir() -> pathlib.Path:
  """Where copies and indices are kept; safe to remove between runs."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "cacao" / "data"


def is_remote(path: str) -> bool:
  """Whether a path is a URL of another place than this machine's disk."""
  return "://" in path and not path.startswith(("file://", "local://"))


def find(path: str) -> list[File]:
  """The files that a path names, in the order of their names.

  Args:
    path: a file, a folder (with all below it) or a glob; a path or a URL.

  Raises:
    ValueError: there is none, or it cannot be asked for.
  """
  files = _find_remote(path) if is_remote(path) else _find_local(path)
  if not files:
    raise ValueError(f"{path!r} does not exist or has no files; correct it")
  return sorted(files, key=lambda file: file.name)


def fetch(
  files: collections.abc.Sequence[File],
) -> list[pathlib.Path]:
  """The files on this machine; remote ones are copied if need be.

  Raises:
    ValueError: one cannot be read, or changes meanwhile.
  """
  paths = [pathlib.Path(file.name) for file in files]
  by_folder = collections.defaultdict(list)
  for number, file in enumerate(files):
    if file.remote is not None:
      folder = _copies(file.remote)
      paths[number] = _target(file, folder)
      by_folder[folder].append(number)
  for folder, numbers in by_folder.items():
    with (
      directory_lock.hold(folder),
      concurrent.futures.ThreadPoolExecutor(_COPIES_AT_ONCE) as pool,
    ):
      copies = pool.map(
        _copy, [files[n] for n in numbers], [paths[n] for n in numbers]
      )
      bar = tqdm.tqdm(
        copies,
        total=len(numbers),
        desc=f"Copying {files[numbers[0]].name}",
        delay=2,
      )
      collections.deque(bar, maxlen=0)
  return paths


@contextlib.contextmanager
def read_in_place(
  files: collections.abc.Sequence[File],
) -> collections.abc.Iterator[list[str]]:
  """Paths and URLs to read the files from, each once.

  A remote file is copied only if its file system cannot tell a changed one, or
  has no URL for it alone.

  Raises:
    ValueError: a file cannot be read, or changed until the end.
  """
  places = [_place_of(file) if file.remote else "" for file in files]
  copied = [number for number, place in enumerate(places) if not place]
  copies = fetch([files[number] for number in copied])
  for number, copy in zip(copied, copies, strict=True):
    places[number] = str(copy)
  pairs = zip(files, places, strict=True)
  remote = [file for file, place in pairs if file.remote and is_remote(place)]
  before = _versions(remote)
  yield places
  for file, old, new in zip(remote, before, _versions(remote), strict=True):
    _require_same(file, old, new)


def exists(path: str) -> bool:
  """Whether there is a file or folder of exactly this name."""
  if not is_remote(path):
    return local_path(path).exists()
  with _failures(path):
    filesystem, inner = core.url_to_fs(path)
    return filesystem.exists(inner)


def local_path(path: str) -> pathlib.Path:
  """The path that is meant by a path or a file:// URL."""
  return pathlib.Path(path.split("://", 1)[-1]).expanduser()


def content_key(file: File) -> str:
  """Changes with the content of a file that `read_in_place` gives.

  Raises:
    ValueError: it cannot be read.
  """
  if file.remote and (place := _place_of(file)):
    return json.dumps([place, file.remote.version], sort_keys=True)
  return fingerprint(fetch([file])[0])


def fingerprint(file: pathlib.Path) -> str:
  """sha256 of a file's content; read again only if the file was written to.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    stat = file.stat()
  except OSError as error:
    raise ValueError(
      f"{file} cannot be read ({error.strerror}); correct the path"
    ) from error
  state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
  place = hashlib.sha256(str(file.absolute()).encode()).hexdigest()
  note = cache_dir() / "fingerprints" / f"{place}.json"
  known = read_note(note)
  if known.get("state") == state:
    return known["sha256"]
  digest = manifest.sha256(file)
  write_note(note, {"file": str(file), "state": state, "sha256": digest})
  return digest


def read_note(note: pathlib.Path) -> dict[str, typing.Any]:
  """What was noted; nothing if that is missing or damaged."""
  try:
    content = json.loads(note.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def write_note(note: pathlib.Path, content: dict[str, typing.Any]) -> None:
  """Notes something that can be computed again."""
  with new_file(note) as partial:
    partial.write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def new_file(file: pathlib.Path) -> collections.abc.Iterator[pathlib.Path]:
  """A file to write that takes its place when it is whole.

  Several processes may make the same file: each writes one of its own.

  Raises:
    ValueError: the folder cannot be written.
  """
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=file.parent, prefix=".partial-"
    ) as folder:
      partial = pathlib.Path(folder) / file.name
      yield partial
      partial.replace(file)
  except OSError as error:
    raise ValueError(
      f"{file} cannot be written ({error.strerror or error}); free the disk, or"
      " set XDG_CACHE_HOME to a folder that can be written"
    ) from error


def _find_local(path: str) -> list[File]:
  place = local_path(path)
  if place.is_file():
    return [File(name=str(place), relative=place.name)]
  if place.is_dir():
    return [
      File(name=str(file), relative=file.relative_to(place).as_posix())
      for file in place.rglob("*")
      if file.is_file() and not _is_hidden(file.relative_to(place).parts)
    ]
  found = map(pathlib.Path, glob.glob(str(place), recursive=True))
  return [
    File(name=str(file), relative=file.name)
    for file in found
    if file.is_file() and not file.name.startswith(".")
  ]


def _find_remote(path: str) -> list[File]:
  with _failures(path):
    filesystem, inner = core.url_to_fs(path)
    filesystem.invalidate_cache()
    inner = inner.rstrip("/")
    if filesystem.isfile(inner):
      infos = {inner: filesystem.info(inner)}
      folder = inner.rpartition("/")[0]
    elif glob.has_magic(inner):
      infos, folder = filesystem.glob(inner, detail=True), ""
    else:
      exists = filesystem.exists(inner)
      infos = filesystem.find(inner, detail=True) if exists else {}
      folder = inner
  files = []
  for file, info in infos.items():
    below = file.removeprefix(folder).strip("/")
    if info.get("type") != "directory" and not _is_hidden(
      pathlib.PurePosixPath(below).parts
    ):
      name = filesystem.unstrip_protocol(file)
      remote = _Remote(
        filesystem=filesystem,
        path=file,
        folder=folder,
        url="" if "::" in path else name,
        version=_version(info),
      )
      files.append(File(name=name, relative=below, remote=remote))
  return files


def _is_hidden(parts: collections.abc.Iterable[str]) -> bool:
  return any(part.startswith(".") for part in parts)


def _copies(remote: _Remote) -> pathlib.Path:
  """The folder of the copies of a remote folder's files."""
  place = remote.filesystem.unstrip_protocol(remote.folder or "/")
  # Another account or endpoint may have another file of the same name.
  place += json.dumps(remote.filesystem.storage_options, default=str)
  name = hashlib.sha256(place.encode()).hexdigest()[:32]
  return cache_dir() / "copies" / name


def _target(file: File, folder: pathlib.Path) -> pathlib.Path:
  relative = pathlib.PurePosixPath(file.relative)
  assert not relative.is_absolute(), file
  if ".." in relative.parts:
    raise ValueError(f"{file.name} has .. in its name; rename it")
  return folder / relative


def _copy(file: File, target: pathlib.Path) -> None:
  """Copies a remote file, unless it was copied and neither has changed since.

  Raises:
    ValueError: it cannot be read, or changed.
  """
  remote = file.remote
  assert remote is not None
  note = target.with_name(f".{target.name}.copy.json")
  copied = {"version": remote.version, "state": _state(target)}
  if read_note(note) == copied:
    return
  # A listing may word it otherwise, so it cannot be compared with this.
  (before,) = _versions([file])
  with new_file(target) as partial, partial.open("wb") as stream:
    for block in _blocks(file):
      stream.write(block)
    stream.flush()
    os.fsync(stream.fileno())
    if before.get("size") not in (None, stream.tell()):
      raise ValueError(
        f"{file.name} has {before['size']} bytes, but {stream.tell()} were"
        " read; try again, or replace the file"
      )
    _require_same(file, before, *_versions([file]))
  write_note(note, {"version": remote.version, "state": _state(target)})


def _place_of(file: File) -> str:
  """URL of a remote file that can be read in place; empty if it cannot."""
  remote = file.remote
  assert remote is not None
  return remote.url if {"size"} < set(map(_plain, remote.version)) else ""


def _require_same(file: File, before: dict, after: dict) -> None:
  if before != after:
    raise ValueError(
      f"{file.name} changed while it was read; start again when nobody writes"
      " it"
    )


def _versions(
  files: collections.abc.Sequence[File],
) -> list[dict[str, typing.Any]]:
  """The versions of remote files at this moment."""

  def version(file: File) -> dict[str, typing.Any]:
    assert file.remote is not None
    with _failures(file.name):
      return _version(file.remote.filesystem.info(file.remote.path))

  remotes = [file.remote for file in files if file.remote is not None]
  for filesystem in {id(r.filesystem): r.filesystem for r in remotes}.values():
    filesystem.invalidate_cache()
  with concurrent.futures.ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
    return list(pool.map(version, files))


def _blocks(file: File) -> collections.abc.Iterator[bytes]:
  remote = file.remote
  assert remote is not None
  with (
    _failures(file.name),
    remote.filesystem.open(remote.path, "rb") as stream,
  ):
    data: typing.Any = stream
    while block := data.read(_BLOCK):
      yield block


def _version(info: dict[str, typing.Any]) -> dict[str, typing.Any]:
  return {
    field: value if field == "size" else str(value)
    for field, value in info.items()
    if _plain(field) in _VERSION_FIELDS and value is not None
  }


def _plain(field: str) -> str:
  return field.replace("-", "").replace("_", "").lower()


def _state(file: pathlib.Path) -> list[int]:
  if not file.is_file():
    return []
  stat = file.stat()
  return [stat.st_size, stat.st_mtime_ns]


@contextlib.contextmanager
def _failures(name: str) -> collections.abc.Iterator[None]:
  """Errors of a file system, as a message to the user."""
  try:
    yield
  except ValueError as error:
    # Our own, or fsspec's of a protocol that it does not know.
    if "Protocol not known" not in str(error):
      raise
    known = ", ".join(sorted(fsspec.available_protocols()))
    raise ValueError(
      f"{name}: {error}; use one of {known}, or mount the place"
    ) from error
  except ImportError as error:
    raise ValueError(
      f"{name}: {error}; add that package to third_party/python/requirements.in"
      " and lock it, or copy the files to a disk"
    ) from error
  except Exception as error:  # Each file system has errors of its own.
    raise ValueError(
      f"{name} cannot be read ({type(error).__name__}: {error}); correct the"
      " URL, or give this machine access"
    ) from error
