"""The kinds of cases in a folder of goldens, and how each is compared.

`data/megatron/goldens.py` reads the folder and says what is in it.
"""

import collections.abc
import hashlib
import pathlib
from typing import Any

import numpy as np

from data import indexed
from data.megatron import blend as blend_lib
from data.megatron import blended
from data.megatron import compare as compare_lib
from data.megatron import index as index_lib
from data.megatron import items
from data.megatron import split as split_lib

# What pads samples in the goldens: no token.
_PAD = -1
# Samples that are hashed at a time.
_AT_ONCE = 4096


class Corpora:
  """The files of a folder, each opened once.

  Args:
    folder: of goldens.
    described: the cases of its corpora.
    first_n: how many samples of a case are written out.
  """

  def __init__(self, folder: pathlib.Path, described: Any, *, first_n: int):
    self._folder = folder / "corpora"
    self.described = described if isinstance(described, dict) else {}
    self.first_n = first_n
    self._open: dict[str, indexed.Indexed] = {}

  def __call__(self, name: str) -> indexed.Indexed:
    if name not in self._open:
      self._open[name] = indexed.Indexed(self._folder / name)
    return self._open[name]

  def sha256(self, name: str, suffix: str) -> str:
    data = (self._folder / f"{name}.{suffix}").read_bytes()
    return hashlib.sha256(data).hexdigest()


def _check_corpus(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: str,
) -> None:
  del rounding  # There is no blend.
  corpus = corpora(name)
  compare.array("sequence_lengths", corpus.sequence_lengths)
  compare.array(
    "sequence_pointers", corpus.sequence_starts * corpus.dtype.itemsize
  )
  compare.array("document_indices", corpus.document_indices)
  if corpus.modes is not None:
    compare.array("sequence_modes", corpus.modes)
  compare.fields(
    case,
    given={"eod", "vocab"},
    required={
      "bin_sha256": corpora.sha256(name, "bin"),
      "idx_sha256": corpora.sha256(name, "idx"),
      "tokens_int64_sha256": _sha256([corpus.tokens], "<i8"),
    },
    optional={
      "dtype": corpus.dtype.name,
      "sequences": corpus.num_sequences,
      "documents": corpus.num_documents,
      "tokens": corpus.num_tokens,
      "multimodal": corpus.modes is not None,
    },
  )


def _check_gpt(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: str,
) -> None:
  del name, rounding
  corpus = corpora(case["corpus"])
  index, book_ends = _build(case, corpus, case["num_samples"])
  table = index.sample_index()
  compare.array("document_index", index.documents)
  compare.array("sample_index", table)
  compare.array("shuffle_index", index.shuffle)
  first = np.arange(min(index.num_samples, corpora.first_n))
  compare.array("text", _texts(index, corpus, first), dtype=False)
  dtypes = {
    "document_index": index.documents.dtype.name,
    "sample_index": table.dtype.name,
    "shuffle_index": index.shuffle.dtype.name,
  }
  texts = (_texts(index, corpus, part) for part in _parts(index.num_samples))
  compare.fields(
    case,
    given=_SOURCE_FIELDS,
    required={
      "split_range": list(
        split_lib.bounds(book_ends, len(corpus.sequence_lengths))
      ),
      "tokens_per_epoch": index.plan.num_tokens,
      "num_epochs": index.plan.num_epochs,
      "separate_final_epoch": index.plan.separate,
      "length": index.num_samples,
      "all_text_int64le_sha256": _sha256(texts, "<i8"),
    },
    optional={"dtypes": dtypes},
  )


def _check_items(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: str,
) -> None:
  del name, rounding
  options = dict(case["opts"])
  # Options that make the index go by Megatron's names here.
  source = dict(case)
  for ours, theirs in (
    ("extra", "add_extra_token_to_sequence"),
    ("drop_last", "drop_last_partial_validation_sequence"),
  ):
    if theirs in options:
      source[ours] = options.pop(theirs)
  num_samples = case.get("num_samples")
  if num_samples is None and case.get("epochs") is not None:
    raise ValueError("epochs are given, but not the num_samples they mean")
  corpus = corpora(case["corpus"])
  index, _ = _build(source, corpus, num_samples)
  pick = compare.read("pick")
  text = _texts(index, corpus, pick)
  compare.array("text", text)
  made = items.make_all(
    text,
    seq_len=case["seq"],
    pad=_PAD,
    eod=corpora.described[case["corpus"]]["eod"],
    options=items.Options(**options),
  )
  for field in ("tokens", "labels", "loss_mask", "position_ids"):
    compare.array(field, np.stack([getattr(item, field) for item in made]))
  masks = [i.attention_mask for i in made if i.attention_mask is not None]
  if masks:
    compare.array("attention_mask", np.packbits(np.stack(masks), axis=-1))
  compare.fields(
    case,
    given={*_SOURCE_FIELDS, "opts"},
    required={},
    optional={"length": index.num_samples},
  )


