// The page of several runs: everything drawn, and drawn again when size, colours or paper want it.
"use strict";
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
