// What the scripts of all pages share: colours of the style, numbers as texts, the room that an axis takes.
"use strict";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

const figureOf = (value) => {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e10)) return Number(value.toPrecision(3)).toExponential();
  if (size >= 1e6) return (value / 1e6).toPrecision(4) + " M";
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
};

const stepOf = (value) => (value >= 10000 && value % 1000 === 0 ? value / 1000 + "k" : value.toLocaleString("en"));

// The y axis is as wide as its longest number.
const widthOf = (plot, values, index, cycle) => {
  const axis = plot.axes[index];
  const longest = (values || []).reduce((a, b) => (b && b.length > a.length ? b : a), "");
  plot.ctx.font = axis.font[0];
  const size = Math.ceil(axis.ticks.size + axis.gap + 4 + plot.ctx.measureText(longest).width / devicePixelRatio);
  return cycle > 1 ? Math.max(axis._size, size) : size;
};

const rangeOf = (plot, min, max) => {
  if (min == null) return [0, 1];
  if (min === max) return min === 0 ? [-1, 1] : [min - Math.abs(min) / 10, max + Math.abs(max) / 10];
  return uPlot.rangeNum(min, max, 0.08, true);
};
