// What all charts of several runs share: the numbers, a colour a run, the run looked at, the runs shown, and their list.
"use strict";
const told = JSON.parse(document.getElementById("told").textContent);
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
const solid = (place) => paints[place].replace(/,0?\.\d+\)$/, ",1)");

// A run's line: the one that is looked at stands out.
const lineOf = (job) => ({ stroke: () => (job === seenNow ? solid(job) : paints[job]), width: few ? 1.75 : job < 5 ? 2 : 1, spanGaps: true, show: shown[job] });

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
    one.places.forEach((job, number) => (one.plot.series[number + 1].width = job === place ? 3 : lineOf(job).width));
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

// A plot with a series for each run takes the place of an earlier one of its name.
const keep = (name, plot, places, figure) => {
  const seen = figure.querySelector(".seen");
  const old = lines.findIndex((one) => one.name === name);
  const entry = { name, plot, places, seen, said: old < 0 ? seen.textContent : lines[old].said };
  if (old >= 0) {
    lines[old].plot.destroy();
    lines[old] = entry;
  } else lines.push(entry);
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

const paintList = () => [...(list?.children ?? [])].forEach((item, place) => (item.querySelector(".swatch").style.color = solid(place)));
