// Answers as elements, by task.

// Make an element; children are elements or plain text.
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// So many answers are shown at once.
const SHOWN = 10;

// The answers to one input or a list of them.
export function shown(task, inputs, content) {
  if (task === 'feature-extraction') return vectors(inputs, content);
  const several = Array.isArray(inputs);
  const items = several ? inputs : [inputs];
  const answers = several ? content : [content];
  return items.map((item, index) => {
    const title = several ? [make('h3', {}, item)] : [];
    return make('div', { className: 'answer' }, ...title, ...SHOW[task](item, answers[index]));
  });
}

const SHOW = {
  'text-classification': (_, answer) => [scores(answer, (row) => row.label)],
  'token-classification': (text, answer) => entities(text, answer),
  'question-answering': (item, answer) => spans(item.context, Array.isArray(answer) ? answer : [answer]),
  'fill-mask': (_, answer) => {
    const masks = Array.isArray(answer[0]) ? answer : [answer];
    return masks.flatMap((rows, index) => [
      ...(masks.length > 1 ? [make('h3', {}, `Mask ${index + 1}`)] : []), scores(rows, (row) => row.token_str),
    ]);
  },
};

// The first ones; a list that is longer by more than a line is folded.
function scores(rows, name) {
  const most = Math.max(1, ...rows.map((row) => Math.abs(row.score)));
  const lines = rows.map((row) => {
    const fill = make('i');
    fill.style.width = `${(Math.max(0, row.score) / most) * 100}%`;
    return make('li', {}, make('div', {}, make('span', {}, name(row)), make('span', {}, row.score.toFixed(4))),
      make('span', { className: 'bar', ariaHidden: 'true' }, fill));
  });
  const list = (some, start = 1) => make('ol', { className: 'scores', start }, ...some);
  if (lines.length <= SHOWN + 1) return list(lines);
  return make('div', {}, list(lines.slice(0, SHOWN)),
    make('details', {}, make('summary', {}, `${lines.length - SHOWN} more`), list(lines.slice(SHOWN), SHOWN + 1)));
}

// Offsets count characters as Python does: an emoji is one.
function entities(text, rows) {
  if (rows.length === 0) return [make('p', {}, 'Nothing was found.')];
  const characters = Array.from(text);
  const kinds = [...new Set(rows.map(kind))];
  const parts = [];
  let at = 0;
  for (const row of [...rows].sort((one, other) => one.start - other.start)) {
    parts.push(characters.slice(at, row.start).join(''));
    const mark = make('mark', { className: `mark-${kinds.indexOf(kind(row)) % 5}` }, characters.slice(row.start, row.end).join(''));
    mark.append(make('small', {}, kind(row)));
    parts.push(mark);
    at = row.end;
  }
  parts.push(characters.slice(at).join(''));
  const lines = rows.map((row) => [row.word, kind(row), row.score.toFixed(4), `${row.start}–${row.end}`]);
  return [make('p', { className: 'read' }, ...parts), table(['Word', 'Kind', 'Score', 'Characters'], lines)];
}

const kind = (row) => row.entity_group ?? row.entity;

function spans(context, rows) {
  const characters = Array.from(context);
  const best = rows[0];
  if (!best || !best.answer) return [make('p', {}, 'The text does not answer it, says the model.'), ...(best ? [scores(rows, (row) => row.answer || 'no answer')] : [])];
  return [
    scores(rows, (row) => row.answer || 'no answer'),
    make('p', { className: 'read' }, characters.slice(0, best.start).join(''),
      make('mark', {}, characters.slice(best.start, best.end).join('')), characters.slice(best.end).join('')),
  ];
}

function vectors(inputs, content) {
  const several = Array.isArray(inputs);
  const texts = several ? inputs : [inputs];
  const rows = several ? content : [content];
  const numbers = rows.map((row, index) => [texts[index], `${row.slice(0, 4).map((value) => value.toFixed(3)).join(', ')}, …`]);
  const parts = [make('p', {}, `${rows.length} of ${rows[0].length} numbers each.`.replace('1 of', 'One vector of').replace(/^(\d+) of/, '$1 vectors of')),
    table(['Text', 'Begins with'], numbers)];
  if (rows.length > 1) {
    const lines = rows.map((row, index) => [`${index + 1}. ${texts[index]}`, ...rows.map((other) => cosine(row, other).toFixed(2))]);
    parts.push(make('h3', {}, 'How alike they are (cosine)'), table(['Text', ...rows.map((_, index) => String(index + 1))], lines));
  }
  return [make('div', { className: 'answer' }, ...parts)];
}

function cosine(one, other) {
  let both = 0, left = 0, right = 0;
  for (let index = 0; index < one.length; index += 1) {
    both += one[index] * other[index];
    left += one[index] ** 2;
    right += other[index] ** 2;
  }
  return both / Math.sqrt(left * right || 1);
}

export function table(titles, lines) {
  const head = make('thead', {}, make('tr', {}, ...titles.map((title) => make('th', { scope: 'col' }, title))));
  const body = make('tbody', {}, ...lines.map(([first, ...others]) => make('tr', {},
    make('th', { scope: 'row' }, first), ...others.map((cell) => make('td', { className: 'number' }, cell)))));
  return make('div', { className: 'table', tabIndex: 0, role: 'group', ariaLabel: 'table' }, make('table', {}, head, body));
}
