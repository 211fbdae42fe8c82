// The last five minutes, kept in the page: the server keeps none.

const KEPT = 300; // seconds
const MOST_SAMPLES = 400; // even if the server sends more often than once a second
const RATE_WINDOW = 5; // seconds: rates are means over these, as in `poolsrv status`
const LATENCY_WINDOW = 15; // seconds: percentiles are of the values that came in these
const SHARES = [0.5, 0.9, 0.99];
const MOST_TIMES = 12; // metrics of times that can be plotted
const GAP = 6; // seconds without a document, from which on a line is interrupted
const MINUTE = 60;
const MOST_SERIES = 200; // of which the last minute is known

class History {
  constructor() {
    this.samples = [];
    this.times = []; // names of metrics that can be plotted
    this.minute = []; // every 10 s, the counts of each series of times
  }

  get latest() {
    return this.samples[this.samples.length - 1];
  }

  add(status) {
    const before = this.latest;
    const { server, totals } = status;
    const run = server.pid + " " + server.started_at;
    const sameRun = before !== undefined && before.run === run;
    // The uptime is by a clock that nobody sets. The points of one run keep its distances.
    const at = !before ? status.time : before.at + (sameRun ? server.uptime - before.uptime : Math.max(status.time - before.at, 0.001));
    if (before && at <= before.at) return false; // the same document once more
    const refused = status.listeners.reduce((all, one) => all + Object.values(one.refusals).reduce((a, b) => a + b, 0), 0);
    const counters = { accepted: totals.accepted, events: totals.events, bytesIn: totals.bytes_in, bytesOut: totals.bytes_out, cpu: totals.cpu, refused };
    const sample = {
      at, run, uptime: server.uptime, counters,
      gap: before !== undefined && at - before.at > GAP,
      // Counts that never go back, of what has grown since the page was opened.
      sums: mapValues(counters, (value, name) => (before ? before.sums[name] + grown(value, before.counters[name]) : 0)),
      times: this.#times(status),
      timeSums: new Map(),
      percentiles: new Map(),
      values: { open: totals.open, memory: totals.memory, programs: totals.programs },
    };
    for (const [name, counts] of sample.times) {
      const last = before?.times.get(name);
      // A metric that has just appeared in a running server has grown from nothing.
      const more = before ? grownCounts(counts, last) : emptyCounts();
      const former = before?.timeSums?.get(name);
      sample.timeSums.set(name, former ? former.map((times, index) => times + more[index]) : more);
    }
    if (before) before.times = undefined; // only the latest are needed
    this.samples.push(sample);
    while (this.samples.length > MOST_SAMPLES || at - this.samples[0].at > KEPT) this.samples.shift();
    this.#rates(sample, totals);
    this.#percentiles(sample);
    this.#keepMinute(status, at);
    return true;
  }

  // The times that have been measured, by metric, but not those of the listener that serves this page: the page would
  // show itself.
  #times(status) {
    const own = new Set(status.listeners.filter((one) => one.handler === "status").map((one) => one.name));
    const found = new Map();
    for (const metric of status.metrics ?? []) {
      if (metric.kind !== "histogram" || !metric.name.endsWith("_seconds")) continue;
      const counts = emptyCounts();
      for (const one of metric.series) {
        if (one.histogram && !own.has(one.labels.listener)) addBuckets(counts, one.histogram.buckets);
      }
      if (found.size < MOST_TIMES) found.set(metric.name, counts);
    }
    this.times = [...found.keys()];
    return found;
  }

  #rates(sample, totals) {
    const first = this.#since(sample.at - RATE_WINDOW - 0.5);
    const seconds = sample.at - first.at;
    const perSecond = (name) => (sample.sums[name] - first.sums[name]) / seconds;
    Object.assign(sample.values, seconds
      ? { accepted: perSecond("accepted"), events: perSecond("events"), bytesIn: perSecond("bytesIn"), bytesOut: perSecond("bytesOut"), cpu: 100 * perSecond("cpu"), refused: perSecond("refused") }
      : { accepted: totals.accepted_rate, events: totals.events_rate, bytesIn: totals.bytes_in_rate, bytesOut: totals.bytes_out_rate, cpu: totals.cpu_percent, refused: 0 });
  }

  // The first sample from a time on; never one before a gap, unless there is only the latest after it.
  #since(at) {
    let index = this.samples.length - 1;
    while (index > 0 && this.samples[index - 1].at >= at) index--;
    return this.samples[index];
  }

  // The percentiles of each metric's values in the seconds before the latest sample, which are then all that is kept.
  #percentiles(sample) {
    const first = this.#since(sample.at - LATENCY_WINDOW - 0.5);
    for (const [name, sums] of sample.timeSums) {
      const counts = first === sample ? emptyCounts() : grownCounts(sums, first.timeSums?.get(name));
      sample.percentiles.set(name, SHARES.map((share) => quantile(counts, share)));
    }
    for (const old of this.samples) if (old.at < first.at) old.timeSums = undefined;
  }

  #keepMinute(status, at) {
    if (this.minute.length && at - this.minute[this.minute.length - 1].at < 10) return;
    const series = new Map();
    for (const metric of status.metrics ?? []) {
      for (const one of metric.series) {
        if (one.histogram && series.size < MOST_SERIES) series.set(seriesKey(metric, one), addBuckets(emptyCounts(), one.histogram.buckets));
      }
    }
    this.minute.push({ at, series });
    while (this.minute.length > 1 && this.minute[1].at <= at - MINUTE) this.minute.shift();
  }

  // What a series has got in the last minute, or since the page was opened; undefined if that is not known.
  lastMinute(metric, series) {
    const before = this.minute[0]?.series.get(seriesKey(metric, series));
    return before && grownCounts(addBuckets(emptyCounts(), series.histogram.buckets), before);
  }
}

function seriesKey(metric, series) {
  return metric.name + "\n" + JSON.stringify(series.labels);
}

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value, name)]));
}
