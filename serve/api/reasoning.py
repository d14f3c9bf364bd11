"""Tells what a model thinks (`<think>...</think>`) from what it says."""

_OPEN = "<think>"
_CLOSE = "</think>"
_SPACE = " \t\r\n"


def is_known(template: str) -> bool:
  """Whether the template's model thinks."""
  return _CLOSE in template


class Reader:
  """Reads one answer, as it comes."""

  def __init__(self, prompt: str):
    """Nothing is read yet.

    Args:
      prompt: Before the answer; it may end where thinking has begun.
    """
    self._is_thinking = prompt.rstrip(_SPACE).endswith(_OPEN)
    self._may_think = not self._is_thinking
    self._strips = True
    self._held = ""

  def push(self, text: str) -> tuple[str, str]:
    """Takes more of the answer.

    Returns:
      What is new of what the model thinks, and of what it says.
    """
    self._held += text
    if self._may_think:
      stripped = self._held.lstrip(_SPACE)
      if _OPEN.startswith(stripped[: len(_OPEN)]) and len(stripped) < len(
        _OPEN
      ):
        return "", ""
      self._may_think = False
      if stripped.startswith(_OPEN):
        self._held = stripped[len(_OPEN) :]
        self._is_thinking = True
      else:
        self._strips = False
    thought = ""
    if self._is_thinking:
      thought, found, rest = self._held.partition(_CLOSE)
      if not found:
        return self._think(), ""
      thought = self._strip(thought).rstrip(_SPACE)
      self._held = rest
      self._is_thinking = False
      self._strips = True
    return thought, self._say()

  def finish(self) -> tuple[str, str]:
    """What was held back."""
    held = self._strip(self._held)
    self._held = ""
    if self._is_thinking:
      return held.rstrip(_SPACE), ""
    return "", held

  def _think(self) -> str:
    """What cannot be the beginning of the end."""
    held = self._strip(self._held)
    kept = next(
      (n for n in range(len(_CLOSE) - 1, 0, -1) if held.endswith(_CLOSE[:n])), 0
    )
    given = held[: len(held) - kept].rstrip(_SPACE)
    self._held = held[len(given) :]
    return given

  def _say(self) -> str:
    given = self._strip(self._held)
    self._held = ""
    return given

  def _strip(self, text: str) -> str:
    """Without the white space at the beginning of a part."""
    if self._strips:
      text = text.lstrip(_SPACE)
      self._strips = not text
    return text
