// Curves over one another: a series a run, on steps that they share.
"use strict";
const figures = [...document.querySelectorAll("[data-chart]")];
const curve = (place) => {
  const { x, lines: own, name, top } = charts[place];
  const figure = figures[place];
  const home = figure.querySelector(".plot");
  const isChecked = (kind) => figure.querySelector(`[data-${kind}]`)?.checked ?? false;
  const log = isChecked("log");
  const below = (plot, min, max) => {
    const [first, last] = plot.series[0].idxs ?? [0, x.length - 1];
    const all = first === 0 && last === x.length - 1;
    return rangeOf(plot, min, all && top != null && top > min && !isChecked("whole") ? top : max);
  };
  const drawn = [...own].sort((a, b) => b[0] - a[0]); // the best on top
  const dots = name === "eval_loss" && x.length <= 60 && drawn.length <= 60;
  const height = figure.classList.contains("wide") && innerWidth > 736 ? 340 : 220;
  const options = {
    width: home.clientWidth,
    height,
    legend: { show: false },
    scales: { x: { time: false }, y: log ? { distr: 3, log: 10 } : { range: below } },
    axes: [
      { ...axis(), size: 32, values: (plot, splits) => splits.map((split) => (Number.isInteger(split) ? stepOf(split) : "")) },
      { ...axis(), size: widthOf, values: (plot, splits) => splits.map((split) => (split == null ? "" : figureOf(split))) },
    ],
    series: [{}, ...drawn.map(([job]) => ({ ...lineOf(job), points: { show: dots, size: 5, fill: colour("card") } }))],
    focus: { alpha: 0.12 },
    cursor: { y: false, focus: { prox: 24 }, points: { show: false }, drag: { x: true, y: false, setScale: true } },
    hooks: { setSeries: [focusHook], setCursor: [(plot) => valuesAt(plot, place)] },
  };
  keep("curve" + place, new uPlot(options, [x, ...drawn.map(([, values]) => values)], home), drawn.map(([job]) => job), figure);
};

const valuesAt = (plot, place) => {
  const { idx } = plot.cursor;
  const one = lines.find((other) => other.plot === plot);
  if (idx == null || !one) return;
  const step = charts[place].x[idx];
  const value = (index) => {
    for (let far = 0; far < plot.data[0].length; far++) {
      const near = plot.data[index + 1][idx - far] ?? plot.data[index + 1][idx + far];
      if (near != null) return near;
    }
    return null;
  };
  if (few) {
    one.places.forEach((job, index) => (list.children[job].querySelector(".value").textContent = figureOf(value(index))));
    one.seen.textContent = "step " + Math.round(step).toLocaleString("en");
  }
  if (seenNow != null && one.places.includes(seenNow)) {
    one.seen.textContent = `${nameOf(seenNow)}   step ${Math.round(step).toLocaleString("en")}: ${figureOf(value(one.places.indexOf(seenNow)))}`;
  }
};
