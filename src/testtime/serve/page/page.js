const $ = id => document.getElementById(id);
const EVERY = 1500, KEPT = 20000, RECENT = 16, MANY = 12, LISTED = 100;
const WHO = {adapter: ["the adapter", 1], bn: ["BN statistics", 3], source: ["the shipped model", 2]};
const BAD = ["alarm", "fallback", "restore", "partial_reset"];
const KINDS = {skip: "not learned", restore: "restored", partial_reset: "partly reset", fallback: "fallback", recover: "recovered", alarm: "alarm"};
const SPANS = [["2 minutes", 120], ["15 minutes", 900], ["all", Infinity]];
const state = {stream: null, span: 900, records: [], after: -1, status: null, history: null, snapshots: [], configuration: null, shadow: null, turn: 0};
const number = value => value.toLocaleString("en");
const percent = (value, exact) => value.toFixed(exact ? 1 : 0) + " %";
const plain = (value, exact) => value === 0 ? "0" : Math.abs(value) < 0.001 ? value.toExponential(1)
  : String(+value.toPrecision(exact ? 3 : 2));

/* Requests ---------------------------------------------------------------------------------------------------------- */

class Problem extends Error {
  constructor(status, code, text) { super(text); this.status = status; this.code = code; }
}

async function ask(method, path, body, token) {
  const headers = {}, sent = token || sessionStorage.getItem("token");
  if (sent) headers.Authorization = "Bearer " + sent;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store"});
  const found = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Problem(response.status, found.code, found.error || response.statusText);
  return found;
}

/* Ask a question in a dialog, with a field for a token where one is needed; null where the person cancels. */
function question(text, explained, secret, problem = "") {
  $("question").textContent = text; $("explained").textContent = explained;
  $("secret").hidden = !secret; $("problem").textContent = problem; $("token").value = "";
  $("dialog").showModal();
  return new Promise(resolve => {
    const end = value => { $("dialog").close(); $("form").onsubmit = $("cancel").onclick = $("dialog").oncancel = null; resolve(value); };
    $("form").onsubmit = event => { event.preventDefault(); end(secret ? $("token").value.trim() : ""); };
    $("cancel").onclick = () => end(null);
    $("dialog").oncancel = event => { event.preventDefault(); end(null); };
  });
}

/* Do what needs the manager's token: it is asked for where the server demands it, and kept in this tab. */
async function manage(method, path, body, text, done) {
  if (text && await question(text, "", false) === null) return;
  let problem = "";
  for (;;) {
    try {
      await ask(method, path, body, sessionStorage.getItem("manager"));
      $("done").textContent = `${clock(Date.now() / 1000)}  ${done}`;
      break;
    } catch (error) {
      if (!["not-manager", "no-token"].includes(error.code)) { $("done").textContent = error.message; break; }
      sessionStorage.removeItem("manager");
      const token = await question("The manager's token", "TESTTIME_MANAGE_TOKEN of the server; this tab keeps it until it is closed.", true, problem);
      if (token === null) return;
      sessionStorage.setItem("manager", token); problem = "this token does not allow it";
    }
  }
  state.turn = 0; await refresh();
}

const of = path => `/streams/${encodeURIComponent(state.stream)}${path}`;

async function refresh() {
  if (!state.listed || state.listed.total <= LISTED || state.turn % 4 === 0) state.listed = await ask("GET", `/streams?limit=${LISTED}`);
  const {streams: names, total} = state.listed;
  if (state.stream === null || total <= LISTED && !names.includes(state.stream)) choose(names[0] ?? null);
  show(names, total);
  if (state.stream === null) return;
  const stream = state.stream, slow = state.turn++ % 4 === 0;
  const [status, history, ...others] = await Promise.all([ask("GET", of("")), ask("GET", of(`/history?after=${state.after}`)),
    ...(slow ? [ask("GET", of("/snapshots")), ask("GET", "/configuration"), ask("GET", "/shadow")] : [])]);
  if (stream !== state.stream) return;
  if (status.offset <= state.after) { choose(stream); return; }  // it was deleted and began again
  Object.assign(state, {status, history});
  state.records.push(...history.records.filter(r => r.offset > state.after));
  state.records.splice(0, state.records.length - KEPT);
  state.after = state.records.at(-1)?.offset ?? -1;
  if (slow) [state.snapshots, state.configuration, state.shadow] = [others[0].snapshots, others[1], others[2]];
  render();
}

