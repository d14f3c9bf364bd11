// The page: a conversation, how it is sampled, and what the server does.

import { render } from "./markdown.js";
import { ApiError, get, post } from "./stream.js";

const SECONDS_BETWEEN_LOOKS = 2;
const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "seed",
  "presence_penalty",
  "frequency_penalty",
  "repetition_penalty",
];
const STORED = "settings";
// Where neither the user nor the model says anything. The API's own temperature
// of 1 is for those who measure; few small models can be read at it.
const TEMPERATURE = 0.7;
// What is used then, by field.
const USUAL = {
  temperature: TEMPERATURE,
  top_p: 1,
  top_k: "all",
  min_p: 0,
  repetition_penalty: 1,
};

const element = (id) => document.getElementById(id);

// What is said so far, as the API takes it.
let messages = [];
// What the server said of itself last, and when.
let server = null;
let seen = null;
// Ends the answer that is being written.
let aborter = null;

function settings() {
  return new FormData(element("settings"));
}

function key() {
  return element("key").value.trim();
}

// Whether the prompt is a message; without a template there are none.
function isChat() {
  return element("mode").value === "chat";
}

// ---- The server --------------------------------------------------------------

async function look() {
  if (document.visibilityState === "hidden") {
    return;
  }
  try {
    show(await get("stats", key()));
  } catch (error) {
    server = null;
    seen = null;
    const isKey = error instanceof ApiError && error.status === 401;
    element("phase").textContent = isKey ? "needs an API key" : "not reachable";
  }
}

function show(stats) {
  const now = performance.now() / 1000;
  if (!server && stats.model && !stats.has_chat) {
    element("mode").value = "completion";
  }
  element("mode").options[0].disabled = Boolean(stats.model) && !stats.has_chat;
  showMode();
  setText("phase", stats.phase);
  if (stats.model) {
    setText("model", stats.model);
    document.title = stats.model;
    setText("running", stats.running);
    setText("waiting", stats.waiting);
    setText("cache", `${Math.round(100 * stats.cache_usage)} %`);
    if (seen && stats.generated_tokens >= seen.tokens) {
      const rate = (stats.generated_tokens - seen.tokens) / (now - seen.at);
      setText("rate", rate.toFixed(rate < 10 ? 1 : 0));
    }
    seen = { at: now, tokens: stats.generated_tokens };
  }
  server = stats;
  showUse();
}

// What is used of a field that is left empty.
function usual(name) {
  const own = server?.defaults?.[name];
  if (own !== undefined) {
    return own;
  }
  if (name === "max_tokens") {
    return isChat() ? "all there is room for" : 16;
  }
  return USUAL[name];
}

// Says how texts are sampled, in the fields and beside their heading.
function showUse() {
  const inUse = [];
  for (const name of [...Object.keys(USUAL), "max_tokens"]) {
    const isOwn = server?.defaults?.[name] !== undefined;
    element(name).placeholder = isOwn
      ? `${usual(name)}, the model's own`
      : usual(name);
    const given = element(name).value.trim();
    if (name === "temperature" || given || isOwn) {
      inUse.push(`${name} ${given || usual(name)}`);
    }
  }
  setText("in_use", inUse.join(" · "));
}

// What has not changed is left alone: it would be read aloud again.
function setText(id, text) {
  if (element(id).textContent !== String(text)) {
    element(id).textContent = text;
  }
}

function showMode() {
  const name = isChat() ? "Message" : "Text to continue";
  element("prompt").placeholder = name;
  element("composer").querySelector("label").textContent = name;
  element("system").disabled = !isChat();
  showUse();
}

// ---- An answer ---------------------------------------------------------------

function sampling() {
  const chosen = {};
  if (server.defaults?.temperature === undefined) {
    chosen.temperature = TEMPERATURE;
  }
  const given = settings();
  for (const name of NUMBERS) {
    const value = String(given.get(name) ?? "").trim();
    if (value) {
      chosen[name] = Number(value);
    }
  }
  return chosen;
}

