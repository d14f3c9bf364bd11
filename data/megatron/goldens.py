"""Compares what Cacao makes of token files with what Megatron itself made.

A folder of goldens has `corpora/NAME.bin` and `.idx`, `goldens.json` with the
parameters, numbers and hashes of each case, and `goldens.npz` with its arrays:

  corpora            the tables of an index file, and all its tokens
  gpt                a GPTDataset: its three indices and its samples
  items              whole samples under Megatron's options
  blend              what its builder makes of weights, split and sizes
  blend_helper       the order of a blend alone
  exhaustive_helper  the order of a blend that takes all that there is

Everything that is written of a case is compared (`golden_cases.py` says how).
What cannot be read, is of an unknown kind or belongs to no case is a failure:
nothing is passed over.
"""

import collections.abc
import json
import pathlib
import typing
from typing import Any
import zipfile

import numpy as np

from data.megatron import blend as blend_lib
from data.megatron import compare as compare_lib
from data.megatron import golden_cases

# Samples that are written out of each case, unless the folder says otherwise.
_FIRST_N = 40


def check(
  folder: pathlib.Path, *, rounding: blend_lib.Rounding = "x86"
) -> collections.abc.Iterator[compare_lib.Result]:
  """Compares every case of a folder.

  Args:
    folder: of goldens.
    rounding: of the machine that made them: `fused` for Megatron on ARM.
  """
  try:
    cases = json.loads(
      (folder / "goldens.json").read_text(encoding="utf-8"),
      object_pairs_hook=_no_name_twice,
    )
    if not isinstance(cases, dict):
      raise ValueError("goldens.json holds no object of kinds of cases")
    first_n = cases.get("first_n", _FIRST_N)
    if not isinstance(first_n, int) or first_n < 0:
      raise ValueError(f"first_n is {first_n!r}; it must be a whole number")
    arrays = _open_arrays(folder / "goldens.npz")
  except Exception as error:
    yield _unread("goldens", error)
    return
  corpora = golden_cases.Corpora(folder, cases.get("corpora"), first_n=first_n)
  num_cases, used = 0, set()
  with arrays:
    for kind, named in cases.items():
      if kind not in golden_cases.KINDS and isinstance(
        named, str | int | float
      ):
        continue  # About the folder, such as the version of Megatron.
      if kind not in golden_cases.KINDS or not isinstance(named, dict):
        known = ", ".join(golden_cases.KINDS)
        num_cases += 1
        yield _failure(kind, f"no cases of a known kind; known are {known}")
        continue
      for name, case in named.items():
        num_cases += 1
        full = f"{kind}/{name}"
        used |= {array for array in arrays if array.startswith(f"{full}/")}
        compare = compare_lib.Compare(full, arrays)
        try:
          golden_cases.KINDS[kind](compare, name, case, corpora, rounding)
        except Exception as error:
          yield _unread(full, error)
        else:
          yield compare.result()
    for array in sorted(set(arrays) - used):
      yield _failure(
        array, "an array of goldens.npz that belongs to no case of goldens.json"
      )
  if not num_cases:
    yield _failure("goldens", f"{folder / 'goldens.json'} holds no cases")


def report(
  folder: pathlib.Path, *, rounding: blend_lib.Rounding, out: typing.TextIO
) -> bool:
  """Writes a line for each case, and how many passed; whether all did."""
  passed = failed = 0
  for result in check(folder, rounding=rounding):
    if result.differences:
      failed += 1
      text = f"FAIL {result.name}: {'; '.join(result.differences)}"
    else:
      passed += 1
      text = f"pass {result.name}: {result.num_compared} equal"
    # A line each, whatever an error's text has.
    print(" ".join(text.split()), file=out, flush=True)
  print(f"{passed} passed, {failed} failed", file=out, flush=True)
  return passed > 0 and not failed


def _open_arrays(file: pathlib.Path) -> np.lib.npyio.NpzFile:
  try:
    arrays = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{file}: {error}") from error
  if not isinstance(arrays, np.lib.npyio.NpzFile):
    raise ValueError(f"{file} is one array, not an archive of arrays")
  return arrays


def _unread(name: str, error: Exception) -> compare_lib.Result:
  return _failure(name, f"cannot be compared: {type(error).__name__}: {error}")


def _failure(name: str, why: str) -> compare_lib.Result:
  return compare_lib.Result(name=name, differences=(why,), num_compared=0)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON; of two cases of one name, one would be lost."""
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"goldens.json has {twice!r} twice in one object")
  return made
