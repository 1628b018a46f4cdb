// Several runs on one page: effects, parallel coordinates and curves, all drawn by uPlot, with one choice of runs for all of them.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("numbers").textContent);
  const { jobs, charts, effects, parallel } = told;
  const spoken = document.getElementById("spoken");
  const list = document.querySelector(".runs");
  const few = jobs.length <= 8;
  const shown = jobs.map(() => true);
  const lines = []; // plots with a series for each run: { plot, places, seen }
  let seenNow = null;
  let passing = false;

  // ---- colours: a few runs have one each; of many the best are blue and the worst orange ----

  const rgb = (name) => colour(name).match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
  let paints = [];
  const paint = () => {
    const [best, worst] = [rgb("blue"), rgb("orange")];
    const many = jobs.filter((job) => job.result != null).length;
    paints = jobs.map((job, place) => {
      if (few) return colour("run" + place);
      if (job.result == null) return colour("soft") + "66";
      const far = many > 1 ? place / (many - 1) : 0;
      const mixed = best.map((part, index) => Math.round(part + (worst[index] - part) * Math.sqrt(far)));
      const alpha = place < 5 ? 1 : many > 100 ? 0.3 : 0.6;
      return `rgba(${mixed.join(",")},${alpha})`;
    });
  };

  const axis = () => ({
    stroke: colour("soft"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: colour("grid"), width: 1 },
    ticks: { stroke: colour("grid"), width: 1, size: 4 },
  });

  const nameOf = (place) => jobs[place].name + (jobs[place].result == null ? "" : "   " + told.metric + " " + figureOf(jobs[place].result));

  // ---- one run looked at, some runs shown: in every chart at once ----

  const look = (place, from) => {
    if (place === seenNow) return;
    seenNow = place;
    passing = true;
    for (const one of lines) {
      const index = place == null ? -1 : one.places.indexOf(place);
      if (one.plot !== from) one.plot.setSeries(index < 0 ? null : index + 1, { focus: true });
      one.seen.textContent = place == null ? one.said : nameOf(place);
    }
    passing = false;
    list?.querySelectorAll(".is-seen").forEach((one) => one.classList.remove("is-seen"));
    if (place != null) list?.children[place]?.classList.add("is-seen");
  };

  const show = (wanted) => {
    jobs.forEach((_, place) => {
      shown[place] = wanted(place);
      const box = list?.children[place]?.querySelector("input");
      if (box) box.checked = shown[place];
    });
    passing = true;
    for (const { plot, places } of lines) {
      plot.batch(() => places.forEach((place, index) => plot.series[index + 1].show !== shown[place] && plot.setSeries(index + 1, { show: shown[place] })));
    }
    passing = false;
  };

  const focusHook = (plot, index, options) => {
    const one = lines.find((other) => other.plot === plot);
    if (!passing && one && options?.focus != null) look(index == null || index === 0 ? null : one.places[index - 1], plot);
  };

  // ---- curves ----

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
      series: [{}, ...drawn.map(([job]) => ({ label: String(job), stroke: paints[job], width: few ? 1.75 : job < 5 ? 2 : 1, spanGaps: true,
        show: shown[job], points: { show: dots, size: 5 } }))],
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

  const keep = (name, plot, places, figure) => {
    const seen = figure.querySelector(".seen");
    const old = lines.findIndex((one) => one.name === name);
    const entry = { name, plot, places, seen, said: old < 0 ? seen.textContent : lines[old].said };
    if (old >= 0) {
      lines[old].plot.destroy();
      lines[old] = entry;
    } else lines.push(entry);
  };

  // ---- parallel coordinates: the axes are uPlot's x, each run is a series of heights ----

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
      series: [{}, ...drawn.map(([job]) => ({ stroke: paints[job], width: few || job < 5 ? 2 : 1, spanGaps: true, show: shown[job], points: { show: false } }))],
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

  // ---- effects: a dot a run, and the mean of each value with its interval ----

  const dots = (plot, index) => {
    const size = 2.6 * devicePixelRatio;
    const places = effects[plot.effect].points;
    uPlot.orient(plot, index, (series, xs, ys, scaleX, scaleY, toX, toY, left, top, width, height) => {
      plot.ctx.save();
      plot.data[index][0].forEach((x, number) => {
        const shift = effects[plot.effect].scatter ? 0 : (((number * 7919) % 13) - 6) * 1.4 * devicePixelRatio;
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
      ctx.strokeStyle = ctx.fillStyle = colour("orange");
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
    const [bottom, upper] = [Math.min(...ys) - spread * 0.08, Math.max(...ys) + spread * 0.08];
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

  // ---- the list of runs, which is the legend ----

  const makeList = () => {
    jobs.forEach((job, place) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => show((other) => (other === place ? box.checked : shown[other])));
      const part = (kind, text) => {
        const one = document.createElement("span");
        one.className = kind;
        one.textContent = text;
        return one;
      };
      label.append(box, part("swatch", ""), part("name", job.name), part("value", job.result == null ? job.state : figureOf(job.result)));
      label.title = job.name;
      item.append(label);
      item.addEventListener("mouseenter", () => look(place));
      item.addEventListener("mouseleave", () => look(null));
      list.append(item);
    });
    list.hidden = false;
  };

  const paintList = () => [...(list?.children ?? [])].forEach((item, place) => (item.querySelector(".swatch").style.color = paints[place].replace(/,0?\.\d+\)$/, ",1)")));

  const drawAll = () => {
    paint();
    paintList();
    figures.forEach((_, place) => curve(place));
    if (board) drawParallel();
    document.querySelectorAll("[data-effect]").forEach(drawEffect);
  };

  if (list) makeList();
  drawAll();
  for (const figure of document.querySelectorAll("[data-chart], [data-parallel]")) {
    figure.querySelector(".plot").addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") look(null);
      if (by == null || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      look(seenNow == null ? (by > 0 ? 0 : jobs.length - 1) : (seenNow + by + jobs.length) % jobs.length);
      spoken.textContent = nameOf(seenNow);
    });
  }
  figures.forEach((figure, place) => figure.querySelectorAll("input").forEach((box) => box.addEventListener("change", () => curve(place))));
  document.querySelectorAll("[data-show]").forEach((button) =>
    button.addEventListener("click", () => {
      brushes.clear();
      show({ all: () => true, best: (place) => place < 10, none: () => false }[button.dataset.show]);
      lines.find((one) => one.name === "parallel")?.plot.redraw(false);
    }),
  );
  document.querySelector("input[type=search]")?.addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    show((place) => jobs[place].name.toLowerCase().includes(wanted));
  });
  document.querySelectorAll(".tools[hidden]").forEach((one) => (one.hidden = false));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) drawAll();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    drawAll();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    drawAll();
  });
})();
