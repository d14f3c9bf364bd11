"""Stopping well: SIGTERM and Ctrl-C end a run after its current step."""

import signal

from absl import logging
import jax


class StopRequest:
  """Remembers the first SIGTERM or SIGINT; a second one acts at once.

  Several processes would have to agree on the step, or those without a signal
  would wait for ever in their next collective; there, signals are left alone.
  """

  def __init__(self):
    self.signal = 0
    self._previous = {}

  def __enter__(self) -> "StopRequest":
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame) -> None:
    del frame
    self.signal = number
    name = signal.Signals(number).name
    logging.warning("%s: saving after this step, then stopping.", name)
    for each, handler in self._previous.items():
      signal.signal(each, handler)