function choose(stream) {
  Object.assign(state, {stream, records: [], after: -1, turn: 0, status: null});
}

async function poll() {
  try {
    await refresh();
    $("live").className = "live on"; $("live").textContent = `live, ${clock(Date.now() / 1000)}`;
    state.lost = "";
  } catch (error) {
    if (error.code === "no-stream") choose(null);  // it was deleted
    if (error.code === "no-token" && !$("dialog").open) {
      const token = await question("The token of this server", "TESTTIME_TOKEN, or the manager's; this tab keeps it until it is closed.", true,
        sessionStorage.getItem("token") ? "the token is wrong" : "");
      if (token) sessionStorage.setItem("token", token); else sessionStorage.removeItem("token");
    }
    $("live").className = "live off"; $("live").textContent = "no answer";
    state.lost = error instanceof Problem ? error.message : "the server does not answer";
    alarms();
  }
  setTimeout(poll, document.hidden ? 4 * EVERY : EVERY);
}

/* What is shown ----------------------------------------------------------------------------------------------------- */

function show(names, total) {
  $("empty").hidden = names.length > 0; $("content").hidden = names.length === 0 || !state.status;
  $("streams").hidden = names.length < 2;
  const change = name => { choose(name); refresh(); };
  if (total > LISTED) {  // a field in which to search
    if (state.names !== "search") $("streams").replaceChildren(search(change), make("datalist", {id: "names"}));
    state.names = "search";
    $("streams").firstChild.placeholder = `${state.stream}, one of ${number(total)} streams`;
    return;
  }
  if (names.length > MANY) {  // a list to choose from, which stays as it is while it is open
    const shown = names.join(" ");
    if (state.names !== shown) $("streams").replaceChildren(make("select", {"aria-label": "stream", onchange: event => change(event.target.value)},
      ...names.map(name => make("option", {value: name}, name))));
    state.names = shown;
    $("streams").firstChild.value = state.stream;
    return;
  }
  state.names = null;
  $("streams").replaceChildren(...names.map(name => make("button", {type: "button", "aria-pressed": String(name === state.stream),
    onclick: () => change(name)}, name)));
}

/* A field that proposes streams whose identity contains what is typed, and takes one of them. */
function search(change) {
  const find = async text => (await ask("GET", `/streams?limit=${LISTED}&contains=${encodeURIComponent(text)}`)).streams;
  const field = make("input", {type: "search", list: "names", "aria-label": "stream", autocomplete: "off", spellcheck: "false", maxlength: 64,
    oninput: async () => { const text = field.value, found = await find(text);
      if (text === field.value) $("names").replaceChildren(...found.map(name => make("option", {value: name}))); },
    onchange: async () => { const text = field.value.trim(), found = text ? await find(text) : [];
      const name = found.includes(text) ? text : found.length === 1 ? found[0] : null;
      if (name) { field.value = ""; $("done").textContent = ""; change(name); }
      else if (text) $("done").textContent = `${number(found.length)} streams shown whose name contains "${text}"; choose one`; }});
  return field;
}

