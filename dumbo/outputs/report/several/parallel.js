// Parallel coordinates: the axes are uPlot's x, each run is a series of heights from 0 to 1; a drag along an axis is a filter.
"use strict";
const brushes = new Map(); // axis -> [lower, upper height]
const board = document.querySelector("[data-parallel]");
const drawAxes = (plot) => {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.lineJoin = "round";
  parallel.axes.forEach((one, place) => {
    const x = Math.round(plot.valToPos(place, "x", true));
    const heightOf = (height) => plot.valToPos(height, "y", true);
    ctx.strokeStyle = colour("soft");
    ctx.lineWidth = ratio;
    ctx.beginPath();
    ctx.moveTo(x, heightOf(0));
    ctx.lineTo(x, heightOf(1));
    ctx.stroke();
    const brush = brushes.get(place);
    if (brush) {
      ctx.fillStyle = colour("blue") + "44";
      ctx.fillRect(x - 6 * ratio, heightOf(brush[1]), 12 * ratio, heightOf(brush[0]) - heightOf(brush[1]));
    }
    let last = Infinity;
    for (const [height, text] of one.ticks) {
      const y = heightOf(height);
      if (Math.abs(last - y) < 13 * ratio) continue;
      last = y;
      const left = place === parallel.axes.length - 1;
      ctx.textAlign = left ? "right" : "left";
      ctx.strokeStyle = colour("card");
      ctx.lineWidth = 4 * ratio;
      ctx.strokeText(text, x + (left ? -7 : 7) * ratio, y);
      ctx.fillStyle = colour("ink");
      ctx.fillText(text, x + (left ? -7 : 7) * ratio, y);
    }
  });
  ctx.restore();
};

const drawParallel = () => {
  const home = board.querySelector(".plot");
  const drawn = [...parallel.lines].reverse();
  const last = parallel.axes.length - 1;
  const options = {
    width: home.clientWidth,
    height: 380,
    padding: [16, 46, 0, 46],
    legend: { show: false },
    scales: { x: { time: false, range: () => [0, last] }, y: { range: () => [-0.04, 1.04] } },
    axes: [
      { ...axis(), side: 0, size: 26, grid: { show: false }, ticks: { show: false }, splits: () => parallel.axes.map((_, place) => place),
        values: () => parallel.axes.map((one) => one.label) },
      { show: false },
    ],
    series: [{}, ...drawn.map(([job]) => ({ ...lineOf(job), points: { show: false } }))],
    focus: { alpha: 0.1 },
    cursor: { x: false, y: false, focus: { prox: 16 }, points: { show: false }, drag: { x: false, y: false } },
    hooks: { draw: [drawAxes], setSeries: [focusHook] },
  };
  const data = [parallel.axes.map((_, place) => place), ...parallel.axes[0] ? drawn.map(([, heights]) => heights) : []];
  keep("parallel", new uPlot(options, data, home), drawn.map(([job]) => job), board);
  brushing(lines.find((one) => one.name === "parallel").plot);
};

const brushing = (plot) => {
  let from = null;
  const at = (event) => {
    const box = plot.over.getBoundingClientRect();
    return [Math.round(plot.posToVal(event.clientX - box.left, "x")), plot.posToVal(event.clientY - box.top, "y")];
  };
  const passes = (place) => {
    const heights = parallel.lines.find(([job]) => job === place)?.[1];
    return [...brushes].every(([axisAt, [low, high]]) => heights != null && heights[axisAt] != null && heights[axisAt] >= low && heights[axisAt] <= high);
  };
  plot.over.addEventListener("mousedown", (event) => (from = at(event)));
  plot.over.addEventListener("mousemove", (event) => {
    if (!from || !(event.buttons & 1)) return;
    brushes.set(from[0], [from[1], at(event)[1]].sort((a, b) => a - b));
    plot.redraw(false);
  });
  plot.over.addEventListener("mouseup", (event) => {
    if (!from) return;
    const ends = [from[1], at(event)[1]].sort((a, b) => a - b);
    if (ends[1] - ends[0] < 0.02) brushes.delete(from[0]);
    else brushes.set(from[0], ends);
    from = null;
    show(passes);
    plot.redraw(false);
  });
};
