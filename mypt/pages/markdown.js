"use strict";
// Markdown as DOM nodes. What a model writes becomes text, only the elements named here exist, and
// a link only where its address is http or https. Each pattern is linear, whatever it is given.

const DEEPEST = 8; // lists in quotes in lists: what lies deeper stays as it was typed

// As mypt.text.visible: what has an effect and is not seen (bidirectional overrides) is spelt out.
const HIDDEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
function spelt(char) {
  const code = char.codePointAt(0);
  const [letter, width] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return `\\${letter}${code.toString(16).padStart(width, "0")}`;
}
const visible = (text) => text.replace(/\r\n/g, "\n").replace(HIDDEN, spelt);

function element(tag, ...inside) {
  const made = document.createElement(tag);
  made.append(...inside);
  return made;
}

// However many there are: as arguments, a hundred thousand would be too many.
function together(parts) {
  const made = document.createDocumentFragment();
  for (const part of parts) made.append(part);
  return made;
}

function link(address, said) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  const made = element("a", said);
  made.href = made.title = new URL(address).href; // which shows what a look-alike host is
  made.rel = "noopener noreferrer";
  made.target = "_blank";
  return made;
}

const INLINE = /\\[!-/:-@[-`{-~]|`+|\*\*|__|[*_]|~~|!?\[|https?:\/\/[^\s<>"`]+/gi;
const LINK = /!?\[((?:[^[\]\\\n]|\\.)*)\]\(([^\s()<>]+(?:\([^\s()<>]*\)[^\s()<>]*)*)\)/y;
const MARKS = {
  "**": ["strong", /(?<=\S)\*\*(?!\*)/g], "__": ["strong", /(?<=\S)__(?!\w)/g],
  "*": ["em", /(?<=[^\s*])\*(?!\*)/g], "_": ["em", /(?<=[^\s_])_(?!\w)/g],
  "~~": ["del", /(?<=\S)~~/g],
};

function inline(text, depth = 0) {
  const made = [], endless = new Set(); // marks that nothing further on closes
  const tokens = new RegExp(INLINE);
  let at = 0;
  for (let found; (found = tokens.exec(text));) {
    const [node, end] = inlineAt(text, found[0], found.index, depth, endless) ?? [null, 0];
    if (!node) continue;
    made.push(text.slice(at, found.index), node);
    at = tokens.lastIndex = end;
  }
  made.push(text.slice(at));
  return together(made.filter(Boolean));
}

function inlineAt(text, token, at, depth, endless) {
  const start = at + token.length;
  if (token[0] === "\\") return [token[1], start];
  if (token[0] === "`") {
    const stop = endless.has(token) ? -1 : endOfCode(text, token, start);
    if (stop < 0) return void endless.add(token);
    return [element("code", text.slice(start, stop)), stop + token.length];
  }
  if (token.endsWith("[")) {
    LINK.lastIndex = at;
    const found = LINK.exec(text);
    const node = found && link(found[2], found[1]);
    return node && [node, LINK.lastIndex];
  }
  if (!(token in MARKS)) {
    let stop = start;
    while (".,;:!?)]}'*_~".includes(text[stop - 1])) stop -= 1;
    const node = link(text.slice(at, stop), text.slice(at, stop));
    return node && [node, stop];
  }
  const [tag, close] = MARKS[token];
  const inWord = token[0] === "_" && /\w/.test(text[at - 1] ?? "");
  if (inWord || depth > DEEPEST || endless.has(token) || !/\S/.test(text[start] ?? "")) return null;
  close.lastIndex = start + 1;
  const found = close.exec(text);
  if (!found) return void endless.add(token);
  const inside = inline(text.slice(start, found.index), depth + 1);
  return [element(tag, inside), found.index + token.length];
}

function endOfCode(text, run, start) {
  for (let at = start; (at = text.indexOf(run, at)) >= 0;) {
    let end = at + run.length;
    while (text[end] === "`") end += 1;
    if (end - at === run.length) return at;
    at = end;
  }
  return -1;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`~]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)(.*)$/;
const indent = (line) => line.search(/\S/);
const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
const isTable = (lines, at) =>
  lines[at].includes("|") && (lines[at + 1] ?? "").includes("-") &&
  cells(lines[at + 1]).every((cell) => /^:?-+:?$/.test(cell)) &&
  cells(lines[at]).length === cells(lines[at + 1]).length;

// Each returns a node and the line behind it, or nothing.
const BLOCKS = [
  function fence(lines, at) {
    const found = FENCE.exec(lines[at]);
    if (!found) return null;
    const closes = (line) => line.trim().startsWith(found[1]) && !line.trim().replaceAll(found[1][0], "");
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end += 1;
    const button = element("button", "Copy");
    button.type = "button";
    button.className = "copy";
    button.setAttribute("aria-label", "Copy this code");
    const code = element("pre", element("code", lines.slice(at + 1, end).join("\n")));
    code.tabIndex = 0; // so that keys scroll it
    const made = element("div", element("div", element("span", found[2].trim()), button), code);
    made.className = "code";
    return [made, end + 1];
  },
  function heading(lines, at) {
    const found = HEADING.exec(lines[at]);
    return found && [element(`h${Math.min(6, found[1].length + 2)}`, inline(found[2])), at + 1];
  },
  (lines, at) => (RULE.test(lines[at]) ? [element("hr"), at + 1] : null),
  function quote(lines, at, depth) {
    if (depth > DEEPEST || !QUOTE.test(lines[at])) return null;
    const inside = [];
    for (let found; at < lines.length && (found = QUOTE.exec(lines[at])); at += 1) inside.push(found[1]);
    return [element("blockquote", nodes(inside, depth + 1)), at];
  },
  function list(lines, at, depth) {
    const first = ITEM.exec(lines[at]);
    if (!first || depth > DEEPEST) return null;
    const ordered = first[2].length > 1, deeper = first[1].length + 2;
    const made = element(ordered ? "ol" : "ul");
    if (ordered) made.start = parseInt(first[2], 10);
    for (let item; at < lines.length && (item = ITEM.exec(lines[at]));) {
      if (item[1].length >= deeper || item[2].length > 1 !== ordered || RULE.test(lines[at])) break;
      const inside = [item[3]], width = item[1].length + item[2].length + 1;
      for (at += 1; at < lines.length; at += 1) {
        const blank = !lines[at].trim();
        if (indent(blank ? lines[at + 1] ?? "" : lines[at]) < deeper) break;
        inside.push(lines[at].slice(Math.min(width, Math.max(0, indent(lines[at])))));
      }
      made.append(element("li", nodes(inside, depth + 1)));
      if (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
    }
    return made.childNodes.length ? [made, at] : null;
  },
  function table(lines, at) {
    if (!isTable(lines, at)) return null;
    const sides = cells(lines[at + 1]).map((cell) =>
      cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "");
    const row = (tag, line) => element("tr", together(cells(line).slice(0, sides.length).map((text, n) => {
      const cell = element(tag, inline(text));
      cell.style.textAlign = sides[n];
      return cell;
    })));
    const body = element("tbody");
    const head = element("thead", row("th", lines[at]));
    for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) body.append(row("td", lines[at]));
    const made = element("div", element("table", head, body));
    made.className = "table";
    made.tabIndex = 0;
    return [made, at];
  },
];

function blockAt(lines, at, depth) {
  for (const block of BLOCKS) {
    const found = block(lines, at, depth);
    if (found) return found;
  }
  let end = at + 1;
  const ends = (n) => !lines[n].trim() || isTable(lines, n) ||
    [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[n]));
  while (end < lines.length && !ends(end)) end += 1;
  return [element("p", inline(lines.slice(at, end).join("\n"))), end];
}

function* blocks(lines, at, depth = 0) {
  while (at < lines.length) {
    if (!lines[at].trim()) { at += 1; continue; }
    const [node, end] = blockAt(lines, at, depth);
    yield [node, at];
    at = end;
  }
}
const nodes = (lines, depth) => together([...blocks(lines, 0, depth)].map(([node]) => node));

// Returns what shows a text in a place, again as it grows: only what may still change is made anew.
function growing(place) {
  const starts = []; // the line at which each block begins; a block is a node
  return (text, whole) => {
    const lines = visible(text).split("\n");
    const kept = whole ? 0 : Math.max(0, starts.length - 2);
    const from = starts[kept] ?? 0;
    while (place.childNodes.length > kept) place.lastChild.remove();
    starts.length = kept;
    for (const [node, start] of blocks(lines, from)) {
      place.append(node);
      starts.push(start);
    }
  };
}
