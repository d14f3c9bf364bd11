// The API as this page uses it.

// What the server refused, or broke off.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Returns the JSON of a GET.
export async function get(path, key) {
  const response = await fetch(path, { headers: headers(key) });
  if (!response.ok) {
    throw await toError(response);
  }
  return response.json();
}

// Yields the JSON of each event of a streamed answer.
export async function* post(path, body, key, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    throw await toError(response);
  }
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      return;
    }
    const event = JSON.parse(data);
    if (event.error) {
      throw new ApiError(event.error.message, 0);
    }
    yield event;
  }
  throw new ApiError("The answer broke off.", 0);
}

// Yields the data of server-sent events, whatever pieces they arrive in.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        return;
      }
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((l) => l.startsWith("data:"));
        if (lines.length) {
          yield lines.map((l) => l.slice(5).replace(/^ /, "")).join("\n");
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function toError(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not one of its own errors.
  }
  const wait = response.headers.get("Retry-After");
  if (wait) {
    message += ` Try again in ${wait} s.`;
  }
  return new ApiError(message, response.status);
}
