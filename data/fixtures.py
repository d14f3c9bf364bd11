"""Small datasets for tests."""

import json
import pathlib
from typing import Any
import zipfile

import pyarrow as pa
from pyarrow import ipc

from data import config as config_lib
from data import indexed
from data import manifest
from data import tokenization
from data import tokenizer as tokenizer_lib

_TEXTS = (
  "In the beginning was the word, and the word was 1234 bytes long. ",
  "def add(a, b):\n    return a + b\n\n",
  "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다. ",
)


def text(index: int) -> str:
  """The text of document `index`: different from the others, 1 to 40 words."""
  words = "".join(_TEXTS).split(" ")
  length = 1 + (index * 7919) % 40
  start = (index * 104729) % len(words)
  return f"{index}: " + " ".join((words * 3)[start : start + length])


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """Writes a tokenizer with 300 ids."""
  texts = [text(index) for index in range(200)]
  tokenizer_lib.Tokenizer.train(texts, vocab_size=300).save(folder)
  return folder


def write_jsonl(file: pathlib.Path, texts: list[str]) -> pathlib.Path:
  """Writes documents as JSONL."""
  file.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
  file.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return file


def write_dataset(
  folder: pathlib.Path,
  texts: list[str],
  *,
  tokenizer: pathlib.Path,
  num_shards: int = 2,
  record_tokens: int = 16,
) -> manifest.Manifest:
  """Tokenizes documents into a dataset."""
  file = write_jsonl(folder.with_name(folder.name + ".jsonl"), texts)
  options = tokenization.Options(
    num_shards=num_shards, record_tokens=record_tokens
  )
  return tokenization.run([file], folder, tokenizer=tokenizer, options=options)


def write_megatron(
  prefix: pathlib.Path, texts: list[str], *, tokenizer: pathlib.Path
) -> pathlib.Path:
  """Writes documents as Megatron's PREFIX.bin and PREFIX.idx."""
  loaded = tokenizer_lib.Tokenizer.load(tokenizer)
  with indexed.Writer(prefix, indexed.best_dtype(loaded.vocab_size)) as writer:
    for text in texts:
      writer.add_document([[*loaded.encode(text), loaded.eos_id]])
  return prefix


def write_arrow(
  folder: pathlib.Path, rows: list[dict[str, Any]], *, num_files: int = 2
) -> pathlib.Path:
  """Writes rows as `Dataset.save_to_disk` of Hugging Face's datasets does.

  The layout is that of arrow_dataset.py in its version 4: Arrow streams of
  equal parts, and state.json that names them.
  """
  folder.mkdir(parents=True)
  names = []
  for number in range(num_files):
    first, last = (len(rows) * i // num_files for i in (number, number + 1))
    table = pa.Table.from_pylist(rows[first:last])
    names.append(f"data-{number:05d}-of-{num_files:05d}.arrow")
    with ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
      writer.write_table(table, max_chunksize=8)
  state = {"_data_files": [{"filename": name} for name in names]}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
  return folder


def write_mixture(root: pathlib.Path, **settings) -> config_lib.DataConfig:
  """Two sources, `a` (weight 0.7) and `b` (0.3), each with a held-out split.

  Args:
    root: where to write.
    **settings: further fields of the config.
  """
  tokenizer = write_tokenizer(root / "tokenizer")
  sources = []
  for name, weight, first in (("a", 0.7, 0), ("b", 0.3, 1000)):
    for split, start, stop in (("train", 0, 30), ("held_out", 30, 37)):
      texts = [text(first + index) for index in range(start, stop)]
      write_dataset(root / name / split, texts, tokenizer=tokenizer)
    source = config_lib.SourceConfig(
      name=name,
      weight=weight,
      path=str(root / name / "train"),
      eval_path=str(root / name / "held_out"),
    )
    sources.append(source)
  return config_lib.DataConfig(
    kind=config_lib.Kind.DATASETS,
    sources=tuple(sources),
    tokenizer=str(tokenizer),
    **settings,
  )


def write_wheel(folder: pathlib.Path, name: str, files: dict[str, str]) -> str:
  """Writes a wheel of version 1.0; its line for a lock file."""
  info = f"{name}-1.0.dist-info"
  files = {
    **files,
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    f"{info}/WHEEL": (
      "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
      "Tag: py3-none-any\n"
    ),
  }
  records = [f"{file},," for file in (*files, f"{info}/RECORD")]
  files[f"{info}/RECORD"] = "\n".join(records) + "\n"
  folder.mkdir(parents=True, exist_ok=True)
  wheel = folder / f"{name}-1.0-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    for file, content in files.items():
      archive.writestr(file, content)
  return f"{name}==1.0 --hash=sha256:{manifest.sha256(wheel)}\n"
