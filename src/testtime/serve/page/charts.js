"use strict";
const SVG = "http://www.w3.org/2000/svg";
const clock = t => new Date(1000 * t).toLocaleTimeString([], {hour12: false});

/* An element with attributes and children; texts are text nodes, so that nothing of the data is read as HTML. */
function make(name, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "line", "text", "rect"].includes(name);
  const found = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) found.setAttribute(key, value);
  }
  found.append(...children.filter(child => child != null));
  return found;
}

/* The points in parts: a new one begins where nothing came for eight times the usual time. */
function parts(points) {
  const spans = points.slice(1).map((p, i) => p[0] - points[i][0]).sort((a, b) => a - b);
  const usual = spans[spans.length >> 1] || Infinity, found = [];
  points.forEach((p, i) => {
    if (!i || p[0] - points[i - 1][0] > 8 * usual) found.push([]);
    found.at(-1).push(p);
  });
  return found;
}

/* The mean of every value with those of at most eight points before it in its part. */
const smooth = points => parts(points).flatMap(part => part.map(([x], i) => {
  const last = part.slice(Math.max(0, i - 8), i + 1);
  return [x, last.reduce((sum, p) => sum + p[1], 0) / last.length];
}));

function ticks(low, high) {
  const raw = (high - low) / 3 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(f => f * power).find(s => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(v);
  return found;
}

/* Draw lines over time into a figure: {title, series: [{name, colour, points}], format, low, high, strip, marks, from, to}. */
function draw(figure, chart) {
  const width = Math.max(240, figure.clientWidth), strip = chart.strip ? 16 : 0, height = chart.height || 150;
  const left = 40, top = 8, bottom = height - 20 - strip, right = width - 6;
  const values = chart.series.flatMap(s => s.points.map(p => p[1])).sort((a, b) => a - b);
  const read = make("span", {class: "read"});
  const key = chart.series.length > 1 || chart.strip ? make("span", {class: "key"},
    ...chart.series.map(s => make("span", {class: `swatch k${s.colour}`}, s.name))) : null;
  const caption = make("figcaption", {}, make("span", {}, chart.title), key, read);
  if (values.length < 2) {
    figure.replaceChildren(caption, make("p", {class: "none"}, chart.none || "nothing yet"));
    return;
  }
  const most = values[Math.min(values.length - 1, Math.floor(values.length * 0.995))];
  const low = chart.low ?? 0, high = chart.high ?? (most > low ? most * 1.12 : low + 1);
  const from = chart.from, to = Math.max(chart.to, from + 1);
  const x = t => left + (right - left) * (t - from) / (to - from);
  const y = v => bottom - (bottom - top) * (Math.min(high, Math.max(low, v)) - low) / (high - low);
  const path = points => parts(points).map(part => part.map(([t, v], i) => `${i ? "L" : "M"}${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("") + "h.01").join("");
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.title});
  for (const v of ticks(low, high)) svg.append(
    make("line", {class: "grid-line", x1: left, x2: right, y1: y(v), y2: y(v)}),
    make("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, chart.format(v)));
  const times = width > 420 ? [0, 0.5, 1] : [0, 1];
  for (const share of times) svg.append(make("text", {x: left + share * (right - left), y: height - 4,
    "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle"}, clock(from + share * (to - from))));
  for (const t of chart.marks || []) svg.append(make("line", {class: "event", x1: x(t), x2: x(t), y1: bottom - 5, y2: bottom}));
  for (const [a, b, colour] of chart.strip || []) svg.append(make("rect", {class: `f${colour}`, x: x(a), y: bottom + 5,
    width: Math.max(1, x(b) - x(a)), height: 8}));
  for (const s of chart.series) {
    if (s.points.length > 12) svg.append(make("path", {class: `line faint c${s.colour}`, d: path(s.points)}));
    svg.append(make("path", {class: `line c${s.colour}`, d: path(smooth(s.points))}));
  }
  const cursor = make("line", {class: "cursor", y1: top, y2: bottom, visibility: "hidden"});
  svg.append(cursor);
  const last = () => { cursor.setAttribute("visibility", "hidden");
    read.textContent = chart.series.length > 1 ? "" : chart.format(smooth(chart.series[0].points).at(-1)[1], true); };
  svg.addEventListener("pointerleave", last);
  svg.addEventListener("pointermove", event => {
    const at = from + (to - from) * ((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth * width - left) / (right - left);
    const near = chart.series.map(s => [s.name, s.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a, s.points[0])])
      .filter(found => found[1]);
    cursor.setAttribute("x1", x(near[0][1][0])); cursor.setAttribute("x2", x(near[0][1][0]));
    cursor.setAttribute("visibility", "visible");
    read.textContent = `${clock(near[0][1][0])}  ` + near.map(([name, p]) => (near.length > 1 ? name + " " : "") + chart.format(p[1], true)).join(", ");
  });
  last();
  figure.replaceChildren(caption, svg);
}
