"use strict";
// A cursor on each chart, by pointer and by arrow keys; the legend reads the values under it.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const lines = JSON.parse(svg.dataset.lines);
  const outputs = [...chart.querySelectorAll("output")];
  const last = outputs.map((output) => output.textContent);
  const legend = chart.querySelector(".legend");
  const at = chart.querySelector(".at");
  const cursor = svg.querySelector(".cursor");
  const marks = [...svg.querySelectorAll(".mark")];
  const longest = lines.reduce((a, b) => (b.length > a.length ? b : a));
  let index = longest.length - 1;

  const nearest = (points, x) => {
    let low = 0;
    let high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle + 1;
      else high = middle;
    }
    return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
  };
  const show = (x) => {
    index = nearest(longest, x);
    const [here, , step] = longest[index];
    cursor.setAttribute("x1", here);
    cursor.setAttribute("x2", here);
    at.textContent = `step ${step}`;
    lines.forEach((points, n) => {
      if (!points.length) return;
      const [px, py, , value] = points[nearest(points, here)];
      marks[n].setAttribute("cx", px);
      marks[n].setAttribute("cy", py);
      outputs[n].textContent = value;
    });
    svg.classList.add("active");
  };
  const hide = () => {
    svg.classList.remove("active");
    legend.removeAttribute("aria-live");
    outputs.forEach((output, n) => (output.textContent = last[n]));
    at.textContent = "";
    index = longest.length - 1;
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    show(((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
  };
  if (!longest.length) continue;
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const active = svg.classList.contains("active");
    const to = {
      ArrowLeft: active ? index - 1 : index,
      ArrowRight: active ? index + 1 : index,
      Home: 0,
      End: longest.length - 1,
    }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    legend.setAttribute("aria-live", "polite");
    show(longest[Math.min(Math.max(to, 0), longest.length - 1)][0]);
  });
}
