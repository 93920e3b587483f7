// The page of pipeline/browse.py: a list of which only the visible part exists, and one sample.
"use strict";

const at = (id) => document.getElementById(id);
const filters = at("filters");
const PART = 200;        // samples asked for at a time
const WIDTH = 210;       // least width of a card, pixels
const GAP = 10;
const CAPTION = 24;      // height of a card's text, pixels
const SPARE = 3;         // rows drawn above and below what is seen
const KEEP_MS = 150;     // after the last key before a filter is asked for

let about = null;        // what the server says of the set
let total = 0;
let parts = new Map();   // number of a part -> its samples, or null while it is on its way
let round = 0;           // answers to earlier filters are dropped
let chosen = 0;
let shown = null;        // the sample in the viewer
let saving = Promise.resolve();

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    say("The program does not answer; is it still running?");
    throw new Error("no answer");
  }
  const value = await answer.json().catch(() => ({ error: `The program failed (${answer.status}); its terminal says why.` }));
  say(answer.ok ? "" : value.error);
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function say(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function view(kind, id) {
  return `view/${kind}?${new URLSearchParams({ id, v: about.start })}`;
}

// The list

function query() {
  const values = new URLSearchParams();
  for (const [name, value] of new FormData(filters)) if (value && value !== "id") values.set(name, value);
  return values;
}

function refresh() {
  round += 1;
  parts = new Map();
  history.replaceState(null, "", `#${query()}`);
  chosen = 0;
  at("scroller").scrollTop = 0;
  return load(0);
}

async function load(part) {
  if (parts.has(part)) return;
  parts.set(part, null);
  const mine = round;
  const values = query();
  values.set("offset", part * PART);
  values.set("limit", PART);
  let found;
  try {
    found = await ask(`api/samples?${values}`);
  } catch {
    if (mine === round) parts.delete(part);
    return;
  }
  if (mine !== round) return;
  parts.set(part, found.samples);
  total = found.total;
  at("count").textContent = `${total.toLocaleString("en")} of ${about.total.toLocaleString("en")}`;
  draw();
}

function sampleAt(place) {
  const part = parts.get(Math.floor(place / PART));
  return part ? part[place % PART] : undefined;
}

function shape() {
  const width = at("space").clientWidth;
  const columns = Math.max(2, Math.floor((width + GAP) / (WIDTH + GAP)));
  const height = Math.round(((width - GAP * (columns - 1)) / columns) * about.ratio) + CAPTION + 4;
  return { columns, height, step: height + GAP };
}

function draw() {
  const { columns, height, step } = shape();
  const rows = Math.ceil(total / columns);
  const scroller = at("scroller"), grid = at("grid");
  at("space").style.height = `${rows * step + GAP}px`;
  const first = Math.max(0, Math.floor(scroller.scrollTop / step) - SPARE);
  const last = Math.min(rows, Math.ceil((scroller.scrollTop + scroller.clientHeight) / step) + SPARE);
  grid.style.top = `${first * step + GAP}px`;
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  grid.style.gridAutoRows = `${height}px`;
  const wanted = [];
  for (let place = first * columns; place < Math.min(total, last * columns); place += 1) wanted.push(place);
  const old = new Map([...grid.children].map((card) => [card.dataset.key, card]));
  grid.replaceChildren(...wanted.map((place) => {
    const sample = sampleAt(place);
    if (!sample) load(Math.floor(place / PART));
    const key = sample ? `${place} ${sample.id}` : `${place}`;
    const card = old.get(key) || newCard(key, place, sample);
    paint(card, place, sample);
    return card;
  }));
}

function newCard(key, place, sample) {
  const card = document.createElement("div");
  card.dataset.key = key;
  card.append(document.createElement("img"), document.createElement("p"));
  if (sample) {
    card.firstChild.src = view("thumbnail", sample.id);
    card.firstChild.alt = sample.caption;
  }
  card.onclick = () => { choose(place); open(); };
  return card;
}

function paint(card, place, sample) {
  card.className = `card${place === chosen ? " chosen" : ""}${sample && sample.excluded ? " excluded" : ""}`;
  if (!sample) return;
  const star = document.createElement("b");
  star.textContent = (sample.marked ? "\u2605" : "") + (sample.comment ? "\u270e" : "");
  const score = sample.score === null ? "" : `${sample.score} \u00b7 `;
  card.lastChild.replaceChildren(star, `${score}${sample.condition} \u00b7 ${sample.id}`);
}

function choose(place) {
  if (!total) return;
  chosen = Math.max(0, Math.min(total - 1, place));
  const { columns, step } = shape();
  const top = Math.floor(chosen / columns) * step, scroller = at("scroller");
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  const most = top + step + GAP - scroller.clientHeight;
  if (most > scroller.scrollTop) scroller.scrollTop = most;
  draw();
}

// One sample

async function open() {
  const sample = sampleAt(chosen);
  if (!sample) return;
  keepComment();
  shown = sample;
  at("viewer").hidden = false;
  at("title").textContent = `${sample.id} \u00b7 ${sample.condition}`;
  at("comment").value = sample.comment;
  at("image").src = at("alone").src = view("image", sample.id);
  at("caption").textContent = sample.caption;
  for (const id of ["scores", "classes", "row"]) at(id).textContent = "";
  paintViewer();
  const more = await ask(`api/sample?${new URLSearchParams({ id: sample.id })}`);
  if (shown !== sample) return;
  at("caption").textContent = more.caption;
  at("scores").textContent = more.scores;
  at("classes").textContent = more.classes.join(", ");
  at("row").textContent = more.row;
  at("of-label").hidden = at("over").hidden = at("blend").hidden = !more.labelled;
  if (more.labelled) at("over").src = at("label").src = view("label", sample.id);
  at("of-source").hidden = !about.has_source;
  if (about.has_source) at("source").src = view("source", sample.id);
}

function paintViewer() {
  at("mark").classList.toggle("on", shown.marked);
  at("exclude").classList.toggle("on", shown.excluded);
}

function close() {
  keepComment();
  shown = null;
  at("viewer").hidden = true;
  draw();
  at("scroller").focus();
}

function set(sample, change) {
  if (!sample) return saving;
  const before = { excluded: sample.excluded, marked: sample.marked, comment: sample.comment };
  const mark = { ...before, ...change };
  Object.assign(sample, mark);
  if (shown === sample) paintViewer();
  draw();
  saving = saving.then(() => ask(`api/mark?${new URLSearchParams({ id: sample.id })}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(mark),
  })).catch(() => {
    Object.assign(sample, before);
    if (shown === sample) paintViewer();
    draw();
  });
  return saving;
}

function keepComment() {
  if (shown && at("comment").value !== shown.comment) set(shown, { comment: at("comment").value });
}

function go(step) {
  choose(chosen + step);
  if (shown) open();
}

// Keys and clicks

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat && "mxo".includes(event.key)) return;  // a held key would switch again and again
  if (event.key === "Escape") {
    if (event.target === at("comment")) { keepComment(); at("comment").blur(); }
    else if (shown) close();
    else if (typing) event.target.blur();
    return;
  }
  if (typing) return;
  const { columns } = shape();
  const sample = shown || sampleAt(chosen);
  const actions = {
    ArrowRight: () => go(1), ArrowLeft: () => go(-1), j: () => go(1), k: () => go(-1),
    ArrowDown: () => go(shown ? 1 : columns), ArrowUp: () => go(shown ? -1 : -columns),
    Enter: () => { if (!shown) open(); },
    m: () => set(sample, { marked: !sample.marked }),
    x: () => set(sample, { excluded: !sample.excluded }),
    c: () => { if (!shown) open(); at("comment").focus(); },
    o: () => { at("opacity").value = at("opacity").value > 0 ? 0 : 45; blend(); },
    "/": () => { if (!shown) filters.elements.text.focus(); },
  };
  const ranged = event.target === at("opacity") && event.key.startsWith("Arrow");
  const pressed = event.target.matches("button") && event.key === "Enter";
  if (!actions[event.key] || ranged || pressed) return;
  event.preventDefault();
  if (sample || event.key === "/") actions[event.key]();
});

function blend() {
  at("over").style.opacity = at("opacity").value / 100;
}

let waiting = 0;
filters.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, KEEP_MS);
});
filters.addEventListener("submit", (event) => event.preventDefault());
at("scroller").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
window.addEventListener("resize", () => requestAnimationFrame(draw));
at("opacity").addEventListener("input", blend);
at("comment").addEventListener("change", keepComment);
at("previous").onclick = () => go(-1);
at("next").onclick = () => go(1);
at("close").onclick = close;
at("mark").onclick = () => set(shown, { marked: !shown.marked });
at("exclude").onclick = () => set(shown, { excluded: !shown.excluded });

function offer(name, pairs) {
  filters.elements[name].hidden = !pairs.length;
  for (const [value, text] of pairs) filters.elements[name].add(new Option(text, value));
}

async function start() {
  about = await ask("api/set");
  document.title = `${about.name} - Streetforge`;
  at("name").textContent = about.name;
  document.documentElement.style.setProperty("--ratio", about.ratio);
  offer("condition", about.conditions.map(([name, count]) => [name, `${name} (${count})`]));
  offer("class", about.classes.map((name, index) => [index, name]));
  for (const name of ["low", "high", "order"]) filters.elements[name].hidden = !about.networks.length;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (filters.elements[name]) filters.elements[name].value = value;
  }
  blend();
  await refresh();
  at("scroller").focus();
}

start();
