// Sorts and filters the table of scans. Without it the table stands as it is, sorted by path.
// What is chosen stands behind "#" in the address: #sort=infection_percent&order=descending&show=outlier&find=ward
"use strict";
(() => {
  const table = document.getElementById("scans");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  const find = document.getElementById("find");
  const show = document.getElementById("show");
  const shown = document.getElementById("shown");
  const chosen = { sort: "scan", order: "ascending" };

  // The number that a cell begins with, or null for the dash of a missing one; of a text column the text.
  const valueOf = (row, index) => {
    const text = row.cells[index].textContent.trim();
    if (!headers[index].classList.contains("number")) return text.toLowerCase();
    const number = parseFloat(text.replace("\u2212", "-"));
    return Number.isNaN(number) ? null : number;
  };

  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);

  // Rows with the same value stay in the order of their paths; rows without one are last, whatever the order.
  const sortRows = () => {
    const index = headers.findIndex((header) => header.dataset.column === chosen.sort);
    const sign = chosen.order === "descending" ? -1 : 1;
    const keyed = rows.map((row) => [valueOf(row, index), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * compare(a, b);
    });
    body.append(...keyed.map(([, row]) => row));
    headers.forEach((header, number) => {
      if (number === index) header.setAttribute("aria-sort", chosen.order);
      else header.removeAttribute("aria-sort");
    });
  };

  const filterRows = () => {
    const words = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const standing = row.className;
      const wanted = show.value === "all" || standing === show.value || (show.value === "done" && standing !== "failed");
      row.hidden = !wanted || !row.textContent.toLowerCase().includes(words);
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${rows.length} scans`;
  };

  const remember = () => {
    const parts = new URLSearchParams();
    if (chosen.sort !== "scan" || chosen.order !== "ascending") {
      parts.set("sort", chosen.sort);
      parts.set("order", chosen.order);
    }
    if (show.value !== "all") parts.set("show", show.value);
    if (find.value.trim()) parts.set("find", find.value.trim());
    history.replaceState(null, "", `#${parts}`);
  };

  // What the address does not say is as at the beginning; a link to a heading says nothing of the table.
  const recall = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    if (location.hash && !["sort", "order", "show", "find"].some((name) => parts.has(name))) return;
    const known = (values, name, otherwise) => (values.includes(parts.get(name)) ? parts.get(name) : otherwise);
    chosen.sort = known(headers.map((header) => header.dataset.column), "sort", "scan");
    chosen.order = known(["ascending", "descending"], "order", "ascending");
    show.value = known(Array.from(show.options, (option) => option.value), "show", "all");
    find.value = parts.get("find") ?? "";
    sortRows();
    filterRows();
  };

  const sortBy = (header) => {
    const column = header.dataset.column;
    // Of numbers the largest first: those are looked for.
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    chosen.order = chosen.sort === column && chosen.order === first ? other : first;
    chosen.sort = column;
    sortRows();
    remember();
  };

  for (const header of headers) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(header));
    header.replaceChildren(button);
  }
  for (const control of [find, show]) {
    control.addEventListener("input", () => {
      filterRows();
      remember();
    });
  }
  window.addEventListener("hashchange", recall);
  document.getElementById("controls").hidden = false;
  sortRows();
  filterRows();
  recall();
})();
