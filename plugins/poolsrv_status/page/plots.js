// Small plots of the last minutes, as SVG. All of them share one cursor: a moment that the pointer or the arrow keys
// choose, for which each shows its values instead of the latest.

const HEIGHT = 92; // pixels
const TOP = 6, BOTTOM = 16; // for the labels
const LEAST_SHOWN = 60; // seconds: the plots begin with these, and grow to all that is kept

// A round number that is not below: 1, 2 or 5 times a power of ten; of bytes, the same times a power of 1024.
function roundUp(value, bytes = false) {
  let unit = 1;
  if (bytes) while (value >= unit * 1024) unit *= 1024;
  const inUnits = value / unit;
  const power = 10 ** Math.floor(Math.log10(inUnits));
  return unit * power * [1, 2, 3, 5, 10].find((digit) => inUnits <= digit * power * 1.0001);
}

class Plot {
  // lines: for each, its `label` and `value(sample)`, null where there is none.
  constructor(plots, { title, lines, format, least, log = false, bytes = false }) {
    Object.assign(this, { plots, title, lines, format, least, log, bytes, width: 0 });
    this.heading = html("h3", {}, title);
    this.readouts = lines.map(() => html("b"));
    const keys = lines.map((line, index) =>
      html("span", { class: "key key" + index }, ...(line.label ? [swatch(index), line.label + " "] : []), this.readouts[index]));
    this.picture = svg("svg", { "aria-hidden": "true", height: HEIGHT });
    this.summary = html("p", { class: "summary" });
    this.field = html("div", {
      class: "field", tabindex: "0", role: "slider", "aria-label": title + ", a moment of the last 5 minutes",
      "aria-valuemin": -KEPT, "aria-valuemax": 0, "aria-valuenow": 0, "aria-valuetext": "latest",
    }, this.picture);
    this.element = html("figure", { class: "plot" }, this.heading, html("div", { class: "keys" }, ...keys), this.field, html("figcaption", {}, this.summary));
    this.field.addEventListener("pointermove", (event) => this.#point(event));
    this.field.addEventListener("pointerdown", (event) => this.#point(event));
    this.field.addEventListener("pointerleave", () => plots.moveTo(null));
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("blur", () => plots.moveTo(null));
    new ResizeObserver(() => {
      this.width = this.field.clientWidth;
      this.draw();
    }).observe(this.field);
  }

  #point(event) {
    const { samples, latest } = this.plots.history;
    if (!latest) return;
    const left = this.field.getBoundingClientRect().left;
    const at = latest.at - this.plots.seconds * (1 - (event.clientX - left) / this.width);
    this.plots.moveTo(samples.reduce((best, one) => (Math.abs(one.at - at) < Math.abs(best.at - at) ? one : best)));
  }

  #key(event) {
    const { samples } = this.plots.history;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -30, PageUp: 30, Home: -samples.length, End: samples.length };
    if (event.key === "Escape") this.plots.moveTo(null);
    if (!(event.key in steps) || !samples.length || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const last = samples.length - 1;
    const now = this.plots.cursor ? samples.indexOf(this.plots.cursor) : last;
    this.plots.moveTo(samples[Math.min(Math.max(now + steps[event.key], 0), last)]);
    this.tell();
  }

  // What a screen reader says of the cursor. It changes by keys alone, or it would be read out each second.
  tell() {
    const { latest } = this.plots.history;
    const sample = this.plots.cursor ?? latest;
    if (!sample) return;
    const values = this.lines.map((line) => (line.label ? line.label + " " : "") + this.#words(line.value(sample)));
    this.field.setAttribute("aria-valuenow", Math.round(sample.at - latest.at));
    this.field.setAttribute("aria-valuetext", clock(sample.at) + ": " + values.join(", "));
  }

  #words(value) {
    return value === null || value === undefined ? NONE : this.format(value);
  }

