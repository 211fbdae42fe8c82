// What has changed between two documents, in words: for the list on the page, and for screen readers.

const MOST_CHANGES = 40;

// Name what differs, the most important last.
function changesBetween(before, now) {
  if (before.server.pid !== now.server.pid || before.server.started_at !== now.server.started_at) {
    return [`another server answers: pid ${now.server.pid}, up ${duration(now.server.uptime)}`];
  }
  return [
    ...listenerChanges(before.listeners, now.listeners),
    ...(before.server.generation === now.server.generation ? workerChanges(before, now) : []),
    ...poolChanges(before.server, now.server),
  ];
}

function allWorkers(status) {
  return [...(status.workers ?? []), ...(status.apart ?? [])];
}

function workerName(worker) {
  return worker.slot < 0 ? "the worker apart" : `worker ${worker.slot}`;
}

function workerChanges(before, now) {
  const found = [];
  const present = new Map(allWorkers(now).filter((one) => one.pid).map((one) => [one.pid, one]));
  const former = new Map(allWorkers(before).filter((one) => one.pid).map((one) => [one.pid, one]));
  const fresh = [...present.values()].filter((one) => !former.has(one.pid));
  for (const [pid, one] of former) {
    const same = present.get(pid);
    if (!same) {
      const successor = fresh.find((other) => other.slot === one.slot);
      if (successor) fresh.splice(fresh.indexOf(successor), 1);
      found.push(`${workerName(one)}: pid ${pid} has ended` + (successor ? `, pid ${successor.pid} replaces it` : ""));
    } else if (same.state !== one.state) {
      found.push(`${workerName(one)} (pid ${pid}): ${one.state} → ${same.state}`);
    }
  }
  for (const one of fresh) found.push(`${workerName(one)}: pid ${one.pid} is ${one.state}`);
  return found;
}

function listenerChanges(before, now) {
  const names = (listeners) => new Set(listeners.map((one) => one.name));
  const [former, present] = [names(before), names(now)];
  return [
    ...[...present].filter((name) => !former.has(name)).map((name) => `listener ${name} is new`),
    ...[...former].filter((name) => !present.has(name)).map((name) => `listener ${name} is gone`),
  ];
}

function poolChanges(before, now) {
  const found = [];
  if (now.state !== before.state) found.push(`the pool is ${now.state}`);
  if (now.restarts > before.restarts) found.push("the pool has crashed and been replaced");
  if (now.last_reload && now.last_reload.at !== before.last_reload?.at) {
    const { ok, errors } = now.last_reload;
    found.push(ok ? `reload done: generation ${now.generation} serves` : `reload failed: ${errors[0] ?? "see the log"}`);
  }
  const left = new Set(now.leaving.map((pool) => pool.generation));
  for (const pool of before.leaving) if (!left.has(pool.generation)) found.push(`generation ${pool.generation} has drained`);
  return found;
}

class Changes {
  constructor() {
    this.list = document.getElementById("changes");
    this.none = document.getElementById("no-changes");
    this.live = document.getElementById("announcer");
    this.waiting = [];
  }

  note(words, at) {
    if (!words.length) return;
    this.#announce(words);
    for (const text of words) {
      const item = html("li", {}, html("time", { datetime: new Date(at * 1000).toISOString() }, clock(at)), html("span", {}, text));
      this.list.prepend(item);
    }
    while (this.list.children.length > MOST_CHANGES) this.list.lastElementChild.remove();
    this.none.hidden = true;
  }

  // One text for all that comes at once, or the last would replace the others.
  #announce(words) {
    if (!this.waiting.length) setTimeout(() => (this.live.textContent = this.waiting.splice(0).join(". ")), 100);
    this.waiting.push(...words);
  }
}
