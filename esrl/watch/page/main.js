// The page: what is shown, which runs, over which axis.

import { Chart } from "./chart.js";
import { Store, UNDER_WAY, element, number } from "./data.js";
import { Film } from "./film.js";
import { Colors, List, facts, fits, sorted } from "./list.js";
import { curves, populationOf } from "./series.js";

const AXES = [["env_steps", "steps", "environment steps"], ["seconds", "seconds", "seconds"],
  ["seconds_training", "training seconds", "seconds of training"], ["generation", "generations", "generations"]];
const FIRST = 10;  // runs that are shown at first
const SOON = 1500, LATER = 4000;  // milliseconds between looks: while something trains, and else

const $ = (id) => document.getElementById(id);
const store = new Store(), colors = new Colors();
const state = { shown: new Set(), known: new Set(), picked: null, axis: "env_steps", metric: "return_mean", seeds: false, ...remembered() };
const charts = { returns: new Chart($("returns"), "Held-out return"), population: new Chart($("population"), "Population"),
  metrics: new Chart($("metrics"), "Metric") };
const film = new Film($("films"), $("screen"), $("caption"));
const list = new List($("runs"), toggle, pick);

function remembered() {
  try {
    const { axis, metric, seeds } = JSON.parse(localStorage.getItem("esrl-watch") ?? "{}");
    return { ...(AXES.some(([name]) => name === axis) && { axis }), ...(typeof metric === "string" && { metric }), seeds: seeds === true };
  } catch { return {}; }
}

function remember() {
  try {
    localStorage.setItem("esrl-watch", JSON.stringify({ axis: state.axis, metric: state.metric, seeds: state.seeds }));
  } catch { /* a browser that keeps nothing */ }
}

function toggle(key, shown) {
  if (shown) state.shown.add(key); else state.shown.delete(key);
  update();
}

function pick(key) {
  state.picked = key;
  state.chosen = true;
  state.shown.add(key);
  update();
}

function listed() {
  const runs = store.keys.map((key) => store.runs.get(key)).filter((run) => fits(run, $("filter").value.trim()));
  return sorted(runs, $("sort").value);
}

let due = false;
function update() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; show(); });
}

function show() {
  const runs = store.keys.map((key) => store.runs.get(key)), there = new Set(store.keys), seen = listed();
  for (const key of state.shown) if (!there.has(key)) state.shown.delete(key);
  const now = store.runs.get(state.picked), live = runs.find((run) => UNDER_WAY.has(run.state));
  if (!now) state.picked = (live ?? runs.find((run) => run.rows && !run.wrong) ?? runs[0])?.key ?? null;
  else if (live && !state.chosen && !UNDER_WAY.has(now.state)) state.picked = live.key;  // until a person has chosen
  const env = store.runs.get(state.picked)?.env;
  for (const run of runs.filter((each) => !state.known.has(each.key))) {  // new ones of an environment are shown, up to a number
    state.known.add(run.key);
    if (run.env === env && state.shown.size < FIRST) state.shown.add(run.key);
  }
  const ours = runs.filter((run) => state.shown.has(run.key));
  const owner = (key) => (state.seeds ? store.runs.get(key)?.group ?? key : key);
  colors.keep(new Set(ours.map((run) => owner(run.key))));
  const color = (key) => colors.of(owner(key));
  for (const run of [...ours].reverse()) color(run.key);  // the oldest first
  list.update(seen, state.shown, state.picked, color);
  const working = runs.filter((run) => UNDER_WAY.has(run.state)).length;
  document.title = working ? `${working} training – esrl watch` : "esrl watch";
  $("where").textContent = store.folders.join(", ");
  $("count").textContent = `${seen.length === runs.length ? "" : `${seen.length} of `}${runs.length} runs, ${ours.length} in the charts`;
  $("empty").hidden = runs.length > 0;
  $("emptywhere").textContent = store.folders.join(", ");
  $("charts").hidden = !runs.length;
  $("detail").hidden = !state.picked;
  if (!runs.length) return;
  showCharts(ours, color);
  showDetail(store.runs.get(state.picked));
}

