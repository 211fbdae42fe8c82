// The page: takes the server's verdict and a document of `poolsrv status --json` each second, and shows them.

const STALE = 4; // seconds without a document, from which on figures are marked as old
const RETRY = 3000; // milliseconds, where the browser does not try again by itself

const byId = (id) => document.getElementById(id);
const history = new History();
const plots = new Plots(history, byId("plots"));
const tables = makeTables(history);
const changes = new Changes();

const page = {
  status: null,
  verdict: null, // the server's own: `health`, `reason`, `is_ready`, `readiness`
  receivedAt: 0, // by performance.now()
  lostAt: null, // since when, by performance.now(), there has been no connection
  toldLost: false,
  paused: false,
};

plots.add({ title: "Connections per second", lines: [{ value: (one) => one.values.accepted }], format: (value) => rate(value) + "/s", least: 1 });
plots.add({ title: "Open connections", lines: [{ value: (one) => one.values.open }], format: (value) => (value % 1 ? value.toFixed(1) : count(value)), least: 4 });
const latency = plots.add({
  title: "Latency",
  lines: ["p50", "p90", "p99"].map((label, index) => ({ label, value: (one) => one.percentiles.get(chosenTime())?.[index] })),
  format: span, least: 1e-3, log: true,
});
plots.add({ title: "CPU of the workers", lines: [{ value: (one) => one.values.cpu }], format: percent, least: 10 });
plots.add({ title: "Memory of the workers", lines: [{ value: (one) => one.values.memory }], format: size, least: 1024, bytes: true });
plots.add({
  title: "Bytes per second",
  lines: [{ label: "in", value: (one) => one.values.bytesIn }, { label: "out", value: (one) => one.values.bytesOut }],
  format: (value) => size(value) + "/s", least: 1024, bytes: true,
});

// Which metric the plot of latency shows: the choice of the reader, or else the one that says most.
const choice = html("select", { "aria-label": "Latency of" });
latency.heading.replaceChildren("Latency of ", choice);
choice.addEventListener("change", () => plots.draw());

function chosenTime() {
  return choice.value;
}

function offerTimes() {
  const offered = [...choice.options].map((one) => one.value);
  if (offered.join() === history.times.join()) return;
  const preferred = ["http_response_seconds", "poolsrv_connection_duration_seconds", ...history.times];
  const chosen = history.times.includes(choice.value) && offered.length ? choice.value : preferred.find((name) => history.times.includes(name));
  choice.replaceChildren(...history.times.map((name) => html("option", { value: name }, metricName(name))));
  choice.value = chosen;
}

function take(status) {
  const before = page.status;
  page.receivedAt = performance.now();
  if (!history.add(status)) return;
  page.status = status;
  if (page.toldLost) changes.note(["connected again"], status.time);
  page.lostAt = null;
  page.toldLost = false;
  const found = before ? changesBetween(before, status) : [];
  changes.note(found, status.time);
  history.latest.changed = found.length > 0;
  offerTimes();
  draw();
}

// Once for all events that have come, and not at all while nobody can see it.
function draw() {
  page.drawing ||= requestAnimationFrame(drawNow);
}

function drawNow() {
  page.drawing = 0;
  showConnection();
  if (!page.status || page.paused) return;
  document.body.classList.remove("waiting");
  showVerdict();
  showServer(page.status);
  showFacts(page.status);
  showTables(page.status);
  plots.draw();
}

function judge(verdict) {
  const before = page.verdict;
  page.verdict = verdict;
  const isNews = before && (before.health !== verdict.health || (verdict.health !== "well" && before.reason !== verdict.reason));
  // The reason of "well" is a count, which is no news.
  if (isNews) changes.note([verdict.health === "well" ? "well again" : verdict.reason], Date.now() / 1000);
  // A server that is down is not ready either, and that needs no line of its own.
  const unready = (one) => one !== null && !one.is_ready && one.health !== "down";
  if (unready(verdict) !== unready(before)) changes.note([verdict.readiness], Date.now() / 1000);
  if (!page.paused) showVerdict();
}

function showVerdict() {
  const { health, reason, is_ready: isReady, readiness } = page.verdict;
  setText(byId("state"), health);
  setText(byId("reason"), reason.replace(health + ": ", ""));
  setText(byId("readiness"), isReady || health === "down" ? "" : readiness);
  byId("verdict").dataset.state = health;
  document.title = `${health} · poolsrv on ${location.host}`;
}

function showServer({ server }) {
  setText(byId("uptime"), duration(server.uptime));
  setText(byId("version"), server.version);
  setText(byId("generation"), String(server.generation));
  setText(byId("config"), server.config);
}

function seriesOf(status, name) {
  return (status.metrics ?? []).find((metric) => metric.name === name)?.series ?? [];
}

function totalOf(status, name) {
  return seriesOf(status, name).reduce((total, one) => total + (one.value ?? 0), 0);
}

