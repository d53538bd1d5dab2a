// A chart's pixels: scales, ticks, lines and bands on a canvas.

import { count, number } from "./data.js";

const LEFT = 58, RIGHT = 14, TOP = 10, BOTTOM = 40;

export function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(wanted, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// The part of the plane that series lie in, and where it is on a canvas of so many pixels.
export function frame(series, width, height, dense = false) {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const one of series) {
    for (let i = 0; i < one.x.length; i++) {
      if (one.x[i] === null) continue;
      if (one.x[i] < x0) x0 = one.x[i];
      if (one.x[i] > x1) x1 = one.x[i];
      for (const y of [one.y, one.low, one.high]) {
        if (!y || y[i] === null || !Number.isFinite(y[i])) continue;
        if (y[i] < y0) y0 = y[i];
        if (y[i] > y1) y1 = y[i];
      }
    }
  }
  if (!(x0 <= x1) || !(y0 <= y1)) return null;
  if (x0 === x1) [x0, x1] = x0 === 0 ? [0, 1] : [Math.min(0, x0), Math.max(0, x1)];
  if (y0 === y1) [y0, y1] = [y0 - Math.max(Math.abs(y0) * 0.1, 0.5), y1 + Math.max(Math.abs(y1) * 0.1, 0.5)];
  const room = (y1 - y0) * 0.06;
  [y0, y1] = [y0 - room, y1 + room];
  const wide = Math.max(width - LEFT - RIGHT, 10), tall = Math.max(height - TOP - BOTTOM, 10);
  return {
    x0, x1, y0, y1, left: LEFT, right: LEFT + wide, top: TOP, bottom: TOP + tall, dense,
    x: (value) => LEFT + ((value - x0) / (x1 - x0)) * wide,
    y: (value) => TOP + (1 - (value - y0) / (y1 - y0)) * tall,
    back: (pixel) => x0 + ((pixel - LEFT) / wide) * (x1 - x0),
  };
}

export function axes(pen, at, label, colors) {
  pen.font = "11.5px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.fillStyle = colors.soft;
  pen.strokeStyle = colors.grid;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const value of ticks(at.y0, at.y1, (at.bottom - at.top) / 46)) {
    const y = Math.round(at.y(value)) + 0.5;
    pen.beginPath(); pen.moveTo(at.left, y); pen.lineTo(at.right, y); pen.stroke();
    pen.fillText(number(value), at.left - 8, y);
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (const value of ticks(at.x0, at.x1, (at.right - at.left) / 68)) {
    const x = Math.round(at.x(value)) + 0.5;
    pen.beginPath(); pen.moveTo(x, at.bottom); pen.lineTo(x, at.bottom + 4); pen.stroke();
    pen.fillText(count(value), x, at.bottom + 7);
  }
  pen.strokeStyle = colors.line;
  pen.beginPath(); pen.moveTo(at.left, at.bottom + 0.5); pen.lineTo(at.right, at.bottom + 0.5); pen.stroke();
  pen.fillStyle = colors.faint;
  pen.fillText(label, (at.left + at.right) / 2, at.bottom + 23);
}

// Runs of neighboring points that all have a value.
function* pieces(one, ...columns) {
  let begun = -1;
  for (let i = 0; i <= one.x.length; i++) {
    const sound = i < one.x.length && one.x[i] !== null && columns.every((c) => c[i] !== null && Number.isFinite(c[i]));
    if (sound && begun < 0) begun = i;
    if (!sound && begun >= 0) { yield [begun, i]; begun = -1; }
  }
}

export function band(pen, at, one) {
  if (!one.low || !one.high) return;
  pen.globalAlpha = one.shade ?? 0.13;
  pen.fillStyle = one.color;
  for (const [from, to] of pieces(one, one.low, one.high)) {
    pen.beginPath();
    for (let i = from; i < to; i++) pen.lineTo(at.x(one.x[i]), at.y(one.high[i]));
    for (let i = to - 1; i >= from; i--) pen.lineTo(at.x(one.x[i]), at.y(one.low[i]));
    pen.fill();
  }
  pen.globalAlpha = 1;
}

export function line(pen, at, one) {
  if (!one.y) return;
  pen.strokeStyle = pen.fillStyle = one.color;
  pen.lineWidth = one.width ?? 1.8;
  pen.lineJoin = "round";
  pen.setLineDash(one.dash ? [6, 4] : []);
  const few = one.points && one.x.length <= 60;
  for (const [from, to] of pieces(one, one.y)) {
    pen.beginPath();
    for (let i = from; i < to; i++) pen.lineTo(at.x(one.x[i]), at.y(one.y[i]));
    pen.stroke();
    for (let i = from; few && i < to; i++) dot(pen, at, one, i, 2.4);
    if (to - from === 1 && !few) dot(pen, at, one, from, 2.4);
  }
  pen.setLineDash([]);
}

export function dot(pen, at, one, i, size) {
  pen.fillStyle = one.color;
  pen.beginPath(); pen.arc(at.x(one.x[i]), at.y(one.y[i]), size, 0, 7); pen.fill();
}

// The place in an ascending list that is nearest to a value.
export function nearest(x, value) {
  let [low, high] = [0, x.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && Math.abs(x[low - 1] - value) <= Math.abs(x[low] - value) ? low - 1 : low;
}
