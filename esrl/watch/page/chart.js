// A chart: a canvas that draws series, shows values under the pointer, and is read by keys.

import { element, number } from "./data.js";
import { axes, band, dot, frame, line, nearest } from "./draw.js";

const SHOWN = 14;  // series in a tip

export class Chart {
  // place: the element it fills. name: for those who cannot see it.
  constructor(place, name) {
    this.place = place;
    this.name = name;
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.tip = element("div", { className: "tip", hidden: true });
    this.tip.setAttribute("role", "status");
    this.words = element("p", { className: "say" });
    place.append(this.canvas, this.words, this.tip);
    this.series = [];
    this.label = "";
    this.format = number;
    this.cursor = null;
    this.waiting = false;
    new ResizeObserver(() => this.later()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    this.canvas.addEventListener("pointermove", (event) => {
      const place = `${event.clientX} ${event.clientY}`;
      if (place === this.pointer) return;  // browsers repeat it where a layout changes, which keys may have caused
      this.pointer = place;
      this.point(event.offsetX, event.offsetY);
    });
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  // series: lists x (ascending) and y, or low and high, with label and color. words: shown where there is nothing.
  set(series, label, words, format = number) {
    this.series = series.filter((one) => one.x.length);
    if (label !== this.label) this.point(null);  // where the cursor was is elsewhere now
    this.label = label;
    this.format = format;
    this.words.textContent = this.series.length ? "" : words;
    const said = this.series.filter((one) => one.y && one.label).slice(0, 8)
      .map((one) => `${one.label} ends at ${number(one.y.at(-1))}`);
    this.canvas.setAttribute("aria-label", `${this.name} over ${label}. ${said.join("; ") || words || ""}. Arrow keys read values.`);
    this.later();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.place;
    const scale = window.devicePixelRatio || 1, style = getComputedStyle(this.place);
    if (!width || !height) return;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.at = frame(this.series, width, height);
    if (!this.at) { this.tip.hidden = true; return; }
    const color = (name) => style.getPropertyValue(name).trim();
    const colored = this.series.map((one) => ({ ...one, color: color(one.ink) }));
    axes(pen, this.at, this.label, { soft: color("--soft"), faint: color("--faint"), grid: color("--grid"), line: color("--line") });
    pen.save();
    pen.beginPath();
    pen.rect(this.at.left, 0, this.at.right - this.at.left + 6, this.at.bottom + 1);
    pen.clip();
    for (const one of colored) band(pen, this.at, one);
    for (const one of colored) line(pen, this.at, one);
    pen.restore();
    if (this.cursor !== null) this.read(pen, colored, color("--faint"), width, height);
  }

  point(x, y = 0) {
    const inside = x !== null && this.at && x >= this.at.left - 6 && x <= this.at.right + 8;
    this.cursor = inside ? Math.min(Math.max(this.at.back(x), this.at.x0), this.at.x1) : null;
    this.height = y;
    if (!inside) this.tip.hidden = true;
    this.later();
  }

  key(event) {
    const every = [...new Set(this.series.flatMap((one) => one.x))].filter((x) => x !== null).sort((a, b) => a - b);
    if (!every.length) return;
    const here = this.cursor === null ? -1 : nearest(every, this.cursor);
    const there = { ArrowRight: here + 1, ArrowLeft: here < 0 ? every.length - 1 : here - 1, Home: 0, End: every.length - 1 }[event.key];
    if (event.key === "Escape") { this.point(null); return; }
    if (there === undefined) return;
    event.preventDefault();
    this.cursor = every[Math.min(Math.max(there, 0), every.length - 1)];
    this.height = this.at ? this.at.top + 10 : 0;
    this.later();
  }

  // The line at the cursor, and what each series has nearest to it.
  read(pen, colored, faint, width, height) {
    const at = this.at, x = at.x(this.cursor);
    pen.strokeStyle = faint;
    pen.setLineDash([3, 3]);
    pen.beginPath(); pen.moveTo(x, at.top); pen.lineTo(x, at.bottom); pen.stroke();
    pen.setLineDash([]);
    const reach = (at.x1 - at.x0) * 0.04, found = [];
    for (const one of colored) {
      if (!one.label || !one.x.length) continue;
      const i = nearest(one.x, this.cursor), away = Math.abs(one.x[i] - this.cursor);
      const between = this.cursor >= one.x[0] && this.cursor <= one.x.at(-1);
      if (!between && away > reach) continue;
      if (one.y && one.y[i] !== null) dot(pen, at, one, i, 3.6);
      found.push({ one, i });
    }
    this.tip.hidden = !found.length;
    if (!found.length) return;
    const value = ({ one, i }) => (one.y ? one.y[i] : (one.low[i] + one.high[i]) / 2);
    if (found[0].one.sorted !== false) found.sort((a, b) => value(b) - value(a));
    const near = found.reduce((a, b) => (Math.abs(b.one.x[b.i] - this.cursor) < Math.abs(a.one.x[a.i] - this.cursor) ? b : a));
    const rows = found.slice(0, SHOWN).map(({ one, i }) => {
      const swatch = element("i");
      swatch.style.setProperty("--own", `var(${one.ink})`);
      swatch.style.opacity = one.y ? 1 : 0.45;
      const spread = one.y && Number.isFinite(one.spread?.[i]) ? ` ± ${this.format(one.spread[i])}` : "";
      const text = one.y ? this.format(one.y[i]) + spread : `${this.format(one.low[i])} … ${this.format(one.high[i])}`;
      return element("tr", {}, element("td", {}, swatch), element("td", { textContent: one.label, title: one.label }), element("td", { textContent: text }));
    });
    const more = found.length > SHOWN ? [element("div", { className: "note", textContent: `and ${found.length - SHOWN} more` })] : [];
    const x_text = Number(near.one.x[near.i].toPrecision(7)).toLocaleString("en");
    this.tip.replaceChildren(element("b", { textContent: `${x_text} ${this.label}` }), element("table", {}, ...rows), ...more);
    const { offsetWidth: wide, offsetHeight: tall } = this.tip;
    const left = x + 16 + wide > width ? x - 16 - wide : x + 16;
    this.tip.style.left = `${Math.max(Math.min(left, width - wide), 0)}px`;
    this.tip.style.top = `${Math.max(Math.min(this.height - tall / 2, height - tall), 0)}px`;
  }
}