function showFacts(status) {
  const { server, totals, workers } = status;
  const serving = workers.filter((one) => one.state === "serving").length;
  const values = history.latest.values;
  setText(byId("fact-workers"), `${serving} of ${workers.length} serve`);
  setText(byId("fact-accepted"), count(totals.accepted));
  setText(byId("fact-events"), rate(values.events) + "/s");
  const refused = status.listeners.reduce((all, one) => all + Object.values(one.refusals).reduce((a, b) => a + b, 0), 0);
  setText(byId("fact-refused"), count(refused) + (values.refused >= 0.05 ? `, now ${rate(values.refused)}/s` : ""));
  setText(byId("fact-programs"), programsInWords(status));
  const ends = seriesOf(status, "poolsrv_worker_ends").filter((one) => one.value);
  const how = ends.map((one) => `${count(one.value)} ${one.labels.how}`).join(", ");
  setText(byId("fact-ends"), ends.length ? how : "0");
  setText(byId("fact-lost"), count(totalOf(status, "poolsrv_connections_lost")));
  setText(byId("fact-pools"), count(server.restarts));
  showReload(server);
}

function programsInWords(status) {
  const words = [`${count(status.totals.programs)} running`];
  const waiting = seriesOf(status, "cgi_programs_waiting");
  if (waiting.length) words.push(`${count(totalOf(status, "cgi_programs_waiting"))} waiting`);
  const failed = seriesOf(status, "cgi_programs_failed");
  if (failed.length) words.push(`${count(totalOf(status, "cgi_programs_failed"))} failed`);
  return words.join(", ");
}

function showReload(server) {
  const { last_reload: reload, leaving } = server;
  const outcome = !reload ? "none yet" : `${moment(reload.at)}, ${reload.ok ? "done" : "failed"}`;
  setText(byId("fact-reload"), outcome);
  setClass(byId("fact-reload"), reload && !reload.ok ? "bad" : "");
  const errors = reload && !reload.ok ? reload.errors.slice(0, 20) : [];
  const list = byId("reload-errors");
  if (list.dataset.shown !== JSON.stringify(errors)) {
    list.dataset.shown = JSON.stringify(errors);
    list.replaceChildren(...errors.map((text) => html("li", {}, text)));
  }
  list.hidden = !errors.length;
  const pools = leaving.map((pool) => `generation ${pool.generation} (pid ${pool.pid})`).join(", ");
  setText(byId("fact-draining"), pools || "none");
}

function showTables(status) {
  const series = (status.metrics ?? []).flatMap((metric) => metric.series.map((one) => ({ metric, series: one })));
  tables.workers.update(allWorkers(status), (one) => one.pid || "slot " + one.slot);
  tables.listeners.update(status.listeners, (one) => one.name);
  const times = series.filter((one) => one.series.histogram?.count).map((one) => ({ ...one, recent: history.lastMinute(one.metric, one.series) }));
  tables.times.update(times, (one) => seriesKey(one.metric, one.series), { empty: "nothing has been measured yet" });
  const programs = [...status.programs].sort((a, b) => b.age - a.age);
  tables.programs.update(programs, (one) => one.pid, { empty: "no program runs", total: status.totals.programs });
  const launchers = status.launchers ?? []; // few servers have any; a pool of an older version says nothing of them
  byId("launchers-section").hidden = !launchers.length;
  tables.launchers.update(launchers, (one) => one.pid);
  const refusals = [...status.recent_refusals].reverse();
  tables.refusals.update(refusals.map((one, index) => ({ ...one, index })), (one) => one.index, { empty: "no connection has been refused" });
  const others = series.filter((one) => typeof one.series.value === "number" && ("plugin" in one.series.labels || TROUBLES.has(one.metric.name)));
  tables.metrics.update(others, (one) => seriesKey(one.metric, one.series), { empty: "plugins have no other metrics" });
}

const TROUBLES = new Set([
  "poolsrv_slow_hooks", "poolsrv_plugin_faults", "poolsrv_failed_handshakes", "poolsrv_connections_undelivered",
]);

// How old the figures are. It is text that does not change while all is well.
function showConnection() {
  const age = (performance.now() - page.receivedAt) / 1000;
  const old = page.receivedAt ? `, figures of ${duration(age)} ago` : "";
  let [state, words] = ["live", "live"];
  if (page.lostAt !== null) [state, words] = ["lost", "connection lost, trying again" + old];
  else if (!page.receivedAt) [state, words] = ["connecting", "connecting"];
  else if (age > STALE) [state, words] = ["stale", "no news" + old];
  else if (page.paused) [state, words] = ["paused", "paused"];
  // A reload ends the connection for a moment, which is no news.
  if (page.lostAt !== null && !page.toldLost && performance.now() - page.lostAt > STALE * 1000) {
    page.toldLost = true;
    changes.note(["connection lost"], Date.now() / 1000);
  }
  document.body.dataset.connection = state;
  setText(byId("connection"), words);
}

// The browser connects again by itself, except after an answer that is no stream of events.
function connect() {
  const source = new EventSource("events");
  source.addEventListener("health", (event) => judge(JSON.parse(event.data)));
  source.addEventListener("status", (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    page.lostAt ??= performance.now();
    showConnection();
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY);
  });
}

byId("pause").addEventListener("click", (event) => {
  page.paused = !page.paused;
  event.currentTarget.setAttribute("aria-pressed", String(page.paused));
  draw();
});
setInterval(showConnection, 1000);
setText(byId("host"), location.host);
connect();