def _check_blend(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: blend_lib.Rounding,
) -> None:
  del name
  per_split = case.get("per_split")
  whole = split_lib.parse(case["split"]) if per_split is None else None
  compare.value("splits", sorted(case["splits"]), sorted(_SPLITS))
  for which, split in _SPLITS.items():
    theirs = case["splits"][which]
    size = case["sizes"][split.value]
    if per_split is None:
      assert whole is not None
      names, weights = case["corpora"], case["weights"]
      book_ends = whole[split.value]
    else:
      own = per_split[split.value]
      names, weights = own if own is not None else (None, None)
      book_ends = None if own is None else split_lib.EVERYTHING
    if book_ends is None or theirs is None:
      compare.value(which, "built" if book_ends else None, theirs and "built")
      continue
    assert names is not None
    opened = [corpora(each) for each in names]
    made = blended.build(
      [corpus.sequence_lengths for corpus in opened],
      blended.Request(
        weights=_one_is_no_blend(names, weights, per_split), size=size
      ),
      book_ends=book_ends,
      names=names,
      options=blended.Options(
        seq_len=case["seq"],
        seed=case["seed"],
        split=split,
        extra=int(_option(case, "extra", True)),
        drop_last=_option(case, "drop_last", True),
        surplus=_option(case, "surplus", 0.005),
        rounding=rounding,
      ),
    )
    _compare_split(compare, which, theirs, made, opened, corpora.first_n)
  compare.fields(case, given=_BLEND_FIELDS, required={})


def _one_is_no_blend(names, weights, per_split):
  """A single source of a split of its own is no blend, weighed or not."""
  return None if per_split is not None and len(names) == 1 else weights


def _compare_split(
  compare: compare_lib.Compare,
  which: str,
  theirs: dict,
  made: blended.Blended,
  corpora: list[indexed.Indexed],
  first_n: int,
) -> None:
  """Compares one split of a blend."""
  sources, numbers = made.locate(np.arange(made.size))

  def texts(rows: np.ndarray) -> np.ndarray:
    width = made.indices[0].plan.seq_len + made.indices[0].plan.extra
    out = np.empty((len(rows), width), np.int64)
    for source, corpus in enumerate(corpora):
      mine = sources[rows] == source
      picked = numbers[rows[mine]]
      out[mine] = _texts(made.indices[source], corpus, picked)
    return out

  required: dict[str, Any] = {
    "all_text_int64le_sha256": _sha256(
      (texts(rows) for rows in _parts(made.size)), "<i8"
    )
  }
  optional: dict[str, Any] = {
    "kind": "GPTDataset" if made.blend is None else "BlendedDataset",
    "length": made.size,
  }
  if made.blend is None:
    optional["num_samples"] = made.asked[0]
  else:
    assert made.weights is not None
    compare.array(f"{which}/dataset_index", sources.astype(np.int16))
    compare.array(f"{which}/dataset_sample_index", numbers)
    optional |= {
      "size": None if made.limits is not None else made.size,
      "weights_used": made.weights,
    }
    required |= {
      "weights_hex": [weight.hex() for weight in made.weights],
      "per_dataset_num_samples": made.asked,
      "per_dataset_length": [index.num_samples for index in made.indices],
      "counts": np.bincount(sources, minlength=len(corpora)).tolist(),
    }
  first = np.arange(min(made.size, first_n))
  compare.array(f"{which}/text", texts(first), dtype=False)
  compare.fields(
    theirs, given=(), required=required, optional=optional, where=f"{which}: "
  )


