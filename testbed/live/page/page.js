"use strict";
// Everything that is shown comes as text from the run: it is put into the page as text, never as markup.
const by = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (role) => css({alice: "--alice", bob: "--bob", eve: "--eve"}[role] || "--other");
// Dashes distinguish the curves where colours do not; no two curves of a plot have the same.
const DASH = {alice: [], bob: [8, 4], eve: [2, 3], other: [12, 3, 2, 3]};
const MORE_DASHES = [[7, 3, 2, 3], [14, 4], [5, 2, 5, 6], [1, 5]];
const state = {points: [], links: {}, hz: null, frozen: false, events: 0, blocks: [], last: null, asked: null};
const plots = {};
const figure = (v, digits) => v === null || v === undefined ? "–" : v.toFixed(digits);

function plot(id, series, data, x, y, height) {
  const place = by(id), names = series.map((s) => s.label).join("|");
  if (!data[0].length) return;
  const width = Math.max(200, place.clientWidth);
  if (!plots[id] || plots[id].names !== names) {
    if (plots[id]) plots[id].chart.destroy();
    const axis = {stroke: css("--dim"), grid: {stroke: css("--line"), width: 1}, ticks: {stroke: css("--line")}};
    const chart = new uPlot({
      width, height: height || 190, cursor: {drag: {x: true, y: false}},
      scales: {x: {time: false, range: (u, least, most) => least === most ? [least - 1, most + 1] : [least, most]}},
      axes: [{...axis, label: x, labelSize: 18}, {...axis, label: y, labelSize: 18, size: 62}],
      series: [{label: x}, ...series], legend: {markers: {width: 0, fill: () => "none"}},
    }, data, place);
    place.querySelectorAll(".u-series .u-marker").forEach((mark, i) => { if (i) mark.replaceChildren(swatch(series[i - 1])); });
    plots[id] = {chart, names};
    return;
  }
  if (plots[id].chart.width !== width) plots[id].chart.setSize({width, height: height || 190});
  plots[id].chart.setData(data);
}

// A legend's mark is a piece of its curve: same colour, same dashes.
function swatch(series) {
  const make = (name, attributes) => { const e = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); return e; };
  const box = make("svg", {width: 40, height: 10, "aria-hidden": "true"});
  box.append(make("line", {x1: 1, x2: 39, y1: 5, y2: 5, stroke: series.stroke, "stroke-width": series.width, "stroke-dasharray": series.dash.join(" ") || "none"}));
  return box;
}
const line = (label, role, more) => ({label, stroke: colour(role), dash: DASH[role] || DASH.other, width: 2, points: {show: false}, ...more});
function told_apart(series) {
  const used = [];
  for (const s of series) {
    if (used.includes(String(s.dash))) s.dash = MORE_DASHES.find((d) => !used.includes(String(d))) || s.dash;
    used.push(String(s.dash));
  }
  return series;
}
const described = (name) => { const l = state.links[name]; return l ? `${l.at} hears ${l.from}` : name; };

function curves(id, key, label, roleOf, nameOf) {
  const names = [...new Set(state.points.flatMap((p) => Object.keys(p[key])))].sort();
  if (!names.length) return;
  const x = state.points.map((p) => (p.first + p.last) / 2);
  plot(id, told_apart(names.map((n) => line(nameOf(n), roleOf(n)))), [x, ...names.map((n) => state.points.map((p) => p[key][n] ?? null))], "round", label);
}

function spectra() {
  const names = Object.keys(state.links).filter((n) => state.links[n].level_db).sort();
  if (!names.length || !state.hz) return;
  const x = state.hz.map((f) => f / 1e6);
  plot("spectra", told_apart(names.map((n) => line(described(n), state.links[n].role, {width: n.startsWith("b") ? 3 : 2}))),
    [x, ...names.map((n) => state.links[n].level_db)], "offset from the carrier (MHz)", "level (dB)", 240);
}

