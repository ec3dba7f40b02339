// The conversation: `turns` is the truth, and what is seen is drawn from it.
const at = (id) => document.getElementById(id);
const SAMPLING = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const KEPT = "mypt-conversation", THEME = "mypt-theme";
let turns = []; // {said, answers: [{model, text, note, facts, leftOut, failed}]}
let going = null; // stops what is being written

const options = (id) => [...(at(id)?.options ?? [])];
const chosen = () => [...new Set([at("first").value, at("second")?.value])].filter(Boolean);
const note = (text) => { at("note").textContent = text; };

// What a model reads of a turn: its own answer, or that of another where it did not answer.
function heard(turn, model) {
  const whole = turn.answers.filter((answer) => !answer.failed);
  return whole.find((answer) => answer.model === model) ?? whole[0];
}

function messages(model, before, said) {
  const system = at("system").value.trim();
  const read = system ? [{ role: "system", content: system }] : [];
  for (const turn of before) {
    read.push({ role: "user", content: turn.said });
    read.push({ role: "assistant", content: heard(turn, model)?.text ?? "" });
  }
  return said === undefined ? read : [...read, { role: "user", content: said }];
}

function request(model, before, said) {
  const body = { model, messages: messages(model, before, said), stream: true };
  body.stream_options = { include_usage: true };
  for (const id of SAMPLING) if (at(id).value !== "") body[id] = at(id).valueAsNumber;
  const headers = { "content-type": "application/json" };
  if (at("key")) headers.authorization = `Bearer ${at("key").value}`;
  const signal = going.signal;
  return fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
}

// Server-sent events: each is "data: " and JSON, an empty line ends it.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function write(answer, before, said, changed) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  let first = 0, tokens = 0;
  try {
    const response = await request(answer.model, before, said);
    if (!response.ok) throw new Error((await response.json()).error.message);
    answer.leftOut = Number(response.headers.get("x-mypt-turns-left-out"));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      tokens = event.usage?.completion_tokens ?? tokens;
      const [choice] = event.choices;
      if (choice?.finish_reason === "length") answer.note = "Cut off: no room for more.";
      if (!choice?.delta.content) continue;
      first ||= seconds();
      answer.text += choice.delta.content;
      changed();
    }
  } catch (error) {
    answer.note = error.name === "AbortError" ? "Stopped." : error.message;
    answer.failed = !answer.text;
  }
  const facts = tokens ? [`${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`] : [];
  if (first) facts.push(`first after ${first.toFixed(2)} s`);
  if (tokens > 1) facts.push(`${((tokens - 1) / Math.max(seconds() - first, 0.001)).toFixed(1)} tokens/s`);
  answer.facts = facts.join(" · ");
}

function act(name, label, work) {
  const button = element("button", name);
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", () => work(button));
  return button;
}

async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  } catch {
    note("This browser lets a page copy only over https, or from this machine.");
  }
}

function article(kind, label, ...inside) {
  const made = element("article", ...inside);
  made.className = kind;
  made.setAttribute("aria-label", label);
  return made;
}

function classed(tag, name, ...inside) {
  const made = element(tag, ...inside);
  made.className = name;
  return made;
}

function drawAnswer(answer, turn) {
  const place = classed("div", "text"), show = growing(place), under = classed("div", "acts");
  const made = article("answer", answer.model, classed("p", "name", answer.model), place, under);
  const earlier = turns.slice(0, turns.indexOf(turn)).flatMap((one) => one.answers);
  const told = earlier.some((one) => one.model === answer.model && one.leftOut);
  return { made, update(whole) {
    show(answer.text, whole);
    made.setAttribute("aria-busy", String(!whole));
    if (!whole) return;
    if (answer.leftOut && !told) {
      const left = `The context is full: the model no longer reads the oldest turns (${answer.leftOut} so far).`;
      made.prepend(classed("p", "aside", left));
    }
    under.replaceChildren(classed("em", "", answer.note || ""), classed("span", "facts", answer.facts || ""),
      act("Copy", `Copy the answer of ${answer.model}`, (button) => copy(answer.text, button)));
    if (turn === turns.at(-1)) under.append(act("Again", "Answer again", () => send(turn.said, turns.length - 1)));
  } };
}

function drawTurn(turn) {
  const acts = classed("div", "acts",
    act("Edit", "Edit this question", () => edit(turn, asked)),
    act("Copy", "Copy this question", (button) => copy(turn.said, button)));
  const asked = article("ask", "You", classed("div", "text", visible(turn.said)), acts);
  const answers = turn.answers.map((answer) => drawAnswer(answer, turn));
  const beside = classed("div", "answers", ...answers.map((answer) => answer.made));
  at("talk").append(classed("section", "exchange", asked, beside));
  return answers;
}

function draw() {
  at("talk").replaceChildren();
  for (const turn of turns) for (const drawn of drawTurn(turn)) drawn.update(true);
  document.body.classList.toggle("pair", chosen().length > 1 || turns.some((turn) => turn.answers.length > 1));
  at("which").replaceChildren(...chosen().map((name) => {
    const { step, digest } = options("first").find((option) => option.value === name).dataset;
    const named = chosen().length > 1 ? `${name} ` : "";
    const said = [element("b", `${named}answers from step`), ` ${step} `, element("b", "checkpoint")];
    return element("span", ...said, ` ${digest}`);
  }));
}

