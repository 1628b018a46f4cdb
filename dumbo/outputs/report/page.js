// The curves of report.html: drawn by uPlot, zoomed together, told to the keyboard and to screen readers.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("curves").textContent);
  const figures = [...document.querySelectorAll("[data-chart]")];
  const spoken = document.getElementById("spoken");
  const range = document.getElementById("range");
  const plots = [];
  let zooming = false;

  // A curve that has no number at this step (held-out losses are few): its nearest one.
  const nearest = (plot, series, index) => {
    const values = plot.data[series];
    if (series === 0 || values[index] != null) return index;
    for (let far = 1; far < values.length; far++) {
      if (values[index - far] != null) return index - far;
      if (values[index + far] != null) return index + far;
    }
    return index;
  };

  const drawMarks = (plot) => {
    const { ctx, bbox } = plot;
    const size = 4 * devicePixelRatio;
    ctx.save();
    ctx.fillStyle = ctx.strokeStyle = colour("bad");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const [step, kind] of told.marks) {
      const x = plot.valToPos(step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      if (kind === "spike") {
        const y = bbox.top + 1;
        ctx.moveTo(x - size, y);
        ctx.lineTo(x + size, y);
        ctx.lineTo(x, y + 1.6 * size);
        ctx.fill();
      } else {
        const y = bbox.top + bbox.height - 1.5 * size;
        ctx.moveTo(x - size, y - size);
        ctx.lineTo(x + size, y + size);
        ctx.moveTo(x + size, y - size);
        ctx.lineTo(x - size, y + size);
        ctx.stroke();
      }
    }
    ctx.restore();
  };

  const zoom = (min, max) => {
    if (!plots.length || !(max > min)) return;
    zooming = true;
    for (const plot of plots) plot.setScale("x", { min, max });
    zooming = false;
    showRange();
  };

  const whole = () => {
    const ends = told.charts.flatMap((chart) => chart.series.flatMap((one) => [one.x[0], one.x[one.x.length - 1]]));
    const [min, max] = [Math.min(...ends), Math.max(...ends)];
    return max > min ? [min, max] : [min - 1, max + 1];
  };

  const zoomBy = (factor, centre) => {
    const { min, max } = plots[0].scales.x;
    const [first, last] = whole();
    const middle = centre ?? (min + max) / 2;
    zoom(Math.max(first, middle - (middle - min) * factor), Math.min(last, middle + (max - middle) * factor));
  };

  const showRange = () => {
    const { min, max } = plots[0].scales.x;
    const [first, last] = whole();
    const all = min <= first && max >= last;
    range.textContent = all ? "" : "steps " + Math.round(min).toLocaleString("en") + " to " + Math.round(max).toLocaleString("en");
  };

  const optionsOf = (chart, place, width, height, log) => {
    const axis = {
      stroke: colour("soft"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { stroke: colour("grid"), width: 1, size: 4 },
    };
    const series = chart.series.map((one) => ({
      label: one.label,
      stroke: colour(one.colour),
      width: one.kind === "faint" ? 1 : 1.75,
      alpha: one.kind === "faint" ? 0.4 : 1,
      points: one.kind === "dots" ? { show: true, size: 6, fill: colour("card") } : one.kind === "faint" ? { show: false } : { size: 4 },
      value: (plot, value, index) => {
        const seen = value ?? plot.data[index].findLast((number) => number != null);
        return figureOf(seen) + (chart.unit && seen != null ? " " + chart.unit : "");
      },
    }));
    return {
      width,
      height,
      scales: { x: { time: false }, y: log ? { distr: 3, log: 10 } : { range: rangeOf } },
      axes: [
        { ...axis, size: 32, values: (plot, splits) => splits.map((split) => (Number.isInteger(split) ? stepOf(split) : "")) },
        { ...axis, size: widthOf, values: (plot, splits) => splits.map((split) => (split == null ? "" : figureOf(split))) },
      ],
      series: [{ label: "step", value: (plot, value) => (value ?? plot.data[0][plot.data[0].length - 1]).toLocaleString("en") }, ...series],
      cursor: {
        y: false,
        dataIdx: nearest,
        drag: { x: true, y: false, setScale: true },
        sync: { key: "run", setSeries: false, scales: ["x", null], filters: { pub: (type) => type !== "mousedown" && type !== "mouseup" && type !== "dblclick" } },
      },
      hooks: {
        draw: chart.name === "loss" ? [drawMarks] : [],
        setScale: [
          (plot, key) => {
            if (key === "x" && !zooming && plots.includes(plot)) zoom(plot.scales.x.min, plot.scales.x.max);
          },
        ],
      },
    };
  };

  const build = (place) => {
    const chart = told.charts[place];
    const home = figures[place].querySelector(".plot");
    const box = figures[place].querySelector("input");
    const old = plots[place];
    const seen = old ? [old.scales.x.min, old.scales.x.max] : whole();
    if (old) old.destroy();
    const data = uPlot.join(chart.series.map((one) => [one.x, one.y]));
    const height = figures[place].classList.contains("wide") && innerWidth > 736 ? 320 : 210;
    plots[place] = null;
    const plot = new uPlot(optionsOf(chart, place, home.clientWidth, height, box !== null && box.checked), data, home);
    plots[place] = plot;
    zooming = true;
    plot.setScale("x", { min: seen[0], max: seen[1] });
    zooming = false;
  };

  const rebuild = () => figures.forEach((_, place) => build(place));

  const move = (place, by) => {
    const plot = plots[place];
    const steps = plot.data[0];
    const from = plot.cursor.idx ?? (by > 0 ? -1 : steps.length);
    const index = Math.min(steps.length - 1, Math.max(0, from + by));
    plot.setCursor({ left: plot.valToPos(steps[index], "x"), top: plot.over.clientHeight / 2 }, true, true);
    const values = told.charts[place].series.map((one, number) => one.label + " " + figureOf(plot.data[number + 1][nearest(plot, number + 1, index)]));
    spoken.textContent = "step " + steps[index].toLocaleString("en") + ": " + values.join(", ");
  };

  const onKey = (event, place) => {
    const far = event.shiftKey ? 20 : 1;
    const centre = plots[place].cursor.idx == null ? undefined : plots[place].data[0][plots[place].cursor.idx];
    const keys = {
      ArrowLeft: () => move(place, -far),
      ArrowRight: () => move(place, far),
      Home: () => move(place, -Infinity),
      End: () => move(place, Infinity),
      "+": () => zoomBy(0.5, centre),
      "=": () => zoomBy(0.5, centre),
      "-": () => zoomBy(2, centre),
      0: () => zoom(...whole()),
      Escape: () => zoom(...whole()),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  };

  rebuild();
  figures.forEach((one, place) => {
    one.querySelector(".plot").addEventListener("keydown", (event) => onKey(event, place));
    one.querySelector(".plot").addEventListener("dblclick", () => zoom(...whole()));
    one.querySelector("input")?.addEventListener("change", () => build(place));
    let width = one.querySelector(".plot").clientWidth;
    new ResizeObserver(() => {
      const now = one.querySelector(".plot").clientWidth;
      if (now && now !== width) plots[place].setSize({ width: (width = now), height: plots[place].height });
    }).observe(one.querySelector(".plot"));
  });
  document.querySelectorAll("[data-zoom]").forEach((button) =>
    button.addEventListener("click", () => ({ in: () => zoomBy(0.5), out: () => zoomBy(2), all: () => zoom(...whole()) })[button.dataset.zoom]()),
  );
  document.querySelectorAll(".tools[hidden], .hint[hidden]").forEach((one) => (one.hidden = false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    rebuild();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    rebuild();
  });
})();