function planes() {
  const names = Object.keys(state.links).filter((n) => state.links[n].plane).sort();
  const place = by("planes");
  if (place.dataset.names !== names.join("|")) {
    place.replaceChildren(...names.map((n) => {
      const box = document.createElement("figure"), canvas = document.createElement("canvas"), words = document.createElement("figcaption");
      canvas.width = canvas.height = 130; canvas.id = "plane " + n; words.textContent = described(n);
      canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", "complex plane, " + described(n));
      box.append(canvas, words); return box;
    }));
    place.dataset.names = names.join("|");
  }
  for (const n of names) {
    const canvas = by("plane " + n), g = canvas.getContext("2d"), half = canvas.width / 2;
    g.clearRect(0, 0, canvas.width, canvas.height);
    g.strokeStyle = css("--line"); g.beginPath(); g.moveTo(0, half); g.lineTo(2 * half, half); g.moveTo(half, 0); g.lineTo(half, 2 * half); g.stroke();
    g.fillStyle = colour(state.links[n].role);
    const dots = state.links[n].plane;
    dots.forEach(([re, im], i) => { g.globalAlpha = .25 + .75 * i / dots.length; g.beginPath(); g.arc(half + re * (half - 6), half - im * (half - 6), 3, 0, 7); g.fill(); });
    g.globalAlpha = 1;
  }
}

// Dark blue to yellow by way of green: rising in lightness, so it reads in grey as well.
const MAP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function shade(t) {
  const at = t * (MAP.length - 1), i = Math.min(MAP.length - 2, Math.floor(at)), f = at - i;
  return `rgb(${MAP[i].map((a, k) => Math.round(a + f * (MAP[i + 1][k] - a))).join(",")})`;
}
function surface(told) {
  by("surface-box").hidden = !told;
  if (!told) return;
  const canvas = by("surface"), g = canvas.getContext("2d"), rows = told.levels.length, columns = told.levels[0].length;
  const side = Math.max(1, Math.floor(Math.min(320 / columns, 320 / rows)));
  canvas.width = side * columns; canvas.height = side * rows;
  const steps = 2 ** told.bits;
  told.levels.forEach((row, r) => row.forEach((level, c) => { g.fillStyle = shade(steps > 1 ? level / (steps - 1) : 0); g.fillRect(c * side, r * side, side - (side > 3), side - (side > 3)); }));
  by("surface-note").textContent = `${rows} × ${columns} elements, ${told.bits} bit: phases 0 (dark) to ${Math.round(360 - 360 / steps)}° (bright); pattern ${told.digest}`;
}

function rows(id, data) {
  by(id).tBodies[0].replaceChildren(...data.map((cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells.map((cell) => { const td = document.createElement("td"); td.textContent = cell; if (typeof cell === "number" || /^[-–\d.]+%?$/.test(cell)) td.className = "n"; return td; }));
    return tr;
  }));
}

const FLOW = [["key", "key", "--alice"], ["sacrificed", "published to judge errors", "--bob"], ["leaked", "told by the discussion", "--other"], ["lost", "known or knowable by an Eve, or not agreed on", "--eve"]];
function flow(told) {
  const place = by("flow"), total = told.raw || 0;
  if (!total) { place.textContent = "no block yet"; return; }
  const bar = document.createElement("div"), list = document.createElement("ul");
  bar.className = "bar";
  for (const [key, words, name] of FLOW) {
    const part = document.createElement("span"), item = document.createElement("li"), mark = document.createElement("i");
    part.className = mark.className = key; part.style.width = 100 * told[key] / total + "%"; part.style.backgroundColor = mark.style.backgroundColor = css(name); part.title = words;
    item.append(mark, `${told[key]} ${words}`); bar.append(part); list.append(item);
  }
  const head = document.createElement("p"); head.textContent = `of ${total} raw bits`;
  place.replaceChildren(head, bar, list);
}

function events(told) {
  const list = by("events");
  for (const e of told) {
    if (e.n <= state.events) continue;
    state.events = e.n;
    const item = document.createElement("li"), kind = document.createElement("b");
    kind.textContent = e.kind;
    item.append(e.time.slice(11, 19) + " ", kind, " " + e.text);
    list.prepend(item);
  }
  while (list.children.length > 200) list.lastChild.remove();
}

