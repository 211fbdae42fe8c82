// Numbers for people, in the form that `poolsrv status` has in the terminal.
"use strict";

const NONE = "–";

function count(number) {
  if (number < 1e4) return number.toFixed(0);
  if (number < 1e6) return (number / 1e3).toFixed(1) + "k";
  if (number < 1e9) return (number / 1e6).toFixed(1) + "M";
  return (number / 1e9).toFixed(1) + "G";
}

function rate(number) {
  return number > 0 && number < 10 ? number.toFixed(1) : count(number);
}

function size(number) {
  if (number < 1024) return number.toFixed(0) + " B";
  for (const unit of ["KiB", "MiB", "GiB"]) {
    number /= 1024;
    if (number < 1024) return number.toFixed(1) + " " + unit;
  }
  return (number / 1024).toFixed(1) + " TiB";
}

function duration(seconds) {
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " min";
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return hours + " h " + String(minutes % 60).padStart(2, "0") + " min";
  return Math.floor(hours / 24) + " d " + (hours % 24) + " h";
}

// A short time with three digits: "250 µs", "3.1 ms", "0.25 s".
function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  for (const [limit, factor, unit] of [[1e-3, 1e6, "µs"], [1, 1e3, "ms"], [60, 1, "s"]]) {
    if (seconds < limit) return String(Number((seconds * factor).toPrecision(3))) + " " + unit;
  }
  return duration(seconds);
}

function percent(number) {
  return number.toFixed(number > 0 && number < 10 ? 1 : 0) + " %";
}

function counted(number, noun) {
  return count(number) + " " + noun + (number === 1 ? "" : "s");
}

// The reader's local time of a Unix time.
function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function moment(at) {
  const day = new Date(at * 1000);
  return day.toDateString() === new Date().toDateString() ? clock(at) : day.toLocaleDateString() + " " + clock(at);
}

function metricName(name) {
  return name.replace(/^poolsrv_/, "").replace(/_seconds$/, "").replaceAll("_", " ");
}

// The labels of a series in short: the names of listener and plugin need no more.
function labelWords(labels) {
  const plain = (name) => name === "listener" || name === "plugin";
  return Object.entries(labels).map(([name, value]) => (plain(name) ? value : name + "=" + value)).join(" ");
}
