// Tables that stay what they are while their figures change: a row is kept as long as its key is there, and a cell is
// touched only if its text has changed. So a selection, the focus, and a reader's place in a table survive an update.

const MOST_ROWS = 100;

class Table {
  // columns: for each, `cell(row)`: the text, or an object of `text`, and perhaps `kind` (a class) and `hint` (a title).
  constructor(id, columns) {
    this.table = document.getElementById(id);
    this.section = this.table.closest("section");
    this.columns = columns;
    this.body = this.table.tBodies[0];
    this.rows = new Map();
    this.more = html("p", { class: "more" });
    this.scroller = this.table.parentElement;
    this.scroller.after(this.more);
    // Only what can be scrolled is a stop for the Tab key.
    new ResizeObserver(() => this.#scrolls()).observe(this.scroller);
  }

  #scrolls() {
    if (this.scroller.scrollWidth > this.scroller.clientWidth) this.scroller.tabIndex = 0;
    else this.scroller.removeAttribute("tabindex");
  }

  update(items, keyOf, { empty = "none", total = items.length } = {}) {
    const former = this.rows;
    this.rows = new Map();
    let place = this.body.firstElementChild;
    for (const item of items.slice(0, MOST_ROWS)) {
      const key = keyOf(item);
      const row = former.get(key) ?? this.#newRow();
      former.delete(key);
      this.rows.set(key, row);
      this.columns.forEach((column, index) => fill(row.cells[index], column.cell(item)));
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    for (const row of former.values()) row.remove();
    this.table.hidden = !items.length;
    const missing = total - Math.min(items.length, MOST_ROWS);
    setText(this.more, !items.length && !total ? empty : missing > 0 ? `and ${count(missing)} more` : "");
    this.#scrolls();
  }

  #newRow() {
    const row = document.createElement("tr");
    this.columns.forEach((_, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      row.append(cell);
    });
    return row;
  }
}

function fill(cell, content) {
  const { text, kind = "", hint = "" } = typeof content === "object" ? content : { text: content };
  setText(cell, String(text));
  setClass(cell, kind);
  if (cell.title !== hint) cell.title = hint;
}

const TROUBLED = new Set(["empty", "stopped", "stalled", "condemned"]);
const CAREFUL = new Set(["full", "starting", "draining", "stopping"]);

function stateKind(state) {
  return "state " + (TROUBLED.has(state) ? "bad" : CAREFUL.has(state) ? "warn" : "good");
}

function makeTables(history) {
  const refusals = (one) => Object.entries(one.refusals).filter(([, number]) => number);
  return {
    workers: new Table("workers", [
      { cell: (one) => (one.slot < 0 ? "apart" : one.slot) },
      { cell: (one) => one.pid || NONE },
      { cell: (one) => ({ text: one.state, kind: stateKind(one.state) }) },
      { cell: (one) => duration(one.age) },
      { cell: (one) => count(one.open) },
      { cell: (one) => rate(one.accepted_rate) },
      { cell: (one) => percent(one.cpu_percent) },
      { cell: (one) => size(one.memory) },
      { cell: (one) => span(one.lag) },
      { cell: (one) => one.in_flight },
      { cell: (one) => ({ text: one.descriptors + " / " + (one.descriptor_limit || NONE) }) },
      { cell: (one) => count(one.accepted) },
      { cell: (one) => ({ text: one.restarts, kind: one.restarts ? "noted" : "" }) },
      { cell: (one) => duration(one.silent) },
    ]),
    listeners: new Table("listeners", [
      { cell: (one) => one.name },
      { cell: (one) => [...one.plugins, one.handler].join(" › ") },
      { cell: (one) => ({ text: one.addresses.join(", "), kind: "address" }) },
      { cell: (one) => ({ text: one.paused ? "paused" : "accepting", kind: stateKind(one.paused ? "full" : "serving") }) },
      { cell: (one) => count(one.open) + (one.max_connections ? " / " + count(one.max_connections) : "") },
      { cell: (one) => rate(one.accepted_rate) },
      { cell: (one) => count(one.accepted) },
      { cell: (one) => (one.queued === null ? NONE : count(one.queued) + " / " + count((one.queues ?? []).reduce((all, queue) => all + queue.limit, 0))) },
      { cell: (one) => ({ text: one.waiting, hint: one.homeless ? `${one.homeless} without a worker that has room` : "" }) },
      { cell: (one) => ({ text: refusals(one).map(([reason, number]) => `${reason} ${count(number)}`).join(", ") || "0", kind: refusals(one).length ? "reasons noted" : "reasons" }) },
    ]),
    times: new Table("times", [
      { cell: ({ metric }) => ({ text: metricName(metric.name), hint: metric.help }) },
      { cell: ({ series }) => labelWords(series.labels) },
      ...recentCells(),
      { cell: ({ series }) => count(series.histogram.count) },
      { cell: ({ series }) => span(series.histogram.p50) },
      { cell: ({ series }) => span(series.histogram.p90) },
      { cell: ({ series }) => span(series.histogram.p99) },
    ]),
    programs: new Table("programs", [
      { cell: (one) => one.pid },
      { cell: (one) => ({ text: one.command, kind: "command", hint: one.command }) },
      { cell: (one) => one.worker },
      { cell: (one) => duration(one.age) },
      { cell: (one) => duration(one.cpu) },
      { cell: (one) => size(one.memory) },
    ]),
    launchers: new Table("launchers", [
      { cell: (one) => one.pid },
      { cell: (one) => one.listener },
      { cell: (one) => one.user },
      { cell: (one) => one.worker },
      { cell: (one) => duration(one.age) },
      { cell: (one) => duration(one.cpu) },
      { cell: (one) => size(one.memory) },
      { cell: (one) => count(one.programs) },
    ]),
    refusals: new Table("refusals", [
      { cell: (one) => moment(one.time) },
      { cell: (one) => one.listener },
      { cell: (one) => ({ text: one.peer, kind: "address" }) },
      { cell: (one) => one.reason },
    ]),
    metrics: new Table("metrics", [
      { cell: ({ metric }) => ({ text: metric.name.replace(/^poolsrv_/, "").replaceAll("_", " "), hint: metric.help }) },
      { cell: ({ series }) => labelWords(series.labels) },
      { cell: ({ series }) => count(series.value) },
    ]),
  };
  function recentCells() {
    const of = (show) => ({ cell: ({ recent }) => (recent ? show(recent) : NONE) });
    return [of((counts) => count(sum(counts))), ...SHARES.map((share) => of((counts) => span(quantile(counts, share))))];
  }
}