function showCharts(ours, color) {
  const [, , label] = AXES.find(([name]) => name === state.axis);
  const look = { axis: state.axis, seeds: state.seeds, color };
  const scores = ours.map((run) => [run, store.scores(run.key)]);
  const waiting = scores.some(([run, data]) => !data && run.rows);
  const returns = curves(scores, "mean", look);
  charts.returns.set(returns, label, !ours.length ? "Choose runs on the left."
    : waiting ? "Reading …" : ours.some((run) => run.state === "compiling") ? "Compiling: the first evaluation comes after it."
    : "No held-out evaluation in these runs.");
  $("n-returns").textContent = !returns.length ? "" : returns.some((one) => one.runs > 1)
    ? "mean and one standard deviation over seeds (of a single run: over episodes)"
    : "mean and one standard deviation over episodes";
  const names = new Set(ours.flatMap((run) => store.about(run.key)?.metrics ?? []));
  chooseMetric(names);
  const columns = ours.map((run) => [run, run.rows && store.about(run.key)?.metrics.includes(state.metric) ? store.series(run.key, [state.metric]) : null]);
  charts.metrics.set(curves(columns, state.metric, look), label, !ours.length ? "Choose runs on the left."
    : columns.some(([run, data]) => run.rows && !data && (!store.about(run.key) || store.about(run.key).metrics.includes(state.metric)))
      ? "Reading …" : "Nothing of it is written.");
  const run = store.runs.get(state.picked), about = run && store.about(run.key);
  const population = populationOf(about?.metrics ?? [], run && state.shown.has(run.key) ? color(run.key).ink : "--accent");
  const data = population && run.rows ? store.series(run.key, population.names) : null;
  charts.population.set(data ? population.curves(data, state.axis) : [], label,
    !run || !run.rows || !about ? "Nothing of it is written yet." : population ? "Reading …" : "This run has no population: evolution strategies have one.");
  $("n-population").textContent = population?.note ?? "";
  $("n-population").title = run?.name ?? "";
}

function chooseMetric(names) {
  const select = $("metric");
  const wanted = [...names].filter((name) => !["generation", "env_steps"].includes(name)).sort();
  if (!wanted.includes(state.metric)) wanted.unshift(state.metric);
  if (wanted.join() !== [...select.options].map((option) => option.value).join())
    select.replaceChildren(...wanted.map((name) => element("option", { value: name, textContent: name })));
  select.value = state.metric;
}

let shownRecipe = null;
function showDetail(run) {
  if (!run) return;
  const about = store.about(run.key);
  $("d-name").textContent = run.name;
  $("d-what").textContent = [run.env, run.agent, run.seed === null ? "" : `seed ${run.seed}`].filter(Boolean).join(" · ");
  const wrong = [run.sentence, run.wrong].filter(Boolean).join(". ");
  $("d-wrong").hidden = !wrong;
  $("d-wrong").textContent = wrong;
  film.update(run);
  $("facts").replaceChildren(...facts(run, about?.path).flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: value })]));
  const text = about?.recipe ?? "";
  if (text !== shownRecipe) $("recipe").textContent = shownRecipe = text;
}

function controls() {
  for (const [name, text, title] of AXES) {
    const input = element("input", { type: "radio", name: "axis", value: name, checked: name === state.axis });
    input.addEventListener("change", () => { state.axis = name; remember(); update(); });
    $("axis").append(element("label", { title }, input, text));
  }
  $("seeds").checked = state.seeds;
  $("seeds").addEventListener("change", () => { state.seeds = $("seeds").checked; remember(); update(); });
  $("metric").addEventListener("change", () => { state.metric = $("metric").value; remember(); update(); });
  $("filter").addEventListener("input", update);
  $("sort").addEventListener("change", update);
  $("all").addEventListener("click", () => { for (const run of listed()) state.shown.add(run.key); update(); });
  $("none").addEventListener("click", () => { for (const run of listed()) state.shown.delete(run.key); update(); });
  store.changed = update;
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
}

let timer = 0, looking = false;
async function look() {
  clearTimeout(timer);
  if (looking) return;
  looking = true;
  try {
    if (await store.poll() || $("charts").hidden === $("empty").hidden) update();
    else if (state.picked) showDetail(store.runs.get(state.picked));
    $("offline").hidden = true;
  } catch { $("offline").hidden = false; }
  looking = false;
  const working = [...store.runs.values()].some((run) => UNDER_WAY.has(run.state));
  if (!document.hidden) timer = setTimeout(look, working ? SOON : LATER);
}

controls();
look();
