"""Words of a text, for comparing texts: case, width and marks do not matter.

Scripts that write without spaces (Chinese, Japanese) have a word a character.
"""

import re
import unicodedata

# Kana, and ideographs of all planes.
_ALONE = (
  "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")


def split(text: str) -> list[str]:
  """The words of a text, in order, without what stands between them."""
  return _WORD.findall(unicodedata.normalize("NFKC", text).lower())
