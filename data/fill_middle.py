"""Documents with the middle moved to the end, so that a model can fill it in.

A document is cut at two places, drawn evenly, and its parts are written as
(M. Bavarian et al., "Efficient training of language models to fill in the
middle", 2022)

    PSM: <prefix> prefix <suffix> suffix <middle> middle
    SPM: <prefix> <suffix> suffix <middle> prefix middle

with an eos, if there is one, still at the end. It is three tokens longer. Which
documents are changed depends on the seed and the source alone, so all epochs
have the same lengths, and what is packed or chunked by them is known ahead.
Where a document is cut, and in which of the two forms it is, depends on the
epoch, too.

L tokens.
"""

import dataclasses
import hashlib

from jaxtyping import Int
import numpy as np

from data import chunk
from data import config as config_lib
from data import permutation
from data import ragged
from data import tokenizer as tokenizer_lib

# Names of the tokens before the prefix, the suffix and the middle, as models
# have them: Qwen; StarCoder; Granite; DeepSeek; Code Llama.
_NAMES = (
  ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
  ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
  ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
  (
    "<\uff5cfim▁begin\uff5c>",
    "<\uff5cfim▁hole\uff5c>",
    "<\uff5cfim▁end\uff5c>",
  ),
  ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
# The shortest document that is changed: two tokens and an eos.
_SHORTEST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentinels:
  """Ids of the tokens that say which part follows."""

  prefix: int
  suffix: int
  middle: int


def sentinels(tokenizer: tokenizer_lib.Tokenizer) -> Sentinels:
  """Those of a tokenizer.

  Raises:
    ValueError: It has none.
  """
  for names in _NAMES:
    found = [tokenizer.encode_with_special_tokens(name) for name in names]
    if all(
      len(ids) == 1 and tokenizer.decode(ids) == name
      for ids, name in zip(found, names, strict=True)
    ):
      (prefix,), (suffix,), (middle,) = found
      return Sentinels(prefix=prefix, suffix=suffix, middle=middle)
  known = "; ".join(", ".join(names) for names in _NAMES)
  raise ValueError(
    "data.sequence.fim_rate is set, but the tokenizer has no tokens for"
    f" fill-in-the-middle (looked for {known}); set it to 0, or use a tokenizer"
    " that has them"
  )


class FillMiddle:
  """A source of tokens, some of its documents with their middle at the end.

  Args:
    tokens: The source.
    name: Its name, part of the key of what is drawn.
    seed: Key of what is drawn.
    config: Share of the documents, and of those in the form SPM.
    sentinels: Ids.
    eos_id: Stays at the end of a document that ends with it.

  Attributes:
    document_lengths: Three more for each document that is changed.
    is_changed: Which those are.
    flat: None: they do not lie so on disk.
  """

  flat = None

  def __init__(
    self,
    tokens: chunk.TokenSource,
    *,
    name: str,
    seed: int,
    config: config_lib.SequenceConfig,
    sentinels: Sentinels,
    eos_id: int,
  ):
    self._tokens = tokens
    self._key = (seed, name)
    self._spm_rate = config.fim_spm_rate
    self._sentinels = sentinels
    self._eos_id = eos_id
    self._epoch = 0
    lengths = np.asarray(tokens.document_lengths, np.int64)
    # Of a document of rank r, whether r is in the first so many.
    shuffle = permutation.Permutation(len(lengths), key=("fim", *self._key))
    ranks = shuffle(np.arange(len(lengths)))
    is_first = ranks < round(config.fim_rate * len(lengths))
    self.is_changed = is_first & (lengths >= _SHORTEST)
    self.document_lengths = lengths + 3 * self.is_changed
    self._starts = ragged.running_sum(self.document_lengths)
    self._source_starts = ragged.running_sum(lengths)

  @property
  def num_tokens(self) -> int:
    """All tokens of the documents."""
    return int(self._starts[-1])

  def of_epoch(self, epoch: int) -> "FillMiddle":
    """The same source as it is in an epoch; that of a new one is the 0th."""
    other = object.__new__(FillMiddle)
    other.__dict__.update(self.__dict__, _epoch=epoch)
    return other

  def read(self, start: int, stop: int) -> Int[np.ndarray, "L"]:
    """Tokens [start, stop) of the documents laid end to end."""
    parts = [np.empty(0, np.int32)]
    document = int(np.searchsorted(self._starts, start, "right")) - 1
    while start < stop:
      begin, end = self._starts[document : document + 2].tolist()
      last = min(stop, end)
      parts += self._parts(document, start - begin, last - begin)
      start, document = last, document + 1
    return np.concatenate(parts, dtype=np.int32)

  def _parts(self, document: int, start: int, stop: int) -> list[np.ndarray]:
    """Tokens [start, stop) of a document as it is now, in parts."""
    offset = int(self._source_starts[document])
    if not self.is_changed[document]:
      return [self._tokens.read(offset + start, offset + stop)]
    parts, position = [], 0
    for part in self._layout(document):
      if isinstance(part, int):
        first, length = 0, 1
      else:
        first, length = part.start, part.stop - part.start
      begin, end = max(start - position, 0), min(stop - position, length)
      position += length
      if begin >= end:
        continue
      if isinstance(part, int):
        parts.append(np.array([part], np.int32))
      else:
        first += offset
        parts.append(self._tokens.read(first + begin, first + end))
    return parts

  def _layout(self, document: int) -> list[int | slice]:
    """Sentinels, and what of the document lies between them."""
    offset, end = self._source_starts[document : document + 2].tolist()
    length = end - offset
    has_eos = int(self._tokens.read(end - 1, end)[0]) == self._eos_id
    text = length - has_eos
    key = repr(("fim", *self._key, self._epoch, document)).encode()
    drawn = hashlib.blake2b(key, digest_size=24).digest()
    first, second, form = np.frombuffer(drawn, "<u8").tolist()
    # Of 2**64 values, evenly enough.
    first, second = sorted((first % (text + 1), second % (text + 1)))
    before, after = self._sentinels.prefix, self._sentinels.suffix
    between = self._sentinels.middle
    prefix, middle = slice(0, first), slice(first, second)
    suffix, eos = slice(second, text), slice(text, length)
    if form < self._spm_rate * 2.0**64:
      return [before, after, suffix, between, prefix, middle, eos]
    return [before, prefix, after, suffix, between, middle, eos]
