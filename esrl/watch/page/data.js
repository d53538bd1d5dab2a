// What the server knows, and numbers as people read them.

export async function get(path, query) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

export const UNDER_WAY = new Set(["compiling", "training", "evaluating"]);

// All runs by key, and their columns, which are asked for again when a run has more rows.
export class Store {
  constructor() {
    this.number = 0;
    this.keys = [];
    this.runs = new Map();
    this.folders = [];
    this.changed = () => {};
    this.cache = new Map();
  }

  async poll() {
    const news = await get("api/runs", { since: this.number });
    if (news.number < this.number) this.runs.clear();  // another server answers
    for (const run of news.runs) this.runs.set(run.key, run);
    this.number = news.number;
    this.keys = news.keys.filter((key) => this.runs.has(key));
    const there = new Set(this.keys);
    for (const key of this.runs.keys()) if (!there.has(key)) this.runs.delete(key);
    for (const [name, kept] of this.cache) if (!there.has(kept.key)) this.cache.delete(name);
    this.folders = news.folders;
    return news.runs.length;
  }

  // What is known of an answer now; it is asked for when it is missing or the run has more rows than it had.
  ask(path, key, metrics = []) {
    const name = [path, key, ...metrics].join("\n");
    const run = this.runs.get(key);
    let kept = this.cache.get(name);
    if (!kept) this.cache.set(name, (kept = { key, rows: -1, data: null, asked: false }));
    if (run && !kept.asked && kept.rows !== run.rows) {
      kept.asked = true;
      const rows = run.rows;
      get(path, [["run", key], ...metrics.map((metric) => ["metric", metric])])
        .then((data) => { kept.data = data; kept.rows = data.rows ?? rows; if (kept.rows < rows) kept.rows = rows; })
        .catch(() => { kept.rows = rows; })
        .finally(() => { kept.asked = false; this.changed(); });
    }
    return kept.data;
  }

  scores(key) { return this.ask("api/scores", key); }
  series(key, metrics) { return this.ask("api/series", key, metrics); }
  about(key) { return this.ask("api/run", key); }
}

export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  const text = size >= 1000 ? value.toFixed(size < 1e4 ? 1 : 0) : Number(value.toPrecision(digits)).toString();
  return text.replace(/\.0$/, "").replace("-", "−");
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  if (s < 60) return seconds < 10 ? `${Number(seconds.toFixed(1))} s` : `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