function body() {
  const common = {
    model: server.model,
    stream: true,
    stream_options: { include_usage: true },
    ...sampling(),
  };
  if (!isChat()) {
    return { ...common, prompt: messages.at(-1).content };
  }
  const system = String(settings().get("system") ?? "");
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return { ...common, messages: [...first, ...messages] };
}

function addArticle(role, title) {
  const article = document.createElement("article");
  article.className = role;
  const heading = document.createElement("h2");
  heading.textContent = title;
  const text = document.createElement("div");
  text.className = "text";
  article.append(heading, text);
  element("log").append(article);
  return article;
}

// An answer on the page, which grows.
class Answer {
  #article;
  #drawing = 0;
  #prompt;
  content = "";
  thoughts = "";

  constructor(prompt) {
    const isCompletion = prompt !== null;
    this.#prompt = prompt;
    this.#article = addArticle(
      isCompletion ? "completion" : "assistant",
      isCompletion ? "Completion" : server.model,
    );
    this.#article.setAttribute("aria-busy", "true");
    this.#draw();
  }

  add({ content = "", thoughts = "" }) {
    this.content += content;
    this.thoughts += thoughts;
    // Once for all that comes between two pictures of the screen.
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  end(note) {
    cancelAnimationFrame(this.#drawing);
    this.#draw();
    this.#article.setAttribute("aria-busy", "false");
    const line = document.createElement("p");
    line.className = "note";
    line.textContent = note;
    this.#article.append(line);
    scroll(true);
  }

  remove() {
    cancelAnimationFrame(this.#drawing);
    this.#article.remove();
  }

  #draw() {
    this.#drawing = 0;
    const isAtEnd = atEnd();
    if (this.thoughts) {
      this.#drawThoughts();
    }
    const text = this.#article.querySelector(".text");
    if (this.#prompt === null) {
      text.replaceChildren(render(this.content));
    } else {
      const prompt = document.createElement("span");
      prompt.className = "prompt";
      prompt.textContent = this.#prompt;
      text.replaceChildren(prompt, this.content);
    }
    scroll(isAtEnd);
  }

  #drawThoughts() {
    let details = this.#article.querySelector("details");
    if (!details) {
      details = document.createElement("details");
      details.className = "thoughts";
      const summary = document.createElement("summary");
      summary.textContent = "Thoughts";
      details.append(summary, document.createElement("div"));
      this.#article.querySelector("h2").after(details);
    }
    details.lastChild.textContent = this.thoughts;
  }
}

