// A little of Markdown as nodes of a document. What a model says becomes text
// nodes and nothing else: no markup of its own, no links, no images.

// Returns a fragment for the text, finished or not.
export function render(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  for (let at = 0; at < lines.length; ) {
    at = addBlock(fragment, lines, at);
  }
  return fragment;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)/;
const HEADING = /^(#{1,6})[ \t]+(.*)$/;
const BULLET = /^[ \t]*[-*+][ \t]+(.*)$/;
const NUMBER = /^[ \t]*(\d{1,9})[.)][ \t]+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;

// Adds the block that begins at a line; returns the line behind it.
function addBlock(parent, lines, at) {
  const line = lines[at];
  if (!line.trim()) {
    return at + 1;
  }
  const fence = FENCE.exec(line);
  if (fence) {
    return addCode(parent, lines, at + 1, fence);
  }
  const heading = HEADING.exec(line);
  if (heading) {
    // The page has h1, a message h2.
    const level = Math.min(6, heading[1].length + 2);
    add(parent, `h${level}`, heading[2]);
    return at + 1;
  }
  if (RULE.test(line)) {
    parent.append(document.createElement("hr"));
    return at + 1;
  }
  if (QUOTE.test(line)) {
    return addLines(parent, "blockquote", lines, at, (next) => {
      const match = QUOTE.exec(next);
      return match ? match[1] : null;
    });
  }
  if (BULLET.test(line)) {
    return addList(parent, "ul", lines, at, BULLET);
  }
  if (NUMBER.test(line)) {
    return addList(parent, "ol", lines, at, NUMBER);
  }
  return addLines(parent, "p", lines, at, (next, index) =>
    index === at || (next.trim() && !beginsBlock(next)) ? next : null,
  );
}

function beginsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, BULLET, NUMBER].some((kind) =>
    kind.test(line),
  );
}

function addCode(parent, lines, at, fence) {
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  let end = at;
  const isClosing = (line) =>
    line.trim().startsWith(fence[1]) && !line.trim().slice(3).trim("`~");
  while (end < lines.length && !isClosing(lines[end])) {
    end += 1;
  }
  code.textContent = lines.slice(at, end).join("\n");
  if (fence[2]) {
    pre.title = fence[2];
  }
  pre.append(code);
  parent.append(pre);
  return end + 1;
}

// Adds one element of all lines that `take` gives the content of.
function addLines(parent, name, lines, at, take) {
  const content = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const taken = take(lines[end], end);
    if (taken === null) {
      break;
    }
    content.push(taken);
  }
  add(parent, name, content.join("\n"));
  return end;
}

function addList(parent, name, lines, at, kind) {
  const list = document.createElement(name);
  if (name === "ol") {
    list.start = Number(kind.exec(lines[at])[1]);
  }
  let end = at;
  while (end < lines.length) {
    const match = kind.exec(lines[end]);
    if (!match || RULE.test(lines[end])) {
      break;
    }
    const content = [match[match.length - 1]];
    end += 1;
    // Lines that are indented go on with the item.
    while (end < lines.length && /^[ \t]+\S/.test(lines[end])) {
      if (BULLET.test(lines[end]) || NUMBER.test(lines[end])) {
        break;
      }
      content.push(lines[end].trim());
      end += 1;
    }
    add(list, "li", content.join("\n"));
    if (end + 1 < lines.length && !lines[end].trim()) {
      end += kind.test(lines[end + 1]) ? 1 : 0;
    }
  }
  parent.append(list);
  return end;
}

function add(parent, name, text) {
  const element = document.createElement(name);
  addInline(element, text);
  parent.append(element);
}

const MARKS = [
  ["`", "code"],
  ["**", "strong"],
  ["*", "em"],
];

// Adds text in which `code`, **strong** and *emphasis* are marked.
function addInline(parent, text) {
  let plain = 0;
  for (let at = 0; at < text.length; ) {
    const found = findMarked(text, at);
    if (!found) {
      at += 1;
      continue;
    }
    parent.append(text.slice(plain, at));
    const element = document.createElement(found.name);
    if (found.name === "code") {
      element.textContent = found.content;
    } else {
      addInline(element, found.content);
    }
    parent.append(element);
    at = found.end;
    plain = at;
  }
  parent.append(text.slice(plain));
}

// What is marked from `at` on, if something is.
function findMarked(text, at) {
  for (const [mark, name] of MARKS) {
    if (!text.startsWith(mark, at)) {
      continue;
    }
    const from = at + mark.length;
    const to = text.indexOf(mark, from);
    const content = to < 0 ? "" : text.slice(from, to);
    // 2 * 3 * 4 is no emphasis.
    const isTight = name === "code" || content.trim() === content;
    if (content && isTight) {
      return { name, content, end: to + mark.length };
    }
    return null;
  }
  return null;
}
