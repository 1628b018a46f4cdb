// The effect of a parameter: a dot a run, and the mean of each value with its interval.
"use strict";
const dots = (plot, index) => {
  const size = 2.6 * devicePixelRatio;
  const places = effects[plot.effect].points;
  uPlot.orient(plot, index, (series, xs, ys, scaleX, scaleY, toX, toY, left, top, width, height) => {
    plot.ctx.save();
    plot.data[index][0].forEach((x, number) => {
      const shift = effects[plot.effect].scatter || !effects[plot.effect].means.length ? 0 : (((number * 7919) % 13) - 6) * 1.4 * devicePixelRatio;
      plot.ctx.fillStyle = few ? paints[places[number][2]] : colour("blue") + "66";
      plot.ctx.beginPath();
      plot.ctx.arc(toX(x, scaleX, width, left) + shift, toY(plot.data[index][1][number], scaleY, height, top), size, 0, 2 * Math.PI);
      plot.ctx.fill();
    });
    plot.ctx.restore();
  });
  return null;
};

const means = (plot, index) => {
  const own = effects[plot.effect].means;
  const ratio = devicePixelRatio;
  uPlot.orient(plot, index, (series, xs, ys, scaleX, scaleY, toX, toY, left, top, width, height) => {
    const { ctx } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip(); // an interval of two runs can be far longer than the chart is high
    ctx.strokeStyle = ctx.fillStyle = colour("ink");
    ctx.lineWidth = 2 * ratio;
    for (const [at, mean, low, high] of own) {
      const [x, y] = [toX(at, scaleX, width, left), toY(mean, scaleY, height, top)];
      if (low != null) {
        const [bottom, upper] = [toY(low, scaleY, height, top), toY(high, scaleY, height, top)];
        ctx.beginPath();
        ctx.moveTo(x, bottom);
        ctx.lineTo(x, upper);
        for (const end of [bottom, upper]) {
          ctx.moveTo(x - 4 * ratio, end);
          ctx.lineTo(x + 4 * ratio, end);
        }
        ctx.stroke();
      }
      ctx.beginPath();
      ctx.moveTo(x, y - 5 * ratio);
      ctx.lineTo(x + 5 * ratio, y);
      ctx.lineTo(x, y + 5 * ratio);
      ctx.lineTo(x - 5 * ratio, y);
      ctx.fill();
    }
    ctx.restore();
  });
  return null;
};

const effectPlots = [];
const drawEffect = (figure, place) => {
  const effect = effects[place];
  const home = figure.querySelector(".plot");
  const ys = effect.points.map((point) => point[1]);
  const spread = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) / 10 || 1;
  const [least, most] = [Math.min(...ys) - spread * 0.5, Math.max(...ys) + spread * 0.5];
  const ends = [...ys, ...effect.means.flatMap((mean) => (mean[2] == null ? [] : [Math.max(mean[2], least), Math.min(mean[3], most)]))];
  const [bottom, upper] = [Math.min(...ends) - spread * 0.08, Math.max(...ends) + spread * 0.08];
  const facets = [{ scale: "x", auto: false }, { scale: "y", auto: false }];
  const options = {
    mode: 2,
    width: home.clientWidth,
    height: 230,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, distr: effect.log ? 3 : 1, log: 10, range: () => effect.range }, y: { range: () => [bottom, upper] } },
    axes: [
      { ...axis(), size: 32, ...(effect.ticks ? { splits: () => effect.ticks.map((tick) => tick[0]), values: () => effect.ticks.map((tick) => tick[1]), filter: (plot, splits) => splits }
        : { values: (plot, splits) => splits.map((split) => (split == null ? "" : figureOf(split))) }) },
      { ...axis(), size: widthOf, values: (plot, splits) => splits.map((split) => figureOf(split)) },
    ],
    series: [null, { facets, paths: dots }, { facets, paths: means }],
    hooks: { init: [(plot) => (plot.effect = place)] },
  };
  const data = [null, [effect.points.map((point) => point[0]), ys], [effect.means.map((mean) => mean[0]), effect.means.map((mean) => mean[1])]];
  effectPlots[place]?.destroy();
  const plot = (effectPlots[place] = new uPlot(options, data, home));
  plot.over.addEventListener("mousemove", (event) => {
    const box = plot.over.getBoundingClientRect();
    const far = effect.points.map(([x, y]) => Math.hypot(plot.valToPos(x, "x") - (event.clientX - box.left), plot.valToPos(y, "y") - (event.clientY - box.top)));
    const best = far.indexOf(Math.min(...far));
    figure.querySelector(".seen").textContent = far[best] < 20 ? nameOf(effect.points[best][2]) : "";
  });
};
