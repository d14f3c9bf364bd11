"""A headless Chromium, driven over its DevTools protocol, for tests."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 20.0
_KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9)}


def find() -> str:
  """The program.

  Raises:
    FileNotFoundError: There is none.
  """
  given = os.environ.get("CHROMIUM")
  for name in [given] if given else _NAMES:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin")
    if path:
      return path
  raise FileNotFoundError(
    f"there is no {given or 'Chromium'}; install it, such as with `apt-get"
    " install chromium`, or name the program in $CHROMIUM"
  )


class Browser:
  """A process; a context manager."""

  def __enter__(self) -> "Browser":
    self._stack = contextlib.ExitStack()
    folder = self._stack.enter_context(
      tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    )
    log = self._stack.enter_context(open(f"{folder}/log", "wb"))
    flags = [
      *("--headless=new", "--remote-debugging-port=0", "--disable-gpu"),
      *("--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"),
      *("--disable-background-networking", f"--user-data-dir={folder}"),
    ]
    if os.getuid() == 0:
      flags.append("--no-sandbox")  # It does not start as root otherwise.
    self._process = subprocess.Popen(
      [find(), *flags, "about:blank"], stdout=log, stderr=log
    )
    self._stack.callback(self._end)
    port = pathlib.Path(folder, "DevToolsActivePort")
    deadline = time.monotonic() + _SECONDS
    while not port.exists() or len(port.read_text().splitlines()) < 2:
      if self._process.poll() is not None or time.monotonic() > deadline:
        text = pathlib.Path(log.name).read_text(errors="replace")
        self._stack.close()
        raise RuntimeError(f"Chromium does not start:\n{text}")
      time.sleep(0.02)
    number, path = port.read_text().splitlines()[:2]
    self._url = f"ws://127.0.0.1:{number}{path}"
    return self

  def __exit__(self, *exception: Any) -> None:
    self._stack.close()

  def _end(self) -> None:
    self._process.terminate()
    try:
      self._process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  @contextlib.asynccontextmanager
  async def open(self, url: str, **settings: Any):
    """A tab of its own profile, with nothing stored; settings as `Page`'s."""
    async with (
      aiohttp.ClientSession() as session,
      session.ws_connect(self._url, max_msg_size=0) as socket,
    ):
      page = Page(socket)
      reading = asyncio.create_task(page.read())
      try:
        await page.begin(**settings)
        await page.go(url)
        yield page
      finally:
        await page.end()
        reading.cancel()


class Page:
  """A tab.

  Attributes:
    problems: What went wrong in it: exceptions, errors, what is forbidden.
    requests: URLs that it asked for.
  """

  def __init__(self, socket: aiohttp.ClientWebSocketResponse):
    self._socket = socket
    self._session: dict[str, str] = {}
    self._context = ""
    self._num = 0
    self._answers: dict[int, asyncio.Future[Any]] = {}
    self.problems: list[str] = []
    self.requests: list[str] = []

  async def read(self) -> None:
    """Takes in what the browser says."""
    async for message in self._socket:
      event = json.loads(message.data)
      if "id" in event:
        answer = self._answers.pop(event["id"])
        if not answer.done():
          answer.set_result(event)
        continue
      parameters = event["params"]
      match event["method"]:
        case "Runtime.exceptionThrown":
          self.problems.append(json.dumps(parameters["exceptionDetails"]))
        case "Log.entryAdded":
          if parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        case "Network.requestWillBeSent":
          self.requests.append(parameters["request"]["url"])

  async def call(self, method: str, **parameters: Any) -> Any:
    """A command of the protocol."""
    self._num += 1
    answer = asyncio.get_running_loop().create_future()
    self._answers[self._num] = answer
    message = {"id": self._num, "method": method, "params": parameters}
    await self._socket.send_json(message | self._session)
    async with asyncio.timeout(_SECONDS):
      event = await answer
    if "error" in event:
      raise RuntimeError(f"{method}: {event['error']}")
    return event["result"]

  async def begin(
    self, *, width: int = 1000, height: int = 800, dark: bool = False
  ) -> None:
    """Opens the tab: a phone's if it is narrow."""
    context = await self.call("Target.createBrowserContext")
    self._context = context["browserContextId"]
    target = await self.call(
      "Target.createTarget", url="about:blank", browserContextId=self._context
    )
    session = await self.call(
      "Target.attachToTarget", targetId=target["targetId"], flatten=True
    )
    self._session = {"sessionId": session["sessionId"]}
    for domain in ("Runtime", "Log", "Network", "Page"):
      await self.call(f"{domain}.enable")
    await self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 500,
    )
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    await self.call("Emulation.setEmulatedMedia", features=[scheme])

  async def end(self) -> None:
    """Closes the tab and forgets what it stored."""
    self._session = {}
    await self.call(
      "Target.disposeBrowserContext", browserContextId=self._context
    )

  async def go(self, url: str) -> None:
    """Loads a page, to its end."""
    await self.call("Page.navigate", url=url)
    await self.until("document.readyState === 'complete'")

  async def evaluate(self, expression: str) -> Any:
    """The value of JavaScript, awaited."""
    result = await self.call(
      "Runtime.evaluate",
      expression=expression,
      awaitPromise=True,
      returnByValue=True,
    )
    if "exceptionDetails" in result:
      raise RuntimeError(json.dumps(result["exceptionDetails"]))
    return result["result"].get("value")

  async def until(self, expression: str) -> None:
    """Waits until JavaScript is true."""
    try:
      async with asyncio.timeout(_SECONDS):
        while not await self.evaluate(expression):
          await asyncio.sleep(0.02)
    except TimeoutError as error:
      body = await self.evaluate("document.body.innerText")
      raise AssertionError(f"never: {expression}\n{body}") from error

  async def text(self, selector: str) -> str:
    """What an element shows."""
    return await self.evaluate(
      f"document.querySelector({json.dumps(selector)}).innerText"
    )

  async def click(self, selector: str) -> None:
    """Clicks the middle of an element, with the mouse."""
    x, y = await self.evaluate(
      f"""(() => {{
        const element = document.querySelector({json.dumps(selector)});
        element.scrollIntoView({{ block: "nearest" }});
        const r = element.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2];
      }})()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
      await self.call(
        "Input.dispatchMouseEvent",
        type=kind,
        x=x,
        y=y,
        button="left",
        clickCount=1,
      )

  async def write(self, text: str) -> None:
    """Types into what has the focus."""
    await self.call("Input.insertText", text=text)

  async def press(self, key: str, *, shift: bool = False) -> None:
    """Presses a key."""
    text, code = _KEYS[key]
    common = {
      "key": key,
      "code": key,
      "windowsVirtualKeyCode": code,
      "modifiers": 8 if shift else 0,
    }
    await self.call(
      "Input.dispatchKeyEvent", type="keyDown", text=text, **common
    )
    await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

  async def fill(self, selector: str, text: str) -> None:
    """Writes into a field, instead of what is there."""
    await self.evaluate(
      f"document.querySelector({json.dumps(selector)}).select()"
    )
    await self.write(text)
    await self.evaluate(
      f"document.querySelector({json.dumps(selector)})"
      ".dispatchEvent(new Event('change', {bubbles: true}))"
    )

  async def screenshot(self, name: str) -> None:
    """Keeps a picture among the outputs of the test, if there is a place."""
    folder = os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR")
    if folder:
      result = await self.call("Page.captureScreenshot", format="png")
      picture = base64.b64decode(result["data"])
      pathlib.Path(folder, f"{name}.png").write_bytes(picture)