/* The mean of the last values of a diagnostic, or null. */
function recent(name, records = state.records) {
  const values = [];
  for (let i = records.length - 1; i >= 0 && values.length < RECENT; i--) {
    const value = records[i].diagnostics[name];
    if (value != null) values.push(value);
  }
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

function render() {
  const {status, configuration, history} = state;
  $("content").hidden = false;
  $("title").textContent = history.model;
  $("method").textContent = `${configuration.method}${configuration.guarded ? ", guarded" : ", without guards"}, stream ${status.stream}`;
  document.title = `${status.stream}: ${history.model}, testtime`;
  alarms(); tiles(); charts(); events(); snapshots(); held(); facts(); shadow();
  $("pause").textContent = status.paused ? "Resume learning" : "Pause learning";
}

function alarms() {
  const lines = [], now = state.records.at(-1)?.time ?? 0;
  if (state.lost) lines.push(["No data", state.lost]);
  if (state.status?.error) lines.push(["Disk", state.status.error]);
  const alarm = state.status?.alarm;
  if (alarm?.raised) lines.push(["Worse than the shipped model",
    `the answers of ${state.stream} are likely to be wrong more often than the shipped model's, by more than ${percent(100 * alarm.tolerance)} of the samples; `
    + `such an alarm is false in at most ${percent(100 * alarm.probability)} of all streams (${number(alarm.samples)} samples compared); roll back, or change the configuration`, alarm.time]);
  if (state.status?.serving === "source") lines.push(["Fallback", "the shipped model answers"]);
  const found = state.records.filter(r => now - r.time < 300).flatMap(r => r.events.filter(e => ["alarm", "restore", "partial_reset"].includes(e.kind))
    .map(e => [KINDS[e.kind][0].toUpperCase() + KINDS[e.kind].slice(1), e.reason, r.time]));
  lines.push(...found.reverse().slice(0, 3));
  if (state.status?.paused) lines.push(["Paused", "this stream does not learn"]);
  const shown = JSON.stringify(lines);
  if (shown === state.alarms) return;  // a screen reader says them once
  state.alarms = shown;
  $("alarms").replaceChildren(...lines.map(([head, text, time]) => make("p", {}, make("b", {}, head), text,
    time ? make("time", {}, clock(time)) : null)));
}

function tile(title, value, unit, under) {
  return make("div", {class: "tile"}, make("h3", {}, title), make("p", {class: "value"}, value, unit ? make("small", {}, " " + unit) : null),
    make("p", {class: "under"}, under));
}

function tiles() {
  const {status} = state, ours = recent("estimated_accuracy"), shipped = recent("estimated_accuracy_source"), unknown = recent("unknown_share");
  const gain = ours === null ? 0 : ours - shipped, learned = 100 * status.counts.learned / Math.max(1, status.offset);
  $("tiles").replaceChildren(
    tile("Estimated accuracy", ours === null ? "–" : ours.toFixed(1), ours === null ? "" : "%",
      ours === null ? "needs guards" : `shipped model ${shipped.toFixed(1)} % (${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)})`),
    tile("Unknown inputs", unknown === null ? "–" : (100 * unknown).toFixed(0), unknown === null ? "" : "%", "of what came last, to the shipped model"),
    tile("Who answers", {adapter: "adapter", bn: "BN", source: "shipped"}[status.serving] ?? status.serving, "",
      {adapter: `by ${state.configuration.method}`, bn: "statistics of each batch", source: "the model as it was given"}[status.serving] ?? ""),
    tile("Samples", number(status.offset), "", `${number(status.counts.requests)} requests, ${number(status.step)} steps`),
    tile("Learned from", learned.toFixed(0), "%", `${number(status.counts.quarantined)} held back, ${number(status.counts.refused)} refused`));
}

function charts() {
  const now = state.records.at(-1)?.time ?? 0, from = Math.max(state.records[0]?.time ?? 0, now - state.span);
  const records = state.records.filter(r => r.time >= from);
  const points = read => records.map(r => [r.time, read(r)]).filter(p => p[1] != null);
  const of = (name, factor = 1) => points(r => r.diagnostics[name] == null ? null : factor * r.diagnostics[name]);
  const strip = [];
  records.forEach((r, i) => {
    const end = records[i + 1]?.time ?? r.time, colour = WHO[r.serving]?.[1] ?? 1;
    if (strip.length && strip.at(-1)[2] === colour) strip.at(-1)[1] = end; else strip.push([r.time, end, colour]);
  });
  const marks = records.filter(r => r.events.some(e => BAD.includes(e.kind))).map(r => r.time);
  const accuracy = [of("estimated_accuracy"), of("estimated_accuracy_source")], none = "estimated by guards alone";
  const shown = [
    {title: "Estimated accuracy", whole: true, height: 210, low: 0, high: 100, format: percent, strip, marks, none,
      series: [{name: "as served", colour: 1, points: accuracy[0]}, {name: "shipped model", colour: 2, points: accuracy[1]}]},
    {title: "Unknown to the shipped model", low: 0, high: 100, format: percent, none, series: [{name: "unknown", colour: 4, points: of("unknown_share", 100)}]},
    {title: "Entropy of the predictions, nats", format: plain, none, series: [{name: "entropy", colour: 3, points: of("entropy")}]},
    {title: "Drift of the statistics, deviations", format: plain, none, series: [{name: "drift", colour: 6, points: of("statistics_drift")}]},
    {title: "Step of the parameters, norm", format: plain, series: [{name: "step", colour: 1, points: points(r => r.moved)}]},
    {title: "Distance from the shipped model", format: plain, series: [{name: "distance", colour: 2, points: points(r => r.distance)}]},
  ];
  shown.forEach((chart, i) => {
    const figure = $("charts").children[i] ?? $("charts").appendChild(make("figure", {class: chart.whole ? "whole" : ""}));
    if (!figure.matches(":hover")) draw(figure, {...chart, from, to: now});
  });
  const key = $("charts").firstChild.querySelector(".key");
  if (key && !key.querySelector(".answers")) key.append(make("span", {class: "answers dim"}, "strip below, who answers: "),
    ...Object.values(WHO).map(([name, colour]) => make("span", {class: `swatch k${colour}`}, name)));
}

function events() {
  const lines = [];
  for (const record of state.records) for (const event of record.events) {
    const alike = event.kind + event.reason.replace(/[\d.]+/g, "#"), last = lines.at(-1);
    if (last?.alike === alike) Object.assign(last, {...event, time: record.time, count: last.count + 1});
    else lines.push({...event, alike, time: record.time, count: 1});
  }
  const shown = lines.reverse().slice(0, 60).map(e => make("li", {class: BAD.includes(e.kind) ? "bad" : ""}, make("time", {}, clock(e.time)),
    make("span", {class: "kind"}, KINDS[e.kind] ?? e.kind),
    make("span", {class: "why"}, e.reason, e.count > 1 ? make("span", {class: "times"}, ` (${e.count} times)`) : null)));
  fill("events", shown.length ? shown : [make("li", {}, make("span", {class: "none"}, "nothing yet"))]);
}

/* Replace the children of an element where they changed, so that a scrolled list and a focused button stay. */
function fill(id, children) {
  const fresh = make($(id).tagName, {}, ...children);
  if (fresh.innerHTML !== $(id).innerHTML) $(id).replaceChildren(...fresh.childNodes);
}

function snapshots() {
  const {stream} = state, roll = (to, name) => () => manage("POST", of("/rollback"), {to},
    `Roll ${stream} back to ${name}?`, `${stream} is back at ${name}`);
  const button = (to, name) => make("button", {type: "button", "data-to": to ?? "shipped", "data-stream": stream, onclick: roll(to, name)}, "Roll back");
  const rows = [...state.snapshots].reverse().map(s => make("tr", {}, make("th", {scope: "row"}, String(s.number)), make("td", {}, number(s.offset)),
    make("td", {}, clock(s.time)), make("td", {}, s.healthy ? "healthy" : "not healthy"), make("td", {}, (s.bytes / 1024).toFixed(0)),
    make("td", {}, s.configuration === state.status.configuration ? button(s.number, `snapshot ${s.number}`) : "other configuration")));
  rows.push(make("tr", {}, make("th", {scope: "row"}, "shipped"), make("td", {}, "0"), make("td"), make("td", {}, "as shipped"), make("td"),
    make("td", {}, button(null, "the shipped model"))));
  fill("snapshots", rows);
}

function held() {
  const shown = [...state.history.held].reverse().slice(0, 48).map(one => make("article", {},
    one.image ? make("img", {src: `data:image/png;base64,${one.image}`, alt: "", width: 44, height: 44}) : null,
    make("p", {}, make("b", {}, one.refused ? "refused" : "not learned from"), `, ${one.reason}`, make("br"),
      `sample ${number(one.offset)}, ${clock(one.time)} `, make("code", {}, one.digest.slice(0, 12)))));
  fill("held", shown.length ? shown : [make("p", {class: "none"}, "none")]);
}

function list(id, pairs) {
  fill(id, pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function facts() {
  const {status, configuration} = state, c = status.counts;
  list("counts", [["learned from", number(c.learned)], ["held back", number(c.quarantined)], ["refused", number(c.refused)],
    ["learning left out for a deadline", `${number(c.shed)}, of which ${number(c.caught_up)} learned later`], ["learning switched off", number(c.unlearned)],
    ["steps", number(status.step)], ["compared with the shipped model", status.alarm ? `${number(status.alarm.samples)} samples` : "off"],
    ["evidence of being worse", status.alarm ? `${status.alarm.evidence.toPrecision(2)}, alarm at ${number(1 / status.alarm.probability)}` : "off"], ["waiting to be learned", number(status.pending)], ["state in memory", `${(status.bytes / 1024).toFixed(1)} kB`]]);
  list("configuration", [["method", configuration.method], ["guards", configuration.guarded ? "on" : "off"],
    ["options", Object.keys(configuration.options).length ? make("pre", {}, JSON.stringify(configuration.options, null, 1)) : "as by default"],
    ["changed", `${configuration.changes} times since the start`], ["answers of", WHO[status.serving]?.[0] ?? status.serving],
    ["state", make("code", {}, status.state)], ["configuration", make("code", {}, status.configuration)]]);
}

function shadow() {
  const found = state.shadow;
  $("shadow").hidden = !found?.running;
  if (!found?.running) return;
  const change = one => () => manage("PUT", "/configuration", {method: one.method, options: one.options, guarded: one.guarded},
    `Serve ${one.name} from the next request on?`, `${one.name} serves`);
  fill("advice", found.recommended ? [make("p", {}, make("b", {}, found.recommended === found.serving ? `Keep ${found.serving}. ` : `Switch to ${found.recommended}. `),
    found.reasons.join(" "))] : [make("p", {class: "none"}, `${number(found.images)} of ${number(found.needed)} images for a first judgement`)]);
  const value = (x, digits = 1) => x == null ? "–" : x.toFixed(digits);
  fill("candidates", found.candidates.map(one => make("tr", {class: one.name === found.recommended ? "chosen" : ""},
    make("th", {scope: "row"}, one.name), make("td", {}, value(one.accuracy)), make("td", {}, value(one.agreement)), make("td", {}, value(one.milliseconds, 0)),
    make("td", {class: "left"}, [...one.alarms, one.error].filter(Boolean).join("; ") || (one.name === found.serving ? "serves" : "")),
    make("td", {}, one.name === found.serving || one.error ? null : make("button", {type: "button", "data-switch": one.name, onclick: change(one)}, "Switch")))));
  $("sampled").textContent = `Judged on ${number(found.images)} images of ${found.stream ?? "no stream yet"}, ${percent(100 * found.share)} of its requests; `
    + `${number(found.dropped)} images were left out because the server was busy. Their answers are never served.`;
}

$("pause").onclick = () => { const paused = state.status.paused;
  manage("POST", of(paused ? "/resume" : "/pause"), undefined, "", paused ? "learning goes on" : "learning is paused"); };
$("snap").onclick = () => manage("POST", of("/snapshots"), undefined, "", "a snapshot was written");
$("spans").replaceChildren(...SPANS.map(([name, seconds]) => make("button", {type: "button", "aria-pressed": String(seconds === state.span),
  onclick: event => { state.span = seconds; for (const b of $("spans").children) b.ariaPressed = String(b === event.target); charts(); }}, name)));
addEventListener("resize", () => { if (state.status) charts(); });
poll();
