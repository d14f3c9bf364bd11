"""A server as users have it, for tests that ask it with real clients.

A subprocess of `serve.main` with a tiny random model, a tokenizer that was
trained on a few texts and a chat template with tools. What it computes, `Model`
computes again: the plain forward pass over a whole text, without a cache.

Dims: B batch, T tokens of a text, D model, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import http.client
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Protocol
import urllib.parse

import jax
from jaxtyping import Array, Float, Int
import numpy as np

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from model import sharding
from model import transformer
from serve import checkpoint_fixtures

NAME = "tiny"
STEP = 7
MAX_LEN = 1024
VOCAB_SIZE = 512
# A busy machine compiles for long.
_START_SECONDS = 400
_END_SECONDS = 60
_TEXTS = (
  "In the beginning was the word, and the word was with the server, and the"
  " server answered whoever asked. It was asked in the morning and in the"
  " evening, by one client and by many, and it said the same to all of them.",
  "The quick brown fox jumps over the lazy dog; 0123456789 times, or more.",
  'def add(a: int, b: int) -> int:\n    """The sum."""\n    return a + b\n\n',
  '{"name": "weather", "arguments": {"city": "Seoul", "days": 3}}\n',
  '[{"role": "user", "content": "What is the weather?"}, true, false, null]\n',
  "user: Hello, how are you?\nassistant: I am well. And what are you?\n",
  "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다.",
  "Příliš žluťoučký kůň úpěl ďábelské ódy. 😀🎉 ¿Qué tal? Ça va.",
)
_TEMPLATE = """\
{%- if tools %}system: Call a tool as in <tool_call>
{"name": "add", "arguments": {"a": 1}}
</tool_call>
{%- for tool in tools %}
{{ tool.function | tojson }}
{%- endfor %}{{ eos_token }}{% endif %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{%- for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""
_FIGURE = re.compile(r"(?m)^([a-z_:]+)(?:\{[^}]*\})? ([0-9.e+-]+|NaN)$")


class Model:
  """A checkpoint of a tiny random model, and what it computes.

  Attributes:
    workdir: As of a training run.
    tokenizer: What made its token ids.
    tokenizer_folder: As transformers reads it.
  """

  def __init__(self, folder: pathlib.Path):
    """Writes it into the folder."""
    self.workdir = folder / "run"
    self.tokenizer_folder = folder / "tokenizer"
    tokenizer_lib.Tokenizer.train(_TEXTS, vocab_size=VOCAB_SIZE).save(
      self.tokenizer_folder
    )
    (self.tokenizer_folder / "chat_template.jinja").write_text(_TEMPLATE)
    self.tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer_folder)
    checkpoint_fixtures.write(
      self.workdir / "checkpoints",
      step=STEP,
      model=checkpoint_fixtures.config(
        name=NAME, vocab_size=VOCAB_SIZE, max_seq_len=MAX_LEN
      ),
      tokenizer=self.tokenizer_folder,
    )

  def prompt(self, text: str) -> list[int]:
    """Ids of a text to be continued; it follows the end of another."""
    return [self.tokenizer.eos_id, *self.tokenizer.encode(text)]

  def text(self, tokens: Sequence[int]) -> str:
    """Of ids; special tokens are none of it."""
    special = len(tokenizer_lib.SPECIAL_TOKENS)
    return self.tokenizer.decode([t for t in tokens if t >= special])

  def logprobs(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
    """Of the token that comes after each.

    Args:
      tokens: T ids, at least one.
    """
    logits = self.logits(tokens).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

  def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
    """As `logprobs`, but as the model has them."""
    return self._run(tokens)[1]

  def hidden(self, tokens: Sequence[int]) -> Float[np.ndarray, "T D"]:
    """Final hidden states of T ids."""
    return self._run(tokens)[0]

  def score(
    self, prompt: Sequence[int], continuation: Sequence[int]
  ) -> tuple[float, bool]:
    """Log-probability of a continuation, and whether it is the likeliest."""
    rows = self.logprobs([*prompt, *continuation])[len(prompt) - 1 : -1]
    picked = rows[np.arange(len(continuation)), list(continuation)]
    greedy = bool(np.all(rows.argmax(axis=-1) == np.array(continuation)))
    return float(picked.sum()), greedy

  def greedy(
    self, prompt: Sequence[int], num: int, *, ends: Sequence[int] = ()
  ) -> list[int]:
    """The likeliest tokens one by one, until `num` or one that ends a text."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num:
      token = int(self.logprobs(tokens)[-1].argmax())
      tokens.append(token)
      if token in ends:
        break
    return tokens[len(prompt) :]

  def _run(
    self, tokens: Sequence[int]
  ) -> tuple[Float[np.ndarray, "T D"], Float[np.ndarray, "T V"]]:
    """Hidden states and logits."""
    # Few lengths are compiled.
    padded = np.zeros((1, 64 * -(-len(tokens) // 64)), np.int32)
    padded[0, : len(tokens)] = tokens
    hidden, logits = self._forward(padded)
    return hidden[0, : len(tokens)], logits[0, : len(tokens)]

  @functools.cached_property
  def _forward(
    self,
  ) -> Callable[[Int[np.ndarray, "B T"]], tuple[np.ndarray, np.ndarray]]:
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    bundle = checkpoint.load(checkpoint.find(self.workdir), mesh)
    graphdef, _ = transformer.abstract(
      bundle.config, model_config.ExecutionConfig(compute_dtype="float32")
    )

    @jax.jit
    def forward(
      tokens: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T V"]]:
      model = transformer.bind(graphdef, bundle.params)
      hidden = model(tokens).hidden
      return hidden, model.logits(hidden)

    return lambda tokens: jax.device_get(forward(tokens))


class Served(Protocol):
  """What a server can serve."""

  @property
  def workdir(self) -> pathlib.Path:
    """Of a training run, or a checkpoint."""
    ...


class Server:
  """A running server; a context manager, which is left when it has ended.

  Attributes:
    url: Where it is, such as http://127.0.0.1:1234.
    pid: Of its process.
    base_url: Where its API is.
    log: Its lines so far.
  """

  url: str
  pid: int

  def __init__(
    self,
    model: Served,
    folder: pathlib.Path,
    *,
    main: str = "serve.main",
    variables: Mapping[str, str] | None = None,
    **settings: Any,
  ):
    """A server that will run.

    Args:
      model: What is served.
      folder: For its files.
      main: The module that is run.
      variables: Of its environment, beside ours.
      **settings: Overrides by the names of its settings, with __ for a dot.
    """
    self._model = model
    self._folder = folder
    self._main = main
    self._variables = {"JAX_PLATFORMS": "cpu", **(variables or {})}
    self._settings = {
      "api__port": 0,
      "api__drain_seconds": 5.0,
      "runner__compute_dtype": "float32",
      "runner__max_rows": 4,
      "runner__prefill_tokens": 32,
      "runner__compilation_cache": "",
    } | settings
    self.log: list[str] = []

  @property
  def base_url(self) -> str:
    return f"{self.url}/v1"

  def __enter__(self) -> "Server":
    overrides = [
      f"--config.{name.replace('__', '.')}={value}"
      for name, value in self._settings.items()
    ]
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-m", self._main),
        f"--checkpoint={self._model.workdir}",
        f"--import_folder={self._folder / 'imported'}",
        *overrides,
      ],
      env=environment() | self._variables,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.pid = self._process.pid
    lines: queue.Queue[str | None] = queue.Queue()
    self._reader = threading.Thread(target=self._read, args=[lines])
    self._reader.start()
    try:
      self.url = self._wait(lines)
    except BaseException:
      self._process.kill()
      self._reader.join()
      raise
    return self

  def __exit__(self, *exception: Any) -> None:
    self._process.send_signal(signal.SIGTERM)
    try:
      code = self._process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      raise
    finally:
      self._reader.join()
    if code:
      raise AssertionError(f"exit code {code}:\n" + "".join(self.log))

  def end(self) -> None:
    """Asks it to end, and lets it."""
    self._process.send_signal(signal.SIGTERM)

  def wait(self, seconds: float) -> int:
    """Its exit code, once it has ended."""
    return self._process.wait(seconds)

  def _read(self, lines: queue.Queue[str | None]) -> None:
    assert self._process.stderr is not None
    with self._process.stderr as stream:
      for line in stream:
        self.log.append(line)
        lines.put(line)
    lines.put(None)

  def _wait(self, lines: queue.Queue[str | None]) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while True:
      with contextlib.suppress(queue.Empty):
        line = lines.get(timeout=max(deadline - time.monotonic(), 0.001))
        if line is None:
          raise AssertionError("it has ended:\n" + "".join(self.log))
        if found := re.search(r"Ready after .*(http://[\w.]+:\d+)", line):
          return found[1]
      if time.monotonic() > deadline:
        raise AssertionError("it is not ready:\n" + "".join(self.log))

  def ask(
    self,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
  ) -> tuple[int, Any]:
    """Status and content, decoded if it is JSON.

    Args:
      method: Of HTTP.
      path: From the root.
      body: Sent as JSON; bytes as they are.
      headers: Beside the content type.
    """
    data = body
    if body is not None and not isinstance(body, bytes):
      data = json.dumps(body)
    connection = http.client.HTTPConnection(
      urllib.parse.urlsplit(self.url).netloc, timeout=120
    )
    with contextlib.closing(connection):
      kind = {"Content-Type": "application/json"}
      connection.request(method, path, data, kind | (headers or {}))
      response = connection.getresponse()
      content = response.read().decode()
      if response.headers.get_content_type() == "application/json":
        return response.status, json.loads(content)
      return response.status, content

  def figures(self) -> dict[str, float]:
    """Those of /metrics by name, summed over their labels."""
    _, text = self.ask("GET", "/metrics")
    found: dict[str, float] = {}
    for name, value in _FIGURE.findall(text):
      found[name] = found.get(name, 0.0) + float(value)
    return found

  def until_idle(self, seconds: float) -> None:
    """Waits until nothing runs or waits.

    Raises:
      AssertionError: It still does, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
      figures = self.figures()
      busy = [
        figures[f"vllm:num_requests_{state}"]
        for state in ("running", "waiting")
      ]
      if not any(busy):
        return
      if time.monotonic() > deadline:
        raise AssertionError(f"{busy} requests run and wait.")
      time.sleep(0.02)


def environment() -> dict[str, str]:
  """For a subprocess that finds the modules that this one does."""
  path = os.pathsep.join(path for path in sys.path if path)
  return os.environ | {"PYTHONPATH": path}


def client_command(module: str) -> list[str]:
  """What runs a module of @pypi_clients, or of vLLM.

  Bazel builds a program of it, and tests have that as data. Without Bazel,
  $CACAO_CLIENTS_PYTHON is a Python that has these packages. vLLM, of many
  gigabytes, is in no lock: $CACAO_VLLM_PYTHON has it.
  """
  program = pathlib.Path(__file__).with_name("module_main")
  name = "CACAO_CLIENTS_PYTHON"
  if module.startswith("vllm."):
    name = "CACAO_VLLM_PYTHON"
  elif program.exists():
    return [str(program), module]
  python = os.environ.get(name)
  if python is None:
    raise RuntimeError(
      f"${name} is not set, and there is no {program}. Fix: run the test with"
      f" Bazel, or set {name} to a Python that has {module}; most are in"
      " third_party/python/requirements_clients.txt"
    )
  return [python, str(program.with_suffix(".py")), module]


def run_client(
  module: str, *arguments: str, folder: pathlib.Path, seconds: float
) -> str:
  """Runs a module of @pypi_clients that must succeed.

  Args:
    module: Which.
    *arguments: Of its command line.
    folder: Its working directory and home.
    seconds: It may take.

  Returns:
    What it printed.
  """
  # A path to the server's packages would come before its own.
  unwanted = ("PYTHONPATH", "XLA_FLAGS")
  variables = {k: v for k, v in os.environ.items() if k not in unwanted}
  made = subprocess.run(
    [*client_command(module), *arguments],
    cwd=folder,
    env=variables | {"HOME": str(folder), "HF_HOME": str(folder / "hf")},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=seconds,
  )
  if made.returncode:
    raise AssertionError(f"{module}: {made.returncode}\n{made.stdout}")
  return made.stdout
