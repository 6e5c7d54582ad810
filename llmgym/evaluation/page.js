"use strict";
// Tables that are sorted by a click, a key or, where they are cards, a list; and one metric at a time.

const number = (text) => (text === "reference" ? 0 : parseFloat(text.replace(/[,<>\s]/g, "")));

function key(row, column) {
  return row.cells[column].textContent.trim();
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const texts = rows.map((row) => key(row, column)).filter((text) => text && text !== "-");
  const numeric = column > 0 && 2 * texts.filter((text) => !isNaN(number(text))).length > texts.length;
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
    const [p, q] = [number(x), number(y)];
    if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q); // what has no value comes last
    return sign * (p - q);
  });
  rows.forEach((row) => body.append(row));
  Array.from(table.tHead.rows[0].cells).forEach((head, at) => {
    if (at === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

function sortable(table, controls) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
      sort(table, column, up ? "ascending" : "descending");
    });
  });
  const options = [["", "rank"]];
  heads.forEach((head, column) => {
    const name = head.textContent;
    if (column === 0) options.push([`${column} ascending`, name]);
    else options.push([`${column} descending`, `${name}, down`], [`${column} ascending`, `${name}, up`]);
  });
  const ranked = Array.from(table.tBodies[0].rows);
  const chosen = choice(controls, "Sort by", options, (value) => {
    const [column, direction] = value.split(" ");
    if (value) sort(table, Number(column), direction);
    else {
      ranked.forEach((row) => table.tBodies[0].append(row));
      heads.forEach((head) => head.removeAttribute("aria-sort"));
    }
  });
  chosen.parentElement.classList.add("sorting");
}

function choice(controls, title, options, changed) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  options.forEach(([value, text]) => select.append(new Option(text, value)));
  select.addEventListener("change", () => changed(select.value));
  label.append(title, select);
  controls.append(label);
  return select;
}

function note(text) {
  const paragraph = document.createElement("p");
  paragraph.className = "note";
  paragraph.textContent = text;
  return paragraph;
}

function rows(table, found) {
  const kept = new Map(Array.from(table.tBodies[0].rows, (row) => [row.dataset.row, row]));
  const [from, to] = table.dataset.changing.split(" ").map(Number);
  const heads = table.tHead.rows[0].cells;
  found.columns.forEach((name, at) => (heads[from + at].textContent = name));
  found.rows.forEach(([name, ...cells]) => {
    const row = kept.get(String(name));
    for (let at = from; at < to; at += 1) {
      const cell = row.cells[at];
      const text = cells[at - from];
      cell.textContent = text;
      cell.dataset.label = heads[at].textContent;
      cell.className = ["win", "lose", "tie"].includes(text) ? text : "";
    }
    table.tBodies[0].append(row);
  });
}

document.querySelectorAll("section").forEach((section) => {
  const table = section.querySelector("table");
  const controls = section.querySelector(".controls");
  if (!table || !controls) return;
  const data = section.querySelector("script[type='application/json']");
  if (data) {
    const metrics = JSON.parse(data.textContent);
    const show = (metric) => {
      controls.querySelectorAll(".sorting").forEach((label) => label.remove());
      rows(table, metrics[metric]);
      section.querySelector(".notes").replaceChildren(...metrics[metric].notes.map(note));
      sortable(table, controls);
      Array.from(table.tHead.rows[0].cells).forEach((head) => head.removeAttribute("aria-sort"));
      section.querySelectorAll("[data-metric]").forEach((part) => (part.hidden = part.dataset.metric !== metric));
    };
    const select = choice(controls, "Metric", Object.entries(metrics).map(([name, one]) => [name, one.title]), show);
    show(select.value);
  } else {
    sortable(table, controls);
  }
});

const filter = document.querySelector(".filter");
if (filter) {
  const sections = Array.from(document.querySelectorAll("section[data-group]"));
  const groups = Array.from(new Set(sections.map((section) => section.dataset.group)));
  const options = [["", "all environments"], ...groups.map((group) => [group, group])];
  const show = (group) => sections.forEach((section) => (section.hidden = group !== "" && section.dataset.group !== group));
  const select = choice(filter, "Show", options, show);
  addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.hidden) {
      select.value = "";
      show("");
      target.scrollIntoView();
    }
  });
}
