"""Many prompts answered by an engine, in order: the work of //serve:generate.

A line of the input is an object with `prompt` (a text, or token ids) or
`messages` (of a conversation), and whatever of `Line` it wants to have other
than the defaults. A line of the output has its `id` (of the input, or the
line's number from 0), `text`, `tokens`, `finish` and `num_prompt`; `logprobs`
if asked for; `error` in place of these if it could not be answered.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import queue
import time
from typing import Any, Protocol
import zlib

import msgspec

from data import chat_prompt
from data import tokenizer as tokenizer_lib
from serve import conventions
from serve import detokenizer
from serve import engine as engine_lib
from serve import request as request_lib
from serve import stats as stats_lib

_Reason = request_lib.FinishReason


class Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
  """A line of the input; see `request.Sampling`. Unset: as the flags say.

  Attributes:
    id: Unset: the line's number.
    prompt: A text, or token ids.
    messages: A conversation, instead.
    stop: Strings at which the answer ends.
    ignore_end: The model's end of a text does not end it.
    logprobs: So many of the likeliest tokens at each place.
  """

  id: str | int | None = None
  prompt: str | list[int] | None = None
  messages: list[dict[str, Any]] | None = None
  max_tokens: int | None = None
  min_tokens: int = 0
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  repetition_penalty: float | None = None
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  logit_bias: dict[int, float] = {}
  seed: int | None = None
  stop: str | list[str] = []
  ignore_end: bool = False
  logprobs: int | None = None
  priority: int = 0


class Engine(Protocol):
  """What is asked of the engine."""

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None: ...

  def abort(self, request_id: str, reason: _Reason = ...) -> None: ...

  def stats(self) -> stats_lib.Stats: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
  """Where a line says nothing.

  Attributes:
    max_tokens: Of an answer.
    generation: How tokens are chosen.
    seed: Of all; each line's depends on it and on its id.
    end_ids: Tokens that end an answer.
    start: What comes before a text.
    vocab_size: Every id is smaller.
  """

  max_tokens: int
  generation: conventions.Generation
  seed: int
  end_ids: frozenset[int]
  start: conventions.Start
  vocab_size: int


class Words:
  """A model's tokens as text."""

  def __init__(self, folder: pathlib.Path):
    self.tokenizer = tokenizer_lib.Tokenizer.load(folder)
    self.vocabulary = detokenizer.Vocabulary.load(folder)
    self.prompts = chat_prompt.Encoder(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A line to be answered.

  Attributes:
    id: Of the line.
    request: What is asked; its id is the place of the line.
    stops: Strings at which the answer ends.
    error: Why it cannot be; then there is no request.
  """

  id: str | int
  request: request_lib.Request | None = None
  stops: tuple[str, ...] = ()
  error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
  """What was done.

  Attributes:
    num_jobs: Answered.
    num_errors: Of them, with an error.
    num_prompt: Tokens of prompts.
    num_output: Tokens of answers.
    seconds: That it took.
  """

  num_jobs: int
  num_errors: int
  num_prompt: int
  num_output: int
  seconds: float

  def __str__(self) -> str:
    rate = self.num_output / max(self.seconds, 1e-9)
    return (
      f"{self.num_jobs} answers ({self.num_errors} errors), "
      f"{self.num_prompt:,} + {self.num_output:,} tokens in "
      f"{self.seconds:.1f} s: {rate:,.1f} tokens/s"
    )


def read_lines(file: pathlib.Path) -> list[Line]:
  """The input, all of it checked.

  Raises:
    ValueError: Names the line and what is wrong with it.
  """
  lines: list[Line] = []
  seen: dict[str | int, int] = {}
  decoder = msgspec.json.Decoder(Line)
  with open(file, "rb") as stream:
    for number, text in enumerate(stream):
      place = f"{file}:{number + 1}"
      try:
        line = decoder.decode(text)
      except msgspec.DecodeError as error:
        raise ValueError(f"{place}: {error}") from error
      if line.id is None:
        line.id = number
      if line.id in seen:
        raise ValueError(
          f"{place}: id is {line.id!r}, as in line {seen[line.id]}; give every "
          "line its own"
        )
      seen[line.id] = number + 1
      if (line.prompt is None) == (line.messages is None):
        raise ValueError(f"{place}: give either prompt or messages")
      lines.append(line)
  return lines


def make_job(
  line: Line, place: int, defaults: Defaults, words: Words | None
) -> Job:
  """What to ask the engine for a line."""
  assert line.id is not None
  try:
    request = _make_request(line, place, defaults, words)
  except ValueError as error:
    return Job(id=line.id, error=str(error))
  stops = (line.stop,) if isinstance(line.stop, str) else tuple(line.stop)
  return Job(id=line.id, request=request, stops=stops)


def _make_request(
  line: Line, place: int, defaults: Defaults, words: Words | None
) -> request_lib.Request:
  prompt = _encode(line, defaults, words)
  usual = defaults.generation

  def pick(given: float | None, usual: float | None, neutral: float) -> float:
    if given is not None:
      return given
    return neutral if usual is None else usual

  seed = line.seed
  if seed is None:
    seed = zlib.crc32(f"{defaults.seed}/{line.id}".encode())
  return request_lib.Request(
    id=str(place),
    prompt=tuple(prompt),
    max_tokens=line.max_tokens or defaults.max_tokens,
    min_tokens=line.min_tokens,
    stop_ids=frozenset() if line.ignore_end else defaults.end_ids,
    priority=line.priority,
    sampling=request_lib.Sampling(
      temperature=pick(line.temperature, usual.temperature, 1.0),
      top_k=usual.top_k if line.top_k is None else line.top_k,
      top_p=pick(line.top_p, usual.top_p, 1.0),
      min_p=pick(line.min_p, usual.min_p, 0.0),
      repetition_penalty=pick(
        line.repetition_penalty, usual.repetition_penalty, 1.0
      ),
      presence_penalty=line.presence_penalty,
      frequency_penalty=line.frequency_penalty,
      logit_bias=tuple(line.logit_bias.items()),
      seed=seed % 2**32,
      num_logprobs=line.logprobs,
    ),
  )


def _encode(
  line: Line, defaults: Defaults, words: Words | None
) -> Iterable[int]:
  if isinstance(line.prompt, list):
    if not all(0 <= token < defaults.vocab_size for token in line.prompt):
      raise ValueError(
        f"prompt has ids beyond the vocabulary of {defaults.vocab_size}"
      )
    return line.prompt
  if words is None:
    raise ValueError("the model has no tokenizer: give prompt as token ids")
  if line.prompt is not None:
    return conventions.encode(line.prompt, words.tokenizer, defaults.start)
  assert line.messages is not None
  conversation = words.prompts.encode(line.messages, add_generation_prompt=True)
  return conversation.tokens


@dataclasses.dataclass
class _Answer:
  """What has come of a job so far."""

  place: int
  job: Job
  request: request_lib.Request
  text: detokenizer.Detokenizer | None
  tokens: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[request_lib.TokenLogprobs] = dataclasses.field(
    default_factory=list
  )

  @classmethod
  def begin(
    cls, place: int, job: Job, vocabulary: detokenizer.Vocabulary | None
  ) -> "_Answer":
    """Raises ValueError if the job cannot be done."""
    if job.request is None:
      raise ValueError(job.error)
    if vocabulary is None:
      if job.stops:
        raise ValueError("stop needs a model with a tokenizer; leave it out")
      return cls(place=place, job=job, request=job.request, text=None)
    text = detokenizer.Detokenizer(
      vocabulary,
      job.request.prompt,
      stops=job.stops,
      min_tokens=job.request.min_tokens,
    )
    return cls(place=place, job=job, request=job.request, text=text)

  def take(self, output: request_lib.Output) -> bool:
    """Whether a stop string was found."""
    if self.text is not None and self.text.stop is not None:
      return False
    self.tokens += output.tokens
    self.logprobs += output.logprobs
    if self.text is None:
      return False
    ends = self.request.stop_ids
    self.text.push(token for token in output.tokens if token not in ends)
    return self.text.stop is not None

  def line(self, output: request_lib.Output) -> dict[str, Any]:
    """Of the output file."""
    line: dict[str, Any] = {"id": self.job.id}
    if output.finish is _Reason.ERROR:
      return line | {"error": output.error}
    finish = output.finish
    if self.text is not None:
      self.text.finish()
      line["text"] = self.text.text
      if self.text.stop is not None:
        finish = _Reason.STOP
    assert finish is not None
    line["tokens"] = self.tokens
    line["finish"] = finish.value
    line["num_prompt"] = len(self.request.prompt)
    if self.request.sampling.num_logprobs is not None:
      line["logprobs"] = [dataclasses.asdict(place) for place in self.logprobs]
    return line


def run(
  engine: Engine,
  jobs: Iterable[Job],
  write: Callable[[Mapping[str, Any]], None],
  *,
  vocabulary: detokenizer.Vocabulary | None,
  num_parallel: int,
  report: Callable[[Totals], None] = lambda totals: None,
) -> Totals:
  """Answers all jobs.

  Args:
    engine: Started.
    jobs: What to answer; taken as there is room.
    write: Gets the lines of the output, in the order of the jobs.
    vocabulary: None: answers have no text.
    num_parallel: Jobs that the engine has at a time.
    report: Called with what is done so far, again and again.

  Raises:
    RuntimeError: The engine died; what was written is complete.
  """
  progress = _Progress(engine, jobs, vocabulary, num_parallel)
  while True:
    progress.submit()
    for line in progress.pop_finished():
      write(line)
    report(progress.totals())
    if not progress.wait():
      return progress.totals()


class _Progress:
  """Of a run: what is asked, what is answered but must wait for its turn."""

  def __init__(
    self,
    engine: Engine,
    jobs: Iterable[Job],
    vocabulary: detokenizer.Vocabulary | None,
    num_parallel: int,
  ):
    self._engine = engine
    self._jobs: Iterator[tuple[int, Job]] = enumerate(jobs)
    self._vocabulary = vocabulary
    self._num_parallel = num_parallel
    self._outputs: queue.SimpleQueue[request_lib.Output] = queue.SimpleQueue()
    self._open: dict[str, _Answer] = {}
    self._finished: dict[int, dict[str, Any]] = {}
    self._num_written = 0
    self._is_all_taken = False
    self._began = time.monotonic()
    self._num_errors = self._num_prompt = self._num_output = 0

  def submit(self) -> None:
    """Gives the engine as many jobs as it may have."""
    # One that takes long holds up what is finished after it: that has an end.
    while (
      len(self._open) < self._num_parallel
      and len(self._finished) < 4 * self._num_parallel
    ):
      place, job = next(self._jobs, (0, None))
      if job is None:
        self._is_all_taken = True
        return
      try:
        answer = _Answer.begin(place, job, self._vocabulary)
        self._engine.submit(answer.request, self._outputs.put)
      except ValueError as error:
        self._num_errors += 1
        self._finished[place] = {"id": job.id, "error": str(error)}
      else:
        self._open[answer.request.id] = answer

  def pop_finished(self) -> Iterator[dict[str, Any]]:
    """Lines of the output whose turn it is."""
    while self._num_written in self._finished:
      yield self._finished.pop(self._num_written)
      self._num_written += 1

  def wait(self) -> bool:
    """Takes an output in, if one is to come; false if all is done."""
    if not self._open:
      return not self._is_all_taken
    output = self._outputs.get()
    answer = self._open[output.request_id]
    if answer.take(output):
      self._engine.abort(output.request_id, _Reason.STOP)
    if output.finish is not None:
      if self._engine.stats().phase is stats_lib.Phase.DEAD:
        raise RuntimeError(output.error)
      del self._open[output.request_id]
      self._finished[answer.place] = answer.line(output)
      self._num_errors += output.finish is _Reason.ERROR
      self._num_prompt += len(answer.request.prompt)
      self._num_output += len(answer.tokens)
    return True

  def totals(self) -> Totals:
    """What is done."""
    return Totals(
      num_jobs=self._num_written + len(self._finished),
      num_errors=self._num_errors,
      num_prompt=self._num_prompt,
      num_output=self._num_output,
      seconds=time.monotonic() - self._began,
    )


def find_answered(file: pathlib.Path) -> set[str | int]:
  """Ids that an output has; a torn last line is cut off."""
  if not file.exists():
    return set()
  found: set[str | int] = set()
  end = 0
  with open(file, "rb") as stream:
    for number, text in enumerate(stream, start=1):
      if not text.endswith(b"\n"):
        break
      try:
        found.add(json.loads(text)["id"])
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"--output={file}: line {number} is no answer of this program "
          f"({error}); name another file"
        ) from error
      end += len(text)
  os.truncate(file, end)
  return found