def _check_blend_helper(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: blend_lib.Rounding,
) -> None:
  del name, corpora
  given = case.get("weights")
  if given is None:
    random = np.random.default_rng(case["wseed"])
    given = random.gamma(0.5, size=case["n"]).tolist()
  weights = blend_lib.normalize(given)
  blend = blend_lib.Blend(weights, case["size"], rounding=rounding)
  sources, numbers = blend.locate(np.arange(case["size"]))
  theirs = compare.read("dataset_index")
  compare.array("weights", weights)
  compare.array("dataset_index", sources[: len(theirs)].astype(np.int16))
  compare.array("dataset_sample_index", numbers[: len(theirs)])
  compare.fields(
    case,
    given={"weights", "wseed", "n", "size"},
    required=_order_fields(sources, numbers, len(weights)),
    optional={
      "weights_normalized_hex": [weight.hex() for weight in weights.tolist()]
    },
  )


def _check_exhaustive_helper(
  compare: compare_lib.Compare,
  name: str,
  case: dict,
  corpora: Corpora,
  rounding: blend_lib.Rounding,
) -> None:
  del name, corpora
  sizes = case["sizes"]
  total = sum(sizes)
  blend = blend_lib.Blend(
    [size / float(total) for size in sizes],
    total,
    rounding=rounding,
    limits=sizes,
  )
  sources, numbers = blend.locate(np.arange(total))
  compare.array("dataset_index", sources.astype(np.int16))
  compare.array("dataset_sample_index", numbers)
  # The whole arrays are there, so hashes of them are not needed.
  compare.fields(
    case,
    given={"sizes"},
    required={},
    optional=_order_fields(sources, numbers, len(sizes)),
  )


def _order_fields(
  sources: np.ndarray, numbers: np.ndarray, num_sources: int
) -> dict[str, Any]:
  return {
    "counts": np.bincount(sources, minlength=num_sources).tolist(),
    "dataset_index_int16le_sha256": _sha256([sources], "<i2"),
    "dataset_sample_index_int64le_sha256": _sha256([numbers], "<i8"),
  }


def _build(
  case: dict, corpus: indexed.Indexed, num_samples: int | None
) -> tuple[index_lib.Index, tuple[float, float]]:
  """The index of a case of one source, and the book-ends of its split."""
  split = _SPLITS[case["which"]]
  book_ends = split_lib.parse(case["split"])[split.value]
  if book_ends is None:
    raise ValueError(f"the split {case['split']!r} has no {case['which']} part")
  index = blended.build_source(
    corpus.sequence_lengths,
    num_samples,
    book_ends=book_ends,
    name=case["corpus"],
    options=blended.Options(
      seq_len=case["seq"],
      seed=case["seed"],
      split=split,
      extra=int(_option(case, "extra", True)),
      drop_last=_option(case, "drop_last", True),
    ),
  )
  return index, book_ends


def _option(case: dict, name: str, default: Any) -> Any:
  """An option that a case may leave out, or leave open."""
  value = case.get(name)
  return default if value is None else value


def _texts(
  index: index_lib.Index, corpus: indexed.Indexed, samples: np.ndarray
) -> np.ndarray:
  return items.texts(
    index,
    samples,
    tokens=corpus.tokens,
    sequence_starts=corpus.sequence_starts,
    pad=_PAD,
  )


def _parts(size: int) -> collections.abc.Iterator[np.ndarray]:
  for first in range(0, size, _AT_ONCE):
    yield np.arange(first, min(first + _AT_ONCE, size))


def _sha256(arrays: collections.abc.Iterable[np.ndarray], dtype: str) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(array.astype(dtype).tobytes())
  return digest.hexdigest()


# What says which index a case is of.
_SOURCE_FIELDS = frozenset(
  [
    "corpus",
    "seq",
    "seed",
    "split",
    "which",
    "epochs",
    "num_samples",
    "extra",
    "drop_last",
  ]
)
_BLEND_FIELDS = frozenset(
  [
    "corpora",
    "weights",
    "split",
    "per_split",
    "sizes",
    "seq",
    "seed",
    "splits",
    "surplus",
    "extra",
    "drop_last",
  ]
)
_SPLITS = {
  "train": split_lib.Split.TRAIN,
  "valid": split_lib.Split.VALID,
  "test": split_lib.Split.TEST,
}
KINDS = {
  "corpora": _check_corpus,
  "gpt": _check_gpt,
  "items": _check_items,
  "blend": _check_blend,
  "blend_helper": _check_blend_helper,
  "exhaustive_helper": _check_exhaustive_helper,
}
