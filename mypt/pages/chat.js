"use strict";
const at = (id) => document.getElementById(id);
const history = [];
let going = null;
let told = false; // that the oldest turns have left what the model reads: once a conversation

function show(role) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  at("talk").append(turn);
  return turn;
}

function tell(leftOut, turn) {
  if (!leftOut || told) return;
  told = true;
  const aside = document.createElement("p");
  aside.className = "aside";
  aside.textContent = `The context is full: the model no longer reads the oldest turns (${leftOut} so far).`;
  turn.before(aside);
}

function busy(on) {
  at("send").disabled = on;
  at("new").disabled = on;
  at("stop").disabled = !on;
}

function request(messages) {
  const longest = at("longest").valueAsNumber;
  const body = { model: document.body.dataset.model, messages, stream: true };
  body.temperature = Number(at("temperature").value) || 0;
  if (longest) body.max_tokens = longest;
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

async function answer(turn) {
  const system = at("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...history] : history;
  const response = await request(messages);
  if (!response.ok) throw new Error((await response.json()).error.message);
  tell(Number(response.headers.get("x-mypt-turns-left-out")), turn);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice.delta.content) turn.textContent += choice.delta.content;
    if (choice.finish_reason === "length") at("note").textContent = "Cut off: no room for more.";
    turn.scrollIntoView({ block: "end" });
  }
}

async function send() {
  const text = at("said").value.trim();
  if (!text || going) return;
  going = new AbortController();
  busy(true);
  at("note").textContent = "";
  at("said").value = "";
  const asked = show("user");
  asked.textContent = text;
  history.push({ role: "user", content: text });
  const turn = show("assistant");
  try {
    await answer(turn);
  } catch (error) {
    at("note").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
  if (turn.textContent) {
    history.push({ role: "assistant", content: turn.textContent });
  } else if (at("note").textContent) { // nothing came: as if it had not been asked
    history.pop();
    asked.remove();
    turn.remove();
    at("said").value = text;
  } else {
    history.push({ role: "assistant", content: "" });
  }
  going = null;
  busy(false);
  at("said").focus();
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
at("stop").addEventListener("click", () => going && going.abort());
at("new").addEventListener("click", () => {
  history.length = 0;
  told = false;
  at("talk").replaceChildren();
  at("note").textContent = "";
});
