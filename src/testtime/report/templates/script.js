// Sort a table by a column: a first press, a second the other way, a third as it was. What has no key comes last.
for (const table of document.querySelectorAll('table')) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.querySelectorAll('tr.heads th')];
  const key = (row, i) => i ? row.cells[i].dataset.sort : row.cells[0].textContent.trim().toLowerCase();
  heads.forEach((head, i) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    const first = head.dataset.first || 'descending', second = first === 'ascending' ? 'descending' : 'ascending';
    button.addEventListener('click', () => {
      const now = head.ariaSort === first ? second : head.ariaSort === second ? null : first;
      for (const other of heads) other.removeAttribute('aria-sort');
      if (now) head.setAttribute('aria-sort', now);
      const sign = now === 'ascending' ? 1 : -1;
      const numeric = i > 0 && rows.every(row => !isNaN(key(row, i)));
      body.append(...(now ? [...rows].sort((a, b) => {
        const [x, y] = [key(a, i), key(b, i)];
        if (!x || !y) return !x - !y;
        return sign * (numeric ? x - y : x.localeCompare(y, 'en', {numeric: true}));
      }) : rows));
    });
  });
  if (rows.length > 8) {
    const field = document.createElement('input');
    field.type = 'search';
    field.placeholder = 'Filter rows';
    field.setAttribute('aria-label', 'Show the rows that contain');
    field.addEventListener('input', () => {
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(field.value.trim().toLowerCase());
    });
    table.closest('.scroll').before(field);
  }
}
// A name of a legend that has a line is a button, which brings the line forward in every chart.
const lines = new Set([...document.querySelectorAll('svg .line > title')].map(title => title.textContent));
for (const name of document.querySelectorAll('[data-line]')) {
  if (!lines.has(name.dataset.line)) continue;
  const button = document.createElement('button');
  for (const a of name.attributes) button.setAttribute(a.name, a.value);
  button.type = 'button';
  button.ariaPressed = 'false';
  button.append(...name.childNodes);
  name.replaceWith(button);
  button.addEventListener('click', () => {
    const on = button.ariaPressed !== 'true';
    button.ariaPressed = String(on);
    for (const path of document.querySelectorAll('svg .line'))
      if (path.querySelector('title')?.textContent === button.dataset.line) path.classList.toggle('forward', on);
    for (const svg of document.querySelectorAll('svg.chart'))
      svg.classList.toggle('some-forward', !!svg.querySelector('.forward'));
  });
}
