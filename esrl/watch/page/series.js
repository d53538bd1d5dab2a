// From the server's columns to what a chart draws: curves of runs, means over seeds, bands of a population.

const POINTS = 200;  // of a mean over seeds

// A run's column over an axis, without the places where either is missing, in the order of the axis.
function points(data, axis, name, spread) {
  const kept = [];
  const x = data[axis], y = data[name] ?? [];
  for (let i = 0; i < x.length; i++)
    if (x[i] !== null && y[i] !== null && y[i] !== undefined) kept.push([x[i], y[i], spread?.[i] ?? null]);
  kept.sort((a, b) => a[0] - b[0]);
  return { x: kept.map((p) => p[0]), y: kept.map((p) => p[1]), spread: spread ? kept.map((p) => p[2]) : null };
}

// What a chart draws of a column of several runs. Where `look.seeds`, runs that differ in their seeds become one.
export function curves(columns, name, look) {
  const found = columns.filter(([, data]) => data).map(([run, data]) => ({ run, ...points(data, look.axis, name, data.std) }));
  if (!look.seeds) return found.map((one) => curve(one, look));
  const groups = Map.groupBy ? Map.groupBy(found, (one) => one.run.group ?? one.run.key) : grouped(found);
  return [...groups.values()].map((ones) => (ones.length > 1 ? mean(ones, look) : curve(ones[0], look)));
}

function grouped(found) {
  const groups = new Map();
  for (const one of found) {
    const key = one.run.group ?? one.run.key;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return groups;
}

function curve({ run, x, y, spread }, look) {
  const { ink, dash } = look.color(run.key);
  const sides = spread ? { spread, low: y.map((v, i) => v - (spread[i] ?? 0)), high: y.map((v, i) => v + (spread[i] ?? 0)) } : {};
  return { x, y, ...sides, label: run.name, ink, dash, points: Boolean(spread), width: spread ? 2 : 1.4, runs: 1 };
}

function mean(ones, look) {
  const full = ones.filter((one) => one.x.length);
  const run = ones[0].run, { ink, dash } = look.color(run.key);
  const from = Math.max(...full.map((one) => one.x[0])), to = Math.min(...full.map((one) => one.x.at(-1)));
  const label = `${run.env} · ${run.agent} (${full.length} seeds)`;
  const shape = { label, ink, dash, points: Boolean(ones[0].spread), width: 2.2, runs: full.length };
  if (!full.length || from > to) return { x: [], y: [], ...shape };
  let x = [...new Set(full.flatMap((one) => one.x))].filter((v) => v >= from && v <= to).sort((a, b) => a - b);
  if (x.length > POINTS) x = Array.from({ length: POINTS }, (_, i) => x[Math.round((i * (x.length - 1)) / (POINTS - 1))]);
  const values = full.map((one) => between(one, x));
  const y = x.map((_, i) => values.reduce((sum, v) => sum + v[i], 0) / values.length);
  const spread = x.map((_, i) => Math.sqrt(values.reduce((sum, v) => sum + (v[i] - y[i]) ** 2, 0) / values.length));
  return { x, y, spread, low: y.map((v, i) => v - spread[i]), high: y.map((v, i) => v + spread[i]), ...shape };
}

// A curve at other places, linear between its own.
function between(one, x) {
  let i = 0;
  return x.map((at) => {
    while (i + 1 < one.x.length && one.x[i + 1] < at) i++;
    const next = Math.min(i + 1, one.x.length - 1), gap = one.x[next] - one.x[i];
    const part = gap > 0 ? Math.min(Math.max((at - one.x[i]) / gap, 0), 1) : 0;
    return one.y[i] + part * (one.y[next] - one.y[i]);
  });
}

const QUANTILES = ["fitness_q05", "fitness_q25", "fitness_q50", "fitness_q75", "fitness_q95"];
const RANGE = ["fitness_min", "fitness_mean", "fitness_max"];

// Which columns show a run's population, and how; null where it has none.
export function populationOf(metrics, ink) {
  const has = (names) => names.every((name) => metrics.includes(name));
  const shape = { ink, sorted: false };
  const sorted = (data, axis) => {
    const order = data[axis].map((x, i) => [x, i]).filter(([x]) => x !== null).sort((a, b) => a[0] - b[0]);
    return (name) => order.map(([x, i]) => (name === axis ? x : data[name][i]));
  };
  if (has(QUANTILES)) return {
    names: QUANTILES, note: "fitness: median, 25–75 %, 5–95 %",
    curves: (data, axis) => {
      const [q05, q25, q50, q75, q95] = QUANTILES.map(sorted(data, axis)), x = sorted(data, axis)(axis);
      return [{ ...shape, x, y: q50, label: "median", width: 1.8 }, { ...shape, x, low: q25, high: q75, label: "25–75 %", shade: 0.26 },
        { ...shape, x, low: q05, high: q95, label: "5–95 %", shade: 0.13 }];
    },
  };
  if (has(RANGE)) return {
    names: RANGE, note: "fitness: mean, least to most",
    curves: (data, axis) => {
      const [low, mean, high] = RANGE.map(sorted(data, axis)), x = sorted(data, axis)(axis);
      return [{ ...shape, x, y: mean, label: "mean", width: 1.8 }, { ...shape, x, low, high, label: "least to most", shade: 0.15 }];
    },
  };
  return null;
}
