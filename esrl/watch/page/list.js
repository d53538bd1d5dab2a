// The list of runs: what each is, what it does, what it reached.

import { UNDER_WAY, count, duration, element, number } from "./data.js";

const COLORS = 10;

// A color for each run that is shown, the same as long as it is; after ten they come again, dashed.
export class Colors {
  constructor() { this.slots = new Map(); }

  of(key) {
    if (!this.slots.has(key)) {
      const taken = new Set(this.slots.values());
      let slot = 0;
      while (taken.has(slot)) slot++;
      this.slots.set(key, slot);
    }
    const slot = this.slots.get(key);
    return { ink: `--c${slot % COLORS}`, dash: Math.floor(slot / COLORS) % 2 === 1 };
  }

  keep(keys) { for (const key of this.slots.keys()) if (!keys.has(key)) this.slots.delete(key); }
}

export function stateOf(run) {
  const percent = run.progress === null || run.progress === undefined ? "" : `${Math.floor(100 * run.progress)} %`;
  if (run.state === "finished") return "finished";
  return [run.state, run.state === "compiling" && !run.progress ? "" : percent].filter(Boolean).join(" · ");
}

export function leftOf(run) {
  if (!UNDER_WAY.has(run.state)) return run.seconds ? `${duration(run.seconds)}` : "";
  return run.seconds_left === null ? "" : `${duration(run.seconds_left)} left`;
}

class Item {
  constructor(key, list) {
    this.key = key;
    this.check = element("input", { type: "checkbox" });
    this.check.addEventListener("change", () => list.toggled(key, this.check.checked));
    this.name = element("button", { type: "button", className: "name" });
    this.name.addEventListener("click", () => list.picked(key));
    this.score = element("b");
    this.what = element("span", { className: "what" });
    this.best = element("span");
    this.reached = element("span", { className: "reached" }, this.score, this.best);
    this.words = element("span");
    this.state = element("span", { className: "state" }, element("span", { className: "mark" }), this.words);
    this.fill = element("span", { className: "fill" });
    this.track = element("span", { className: "track" }, this.fill);
    this.track.setAttribute("role", "progressbar");
    this.wrong = element("span", { className: "wrong" });
    this.li = element("li", { className: "run" }, this.check, this.name, this.what, this.state, this.reached,
      this.track, this.wrong);
  }

  update(run, shown, picked, color) {
    this.li.className = `run ${run.state}${picked ? " picked" : ""}`;
    this.name.toggleAttribute("aria-current", picked);
    this.name.textContent = this.name.title = run.name;
    this.check.checked = shown;
    this.check.title = shown ? "Take out of the charts" : "Show in the charts";
    this.check.setAttribute("aria-label", `Show ${run.name} in the charts`);
    this.li.style.setProperty("--own", color ? `var(${color.ink})` : "");
    const seed = run.seed === null ? "" : ` · seed ${run.seed}`;
    this.what.textContent = [run.env.split("/").at(-1), run.agent].filter(Boolean).join(" · ") + seed;
    this.what.title = [run.env, run.agent].filter(Boolean).join(" · ") + seed;
    this.score.textContent = run.last === null ? "" : number(run.last);
    this.score.title = run.last === null ? "" : `last held-out return ${number(run.last)} ± ${number(run.last_std)}`;
    this.best.textContent = run.best === null || run.best === run.last ? "" : `best ${number(run.best)}`;
    this.reached.hidden = run.last === null;
    this.best.hidden = !this.best.textContent;
    this.best.title = run.best === null || run.best === run.last ? "" : `best held-out return, after generation ${run.best_generation}`;
    this.words.textContent = [stateOf(run), leftOf(run)].filter(Boolean).join(" · ");
    const part = run.state === "finished" ? 1 : run.progress ?? 0;
    this.fill.style.width = `${(100 * part).toFixed(1)}%`;
    this.track.setAttribute("aria-valuenow", Math.round(100 * part));
    this.track.setAttribute("aria-label", `Progress of ${run.name}`);
    this.wrong.textContent = run.sentence || run.wrong || "";
    this.wrong.hidden = !this.wrong.textContent;
  }
}

export class List {
  // toggled(key, shown) and picked(key) are called when a person does so.
  constructor(place, toggled, picked) {
    Object.assign(this, { place, toggled, picked });
    this.items = new Map();
  }

  update(runs, shown, picked, color) {
    const wanted = runs.map((run) => {
      if (!this.items.has(run.key)) this.items.set(run.key, new Item(run.key, this));
      const item = this.items.get(run.key);
      item.update(run, shown.has(run.key), run.key === picked, shown.has(run.key) ? color(run.key) : null);
      return item.li;
    });
    const there = [...this.place.children];
    if (wanted.length !== there.length || wanted.some((li, i) => li !== there[i])) {
      const held = document.activeElement;
      this.place.replaceChildren(...wanted);
      if (held && held.isConnected && held !== document.activeElement) held.focus();
    }
  }
}

// Whether every word of a text is somewhere in what is said of a run.
export function fits(run, text) {
  const said = `${run.name} ${run.env} ${run.agent} ${run.state} seed ${run.seed}`.toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => said.includes(word));
}

export function sorted(runs, by) {
  if (by === "name") return [...runs].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  if (by === "best") return [...runs].sort((a, b) => (b.best ?? -Infinity) - (a.best ?? -Infinity) || 0);
  return runs;
}

export function facts(run, path) {
  const spread = run.last_std === null ? "" : ` ± ${number(run.last_std)}`;
  const rate = run.env_steps_per_second;
  return [
    ["state", stateOf(run)],
    ["time left", UNDER_WAY.has(run.state) ? duration(run.seconds_left) : null],
    ["last update", UNDER_WAY.has(run.state) && run.updated ? `${duration(Math.max(Date.now() / 1000 - run.updated, 0))} ago` : null],
    ["held-out return", run.last === null ? null : number(run.last) + spread],
    ["best", run.best === null ? null : `${number(run.best)} (generation ${run.best_generation})`],
    ["at the start", run.start === null ? null : number(run.start)],
    ["generation", run.generation ?? null],
    ["env steps", run.env_steps === null ? null : count(run.env_steps)],
    ["env steps a second", rate ? count(rate) : null],
    ["seconds", run.seconds === null ? null : duration(run.seconds)],
    ["folder", path || null],
  ].filter(([, value]) => value !== null && value !== undefined);
}
