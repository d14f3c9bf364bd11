"""Stopping well: SIGTERM and Ctrl-C end a run after its current step.

One of several processes that gets a signal asks the others, and all stop after
the same step. Which one is agreed upon in the background: each says which step
it has reached and makes no other until all have, so that the one after the
latest of these lies before everybody.
"""

import signal
import threading

from absl import logging

from train import distributed

_REQUEST = "run/stop"
_STEPS = "run/stop_steps"
_POLL_SECONDS = 1.0


class StopRequest:
  """Remembers the first SIGTERM or SIGINT; a second one acts at once.

  Attributes:
    signal: Number of the signal that this process has had, or 0.
  """

  def __init__(self):
    self.signal = 0
    self._previous = {}
    self._closed = threading.Event()
    self._thread = None
    # Held while the processes agree: `after` waits for the outcome.
    self._lock = threading.Lock()
    self._reached = 0
    self._stop_after: int | None = None
    self._stop_signal = 0

  def __enter__(self) -> "StopRequest":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._handle)
    if distributed.has_others():
      self._thread = threading.Thread(target=self._listen, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._closed.set()
    if self._thread is not None:
      self._thread.join()
    for number, handler in self._previous.items():
      # None: not set by Python, as JAX's own for SIGTERM.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def after(self, step: int) -> int:
    """Whether to stop now: the signal's number, or 0 to go on.

    Args:
      step: Updates made. Every process asks after each, and all have the same
        answer.
    """
    if self._thread is None:
      return self.signal
    with self._lock:
      self._reached = step
      if self._stop_after is None or step < self._stop_after:
        return 0
      return self._stop_signal

  def _handle(self, number, frame) -> None:
    del frame
    self.signal = number
    name = signal.Signals(number).name
    logging.warning("%s: saving after this step, then stopping.", name)
    for each, handler in self._previous.items():
      signal.signal(each, signal.SIG_DFL if handler is None else handler)

  def _listen(self) -> None:
    """Passes on this process's signal, and waits for that of another."""
    told = False
    while not self._closed.wait(_POLL_SECONDS):
      if self.signal and not told:
        distributed.post(_REQUEST, str(int(self.signal)))
        told = True
      number = distributed.read(_REQUEST)
      if number is not None:
        self._agree(int(number))
        return

  def _agree(self, number: int) -> None:
    with self._lock:
      steps = distributed.gather(_STEPS, str(self._reached))
      if steps is None:
        logging.error("The processes could not agree where to stop.")
        return
      self._stop_after = max(map(int, steps)) + 1
      self._stop_signal = number
    logging.warning(
      "%s: all save after step %d, then stop.",
      signal.Signals(number).name,
      self._stop_after,
    )