  draw() {
    const { history, cursor } = this.plots;
    const { samples, latest } = history;
    if (!latest || !this.width) return;
    const shown = cursor ?? latest;
    this.lines.forEach((line, index) => setText(this.readouts[index], this.#words(line.value(shown))));
    const all = samples.flatMap((one) => this.lines.map((line) => line.value(one))).filter((value) => value !== null && value !== undefined);
    const scale = this.#scale(all);
    const { seconds } = this.plots;
    const x = (one) => this.width * (1 - (latest.at - one.at) / seconds);
    const parts = scale.ticks.map((tick) => svg("line", { class: "grid", x1: 0, x2: this.width, y1: scale.y(tick), y2: scale.y(tick) }));
    this.lines.forEach((line, index) => {
      const runs = this.#runs(samples, line, x, scale.y);
      if (this.lines.length === 1) parts.push(svg("path", { class: "area", d: runs.map(areaOf(scale.floor)).join("") }));
      parts.push(svg("path", { class: "line line" + index, d: runs.map(lineOf).join("") }));
    });
    for (const tick of scale.ticks) parts.push(svg("text", { class: "tick", x: 2, y: scale.y(tick) - 3 }, this.format(tick).replace(".0 ", " ")));
    parts.push(svg("text", { class: "tick", x: 2, y: HEIGHT - 3 }, duration(seconds) + " ago"));
    parts.push(svg("text", { class: "tick", x: this.width - 2, y: HEIGHT - 3, "text-anchor": "end" }, "now"));
    for (const sample of samples) {
      if (sample.changed) parts.push(svg("path", { class: "mark", d: `M${x(sample).toFixed(1)} ${scale.floor}l4 6h-8z` }));
    }
    if (cursor) parts.push(...this.#cursor(cursor, x(cursor), scale));
    this.picture.setAttribute("width", this.width);
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.picture.replaceChildren(...parts);
    this.#summarize(samples);
  }

  #cursor(cursor, x, scale) {
    const points = this.lines.map((line) => line.value(cursor)).filter((value) => value !== null && value !== undefined);
    const late = x > this.width / 2;
    return [
      svg("line", { class: "cursor", x1: x, x2: x, y1: 0, y2: scale.floor }),
      ...points.map((value) => svg("circle", { class: "point", cx: x, cy: scale.y(value), r: 3 })),
      svg("text", { class: "moment", x: x + (late ? -5 : 5), y: HEIGHT - 3, "text-anchor": late ? "end" : "start" }, clock(cursor.at)),
    ];
  }

  #scale(values) {
    const floor = HEIGHT - BOTTOM;
    const most = Math.max(this.least, ...values);
    if (!this.log) {
      const top = roundUp(most, this.bytes);
      return { floor, ticks: [top, top / 2], y: (value) => floor - ((floor - TOP - 8) * value) / top };
    }
    const low = Math.floor(Math.log10(Math.max(Math.min(this.least, ...values.filter((value) => value > 0)), 1e-6)));
    const high = Math.max(Math.ceil(Math.log10(most)), low + 1);
    const every = Math.ceil((high - low) / 3); // at most three labels
    const ticks = Array.from({ length: high - low }, (_, index) => 10 ** (high - index)).filter((_, index) => index % every === 0);
    const y = (value) => floor - ((floor - TOP - 8) * (Math.log10(Math.max(value, 10 ** low)) - low)) / (high - low);
    return { floor, ticks, y };
  }

  // The points of a line, as lists without interruption.
  #runs(samples, line, x, y) {
    const runs = [];
    let open = false;
    for (const sample of samples) {
      const value = line.value(sample);
      if (value === null || value === undefined) {
        open = false;
        continue;
      }
      if (!open || sample.gap) runs.push([]);
      open = true;
      runs[runs.length - 1].push([x(sample).toFixed(1), y(value).toFixed(1)]);
    }
    return runs;
  }

  // The text that says the same as the picture.
  #summarize(samples) {
    const line = this.lines[this.lines.length - 1];
    const values = samples.map((one) => line.value(one)).filter((value) => value !== null && value !== undefined);
    const label = line.label ? line.label + " " : "";
    if (!values.length) return setText(this.summary, "no values in the last 5 min");
    const mean = values.reduce((a, b) => a + b) / values.length;
    const kept = duration(samples[samples.length - 1].at - samples[0].at);
    return setText(this.summary, `${label}in ${kept}: ${this.format(Math.min(...values))} to ${this.format(Math.max(...values))}, mean ${this.format(mean)}`);
  }
}

function swatch(index) {
  const picture = svg("svg", { class: "swatch", width: 18, height: 6, "aria-hidden": "true" });
  picture.append(svg("path", { class: "line line" + index, d: "M0 3H18" }));
  return picture;
}

function lineOf(points) {
  // A single point has no length: make it a dash.
  return "M" + points.map((point) => point.join(" ")).join("L") + (points.length === 1 ? "h1.5" : "");
}

function areaOf(floor) {
  return (points) => `M${points[0][0]} ${floor}L${points.map((point) => point.join(" ")).join("L")}L${points[points.length - 1][0]} ${floor}Z`;
}

class Plots {
  constructor(history, place) {
    this.history = history;
    this.place = place;
    this.cursor = null; // a sample
    this.all = [];
  }

  add(options) {
    const plot = new Plot(this, options);
    this.all.push(plot);
    this.place.append(plot.element);
    return plot;
  }

  // How much time the plots show.
  get seconds() {
    const { samples, latest } = this.history;
    const kept = latest.at - samples[0].at;
    return Math.min(Math.max(LEAST_SHOWN, kept), KEPT);
  }

  moveTo(sample) {
    if (sample === this.cursor) return;
    this.cursor = sample;
    this.draw();
  }

  draw() {
    if (this.cursor && !this.history.samples.includes(this.cursor)) this.cursor = this.history.samples[0] ?? null;
    for (const plot of this.all) plot.draw();
  }
}
