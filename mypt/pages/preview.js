"use strict";
// Shows the rows that the page carries. Text only ever enters through textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("rows");
const more = document.getElementById("more");
const tip = document.getElementById("tip");
const AT_ONCE = 40;
let found = [];
let drawn = 0;
let pinned = false;  // an address that names a token scrolls there, which must not hide its facts

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function wanted() {
  return Object.fromEntries(new FormData(form));
}

function fits(row, want) {
  return (!want.split || row.split === want.split)
    && (!want.source || row.source === want.source)
    && (!want.finding || row.findings.includes(want.finding))
    && (!want.role || row.spans.some((span) => data.roles[span[1]] === want.role))
    && (!want.text || row.texts.join("").toLowerCase().includes(want.text.toLowerCase()));
}

function weightOf(row, index) {
  return row.weights.length ? row.weights[index] : Number(row.mask[index]);
}

function drawToken(row, index, kind) {
  const supervised = row.mask[index] === "1";
  const tag = kind === "header" || kind === "end";
  const weight = weightOf(row, index);
  const how = weight < 1 ? " yes light" : weight > 1 ? " yes heavy" : " yes";
  const token = make("span", "token" + (supervised ? how : "") + (tag ? " tag" : ""));
  token.dataset.token = index;
  const lines = row.texts[index].split("\n");
  lines.forEach((line, n) => {
    if (n) token.append(make("span", "faint", "\u21b5"), "\n");
    token.append(line);
  });
  if (row.texts[index] === "") token.append(make("span", "faint", "\u00b7"));
  return token;
}

function drawTurns(row, card, role) {
  let turn, text, message = null, start = 0;
  for (const [stop, spanRole, kind, spanMessage] of row.spans) {
    if (spanMessage !== message) {
      const name = data.roles[spanRole] || "";
      turn = make("section", "turn" + (name ? " role-" + name : "") + (role && name !== role ? " faded" : ""));
      text = make("p");
      turn.append(make("span", "", name), text);
      card.append(turn);
      message = spanMessage;
    }
    for (let index = start; index < stop; index++) text.append(drawToken(row, index, data.kinds[kind]));
    start = stop;
  }
}

function drawRow(row, number, want) {
  const card = make("article", "row");
  card.dataset.row = number;
  card.id = row.split + "-" + row.index;
  const head = make("header");
  head.append(make("b", "", row.split + " row " + row.index), make("span", "", row.source), make("span", "", row.where));
  for (const code of row.findings) head.append(make("span", "chip " + data.levels[code], code));
  const meter = make("span", "meter", row.count);
  if (row.density !== null) {
    const bar = make("i"), fill = make("i");
    fill.style.width = 100 * row.density + "%";
    bar.append(fill);
    meter.append(bar);
  }
  head.append(meter);
  card.append(head);
  drawTurns(row, card, want.role);
  if (row.rest) card.append(make("p", "rest", row.rest));
  list.append(card);
}

function drawMore() {
  const want = wanted();
  for (const number of found.slice(drawn, drawn + AT_ONCE)) drawRow(data.rows[number], number, want);
  drawn = Math.min(found.length, drawn + AT_ONCE);
  more.hidden = drawn === found.length;
}

function draw() {
  const want = wanted();
  found = data.rows.map((_, number) => number).filter((number) => fits(data.rows[number], want));
  list.replaceChildren();
  list.className = want.edges ? "edges" : "";
  drawn = 0;
  drawMore();
  document.getElementById("shown").textContent = found.length + " of " + data.rows.length + " rows";
}

function explain(row, index) {
  let start = 0;
  const span = row.spans.find((one) => index < one[0] || (start = one[0], false));
  const supervised = row.mask === "" ? "no mask" : row.mask[index] === "1" ? "yes, learned where the mask is used" + (row.weights.length ? ", weight " + weightOf(row, index) : "") : "no, context only";
  const facts = [["token", index + " of " + row.texts.length], ["id", row.ids[index]], ["bytes", data.bytes[row.ids[index]]],
    ["text", row.texts[index].replaceAll("\n", "\u21b5")], ["role", data.roles[span[1]] || "unknown"],
    ["kind", data.kinds[span[2]] || "unknown"], ["supervised", supervised], ["reason", data.reasons[span[4]]]];
  const terms = make("dl");
  for (const [name, value] of facts) {
    terms.append(make("dt", "", name), make("dd", name === "supervised" ? (row.mask[index] === "1" ? "learned" : "context") : "", String(value)));
  }
  return terms;
}

function showTip(token) {
  const row = data.rows[token.closest(".row").dataset.row];
  tip.replaceChildren(explain(row, Number(token.dataset.token)));
  tip.hidden = false;
  const place = token.getBoundingClientRect();
  const below = place.bottom + tip.offsetHeight + 12 < window.innerHeight;
  tip.style.left = Math.max(8, Math.min(place.left, window.innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (below ? place.bottom + 6 : Math.max(8, place.top - tip.offsetHeight - 6)) + "px";
}

// The address keeps what is chosen, so that a view can be sent to somebody: #source=x&row=train-3&token=7
function readAddress() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.type === "checkbox") field.checked = chosen.has(field.name);
    else field.value = chosen.get(field.name) || "";
  }
  draw();
  const name = chosen.get("row") || "";
  while (name && !document.getElementById(name) && drawn < found.length) drawMore();
  const card = document.getElementById(name);
  if (!card) return;
  card.scrollIntoView({block: "center"});
  const token = card.querySelector('[data-token="' + Number(chosen.get("token")) + '"]');
  if (token && chosen.has("token")) {
    token.classList.add("here");
    showTip(token);
    pinned = true;
  }
}

function writeAddress() {
  const chosen = Object.entries(wanted()).filter(([, value]) => value);
  history.replaceState(null, "", "#" + new URLSearchParams(chosen));
  draw();
}

form.addEventListener("input", writeAddress);
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", drawMore);
list.addEventListener("mouseover", (event) => {
  const token = event.target.closest(".token");
  pinned = false;
  if (token) showTip(token);
});
list.addEventListener("mouseleave", () => { tip.hidden = true; });
window.addEventListener("scroll", () => { tip.hidden ||= !pinned; }, {passive: true});
window.addEventListener("hashchange", readAddress);
document.querySelectorAll("[data-finding]").forEach((button) => button.addEventListener("click", () => {
  form.elements.finding.value = button.dataset.finding;
  writeAddress();
  form.scrollIntoView();
}));
readAddress();