const WORDS = {waiting: "waiting for the run", live: "running", closed: "over", killed: "its process died; testbed report RUN saves what was recorded"};
// What was asked of the run, here or in its terminal, until the run is over.
const ASKED = {stop: "stopping: the present round is finished, then the records are written", abort: "stopping: the present round is dropped, then the records are written", halt: "halting: the transmitters are silent, and the records are written"};
function standing(t) {
  const asked = ASKED[t.asked || state.asked];
  if (t.state === "live" && asked) return asked;
  return (t.paused ? "paused: no round is begun" : WORDS[t.state]) + (t.stop ? `: ${t.stop.exit_status}${t.stop.reason ? ", " + t.stop.reason : ""}` : "");
}
function draw() {
  const t = state.last;
  if (!t || state.frozen) return;
  by("title").textContent = t.title || "testbed";
  document.title = `${t.title || "testbed"}: ${t.rounds}/${t.planned}`;
  by("state").textContent = standing(t);
  by("progress").max = t.planned || 1; by("progress").value = t.rounds;
  by("f-round").textContent = `${t.rounds}/${t.planned}`; by("f-rate").textContent = figure(t.rounds_per_s_now, 0);
  const r = (state.points.findLast((p) => Object.keys(p.r).length) || {r: {}}).r;
  by("f-r").textContent = figure(r["Alice–Bob"], 2);
  const eve = [r["Bob–Eve"], r["Alice–Eve"]].filter((v) => v !== undefined).sort((a, b) => Math.abs(b) - Math.abs(a));
  by("f-eve").textContent = figure(eve[0], 2);
  const judged = t.blocks.filter((b) => b.kdr !== null);
  by("f-kdr").textContent = judged.length ? (100 * judged[judged.length - 1].kdr).toFixed(1) + " %" : "–";
  by("f-key").textContent = t.key_bits;
  spectra(); planes(); surface(t.surface);
  curves("p-r", "r", "r", (n) => ({"Alice–Bob": "alice", "Bob–Eve": "eve"}[n] || "other"), (n) => n);
  const roleOf = (n) => state.links[n] ? state.links[n].role : "other";
  curves("p-snr", "snr_db", "SNR (dB)", roleOf, described); curves("p-cfo", "cfo_hz", "offset (Hz)", roleOf, described);
  plot("p-kdr", [line("Alice–Bob", "alice", {points: {show: true, size: 7}}), line("Eve's best guess", "eve", {points: {show: true, size: 7}})],
    [t.blocks.map((b) => b.block), t.blocks.map((b) => b.kdr), t.blocks.map((b) => b.kdr_eve)], "block", "share of bits");
  flow(t.flow);
  rows("eves", t.eves.length ? [["bits left", "guesses", "who knows"], ...t.eves.map((e) => [e.bits, (100 * e.guess).toFixed(0) + "%", e.knows])] : [["no block yet"]]);
  rows("nodes", t.nodes.map((n) => [n.name, n.role, n.state]));
  rows("rejected", Object.entries(t.rejected).map(([k, n]) => [k, n]).concat([["kept", t.kept]]));
}

function take(t) {
  if (t.whole) state.points = [];
  if (t.subcarrier_hz) state.hz = t.subcarrier_hz;
  state.points.push(...t.points);
  state.links = t.links; state.last = t;
  events(t.events);
  const over = t.state === "closed" || t.state === "killed";
  by("pause").hidden = by("stop").hidden = by("halt").hidden = !settings.controls || over;
  by("pause").textContent = t.paused ? "Go on with the run (p)" : "Pause the run (p)";
  by("pause").setAttribute("aria-pressed", t.paused);
  draw();
}

function ask(what) {
  const doubts = {stop: "Finish this round and stop the run?", halt: "Silence the transmitters at once and end the run?"};
  if (by("stop").hidden || (doubts[what] && !confirm(doubts[what]))) return;
  fetch("/control/" + what, {method: "POST", headers: {"x-token": settings.token}}).then((r) => {
    if (r.ok && ASKED[what]) state.asked = what;
    by("state").textContent = r.ok ? ASKED[what] || `${what}: asked` : `${what}: refused; reload the page`;
  }, () => { by("state").textContent = `${what}: not sent, because the page's server does not answer`; });
}
function freeze() {
  state.frozen = !state.frozen;
  by("freeze").textContent = state.frozen ? "Go on showing (f)" : "Freeze the page (f)";
  by("freeze").setAttribute("aria-pressed", state.frozen);
  draw();
}
function pause() { ask(state.last && state.last.paused ? "unpause" : "pause"); }
by("freeze").onclick = freeze; by("pause").onclick = pause; by("stop").onclick = () => ask("stop"); by("halt").onclick = () => ask("halt");
addEventListener("keydown", (e) => { if (!e.ctrlKey && !e.metaKey && !e.altKey) ({f: freeze, p: pause, s: () => ask("stop"), h: () => ask("halt")}[e.key] || (() => {}))(); });
addEventListener("resize", draw);

const source = new EventSource("/events");
source.onmessage = (e) => take(JSON.parse(e.data));
source.onerror = () => {
  const over = state.last && (state.last.state === "closed" || state.last.state === "killed");
  if (over) source.close(); else by("state").textContent = "no word from the run: trying again";
};