function atEnd() {
  const log = element("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}

function scroll(isWanted) {
  if (isWanted) {
    element("log").scrollTop = element("log").scrollHeight;
  }
}

// Asks for what follows `messages`.
async function ask() {
  const wasChat = isChat();
  const answer = new Answer(wasChat ? null : messages.at(-1).content);
  const start = performance.now();
  const own = new AbortController();
  aborter = own;
  setBusy(true);
  let first = null;
  let usage = null;
  let finish = null;
  let problem = null;
  try {
    const path = wasChat ? "v1/chat/completions" : "v1/completions";
    for await (const event of post(path, body(), key(), own.signal)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) {
        continue;
      }
      const content = (wasChat ? choice.delta.content : choice.text) ?? "";
      const thoughts = (wasChat && choice.delta.reasoning_content) || "";
      if (first === null && (content || thoughts)) {
        first = (performance.now() - start) / 1000;
        setText("first", `${first.toFixed(2)} s`);
      }
      answer.add({ content, thoughts });
      finish = choice.finish_reason ?? finish;
    }
  } catch (error) {
    if (own.signal.aborted) {
      finish = "stopped";
    } else {
      problem = error;
    }
  }
  if (aborter !== own) {
    return; // A new conversation has begun meanwhile.
  }
  aborter = null;
  const seconds = (performance.now() - start) / 1000;
  if (!answer.content && !answer.thoughts && finish !== "stop" && !usage) {
    answer.remove();
    takeBack();
  } else {
    messages.push({ role: "assistant", content: answer.content });
    answer.end(describe({ finish, usage, first, seconds, problem }));
    setText("announcement", `Answer: ${answer.content}`);
  }
  setProblem(problem ? problem.message : "");
  setBusy(false);
  if (problem?.status === 401) {
    element("panel").open = true;
    element("key").focus();
  } else {
    element("prompt").focus();
  }
}

// What could not be asked goes back to where it was written.
function takeBack() {
  const last = messages.pop();
  element("log").querySelector("article.user:last-of-type")?.remove();
  if (!element("prompt").value) {
    element("prompt").value = last.content;
  }
}

function describe({ finish, usage, first, seconds, problem }) {
  const parts = [];
  if (usage) {
    parts.push(`${usage.completion_tokens} tokens`);
    if (first !== null && usage.completion_tokens > 1) {
      const rate = (usage.completion_tokens - 1) / (seconds - first);
      parts.push(`${rate.toFixed(1)} tokens/s`);
    }
  }
  if (first !== null) {
    parts.push(`first after ${first.toFixed(2)} s`);
  }
  parts.push(`${seconds.toFixed(1)} s in all`);
  if (finish === "length") {
    parts.push("ended by the limit of tokens");
  } else if (finish === "stopped") {
    parts.push("stopped");
  } else if (problem) {
    parts.push("broken off");
  }
  return parts.join(" · ");
}

function setBusy(isBusy) {
  element("send").disabled = isBusy;
  element("stop").disabled = !isBusy;
  element("again").disabled = isBusy || messages.length < 2;
}

function setProblem(text) {
  element("problem").textContent = text;
  element("problem").hidden = !text;
}

// ---- What people do ----------------------------------------------------------

function send() {
  const text = element("prompt").value;
  if (aborter || !text.trim()) {
    return;
  }
  if (!server?.model) {
    setProblem(`The server is not ready: ${element("phase").textContent}.`);
    return;
  }
  if (!element("settings").checkValidity()) {
    element("panel").open = true;
    element("settings").reportValidity();
    return;
  }
  setProblem("");
  if (isChat()) {
    const article = addArticle("user", "You");
    article.querySelector(".text").textContent = text;
    messages.push({ role: "user", content: text });
  } else {
    messages = [{ role: "user", content: text }];
  }
  element("prompt").value = "";
  scroll(true);
  ask();
}

function stop() {
  aborter?.abort();
}

function again() {
  if (aborter || messages.length < 2 || !server?.model) {
    return;
  }
  messages.pop();
  element("log").lastElementChild.remove();
  ask();
}

function clear() {
  stop();
  aborter = null;
  messages = [];
  element("log").replaceChildren();
  setProblem("");
  setBusy(false);
  element("prompt").focus();
}

// Settings last as long as the tab: a key must not outlive it.
function store() {
  try {
    const values = Object.fromEntries(settings());
    sessionStorage.setItem(STORED, JSON.stringify(values));
  } catch {
    // Storage is forbidden: they last as long as the page.
  }
}

function restore() {
  let values = {};
  try {
    values = JSON.parse(sessionStorage.getItem(STORED)) ?? {};
  } catch {
    return;
  }
  for (const [name, value] of Object.entries(values)) {
    const field = element("settings").elements.namedItem(name);
    if (field) {
      field.value = value;
    }
  }
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("prompt").addEventListener("keydown", (event) => {
  // Enter may also end the writing of a character.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
  }
});
element("stop").addEventListener("click", stop);
element("again").addEventListener("click", again);
element("clear").addEventListener("click", clear);
element("settings").addEventListener("submit", (event) =>
  event.preventDefault(),
);
element("settings").addEventListener("input", () => {
  store();
  showUse();
});
element("key").addEventListener("change", look);
element("mode").addEventListener("change", () => {
  clear();
  showMode();
});
document.addEventListener("visibilitychange", look);

restore();
showMode();
look();
setInterval(look, 1000 * SECONDS_BETWEEN_LOOKS);