function edit(turn, asked) {
  if (going) return;
  const box = element("textarea");
  box.value = turn.said;
  box.setAttribute("aria-label", "Your question, edited");
  const resend = () => box.value.trim() && send(box.value.trim(), turns.indexOf(turn));
  box.addEventListener("keydown", (event) => {
    if (entered(event)) resend();
    if (event.key === "Escape") draw();
  });
  const buttons = [act("Send", "Send the edited question", resend), act("Cancel", "Cancel", draw)];
  asked.replaceChildren(box, classed("div", "acts", ...buttons));
  box.focus();
}

function busy(on) {
  for (const id of ["send", "new", "save", "first", "second"]) if (at(id)) at(id).disabled = on;
  at("stop").disabled = !on;
  document.body.classList.toggle("busy", on);
}

// Keeps the end in sight for whoever looks at it, and for nobody else.
function following(work) {
  const all = document.documentElement;
  const there = innerHeight + scrollY > all.scrollHeight - 120;
  work();
  if (there) scrollTo(0, all.scrollHeight);
}

// A drawing that took long is made less often, so that the page stays quick.
function nowAndThen(work) {
  let waits = null, took = 0;
  return () => {
    waits ??= setTimeout(() => {
      const began = performance.now();
      waits = null;
      following(work);
      took = performance.now() - began;
    }, Math.max(16, 4 * took));
  };
}

async function send(said, place = turns.length) {
  if (!said || going) return;
  going = new AbortController();
  busy(true);
  note("");
  const earlier = turns, before = turns.slice(0, place);
  const turn = { said, answers: chosen().map((model) => ({ model, text: "" })) };
  turns = before;
  draw();
  turns = [...before, turn];
  const drawn = drawTurn(turn);
  scrollTo(0, document.documentElement.scrollHeight);
  await Promise.all(turn.answers.map((answer, n) => {
    drawn[n].update(false);
    return write(answer, before, said, nowAndThen(() => going && drawn[n].update(false)));
  }));
  going = null;
  busy(false);
  if (turn.answers.every((answer) => answer.failed)) { // nothing came: as if it had not been asked
    turns = earlier;
    note(turn.answers[0].note);
    at("said").value ||= place === earlier.length ? said : "";
  }
  following(draw);
  keep();
  if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) at("said").focus();
}

function keep() {
  const values = Object.fromEntries([...SAMPLING, "system"].map((id) => [id, at(id).value]));
  const models = [at("first").value, at("second")?.value ?? ""];
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ turns, values, models }));
  } catch {
    note("The conversation is too long to be kept over a reload; Save keeps it.");
  }
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT));
  if (at("second")) at("second").selectedIndex = 2; // the second model, beside the first
  if (kept) {
    for (const answer of kept.turns.flatMap((turn) => turn.answers)) {
      if (answer.facts === undefined) Object.assign(answer, { note: "Stopped.", failed: !answer.text });
    }
    turns = kept.turns.filter((turn) => !turn.answers.every((answer) => answer.failed));
    for (const [id, value] of Object.entries(kept.values)) at(id).value = value;
    ["first", "second"].forEach((id, n) => {
      if (options(id).some((option) => option.value === kept.models[n])) at(id).value = kept.models[n];
    });
  }
  draw();
}

function save() {
  if (!turns.length) return note("Nothing was said yet; there is nothing to save.");
  const rows = chosen().map((model) => JSON.stringify({ messages: messages(model, turns) }));
  const made = element("a");
  made.href = URL.createObjectURL(new Blob([`${rows.join("\n")}\n`], { type: "application/jsonl" }));
  made.download = "conversation.jsonl";
  made.click();
  setTimeout(() => URL.revokeObjectURL(made.href), 10_000);
}

function theme(dark) {
  document.documentElement.style.colorScheme = dark === null ? "" : dark ? "dark" : "light";
  at("dark").setAttribute("aria-pressed", String(dark ?? preferred.matches));
}
const preferred = matchMedia("(prefers-color-scheme: dark)");
const wanted = () => ({ dark: true, light: false })[localStorage.getItem(THEME)] ?? null;
preferred.addEventListener("change", () => theme(wanted()));
at("dark").addEventListener("click", () => {
  localStorage.setItem(THEME, at("dark").ariaPressed === "true" ? "light" : "dark");
  theme(wanted());
});

const entered = (event) => {
  const found = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (found) event.preventDefault();
  return found;
};
function sendSaid() {
  const text = at("said").value.trim();
  if (!text || going) return;
  at("said").value = "";
  send(text);
}
at("form").addEventListener("submit", (event) => { event.preventDefault(); sendSaid(); });
at("said").addEventListener("keydown", (event) => { if (entered(event)) sendSaid(); });
at("stop").addEventListener("click", () => going?.abort());
addEventListener("keydown", (event) => { if (event.key === "Escape") going?.abort(); });
at("new").addEventListener("click", () => { turns = []; note(""); draw(); keep(); });
at("save").addEventListener("click", save);
at("talk").addEventListener("click", ({ target }) => {
  if (target.className === "copy") copy(target.closest(".code").querySelector("code").textContent, target);
});
for (const id of ["first", "second", "settings"]) at(id)?.addEventListener("change", () => { draw(); keep(); });
addEventListener("pagehide", keep);
theme(wanted());
restore();
