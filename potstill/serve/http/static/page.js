// Ask the model by hand. Whatever comes from a user or the model becomes text nodes, never markup.
import { make, shown } from './parts.js';

const by = (id) => document.getElementById(id);
// The first stands in the field when the page opens.
const EXAMPLES = {
  'text-classification': [
    { text: 'A great movie, and far too short.' },
    { text: 'Two hours of my life that nobody gives back.' },
    { text: 'The plot is thin, but the music carries it.' },
  ],
  'token-classification': [
    { text: 'Ada Lovelace lived in London and wrote to Charles Babbage.' },
    { text: 'Nokia was founded in Tampere in 1865.' },
    { text: 'She flew from Lisbon to Berlin to meet Angela Merkel.' },
  ],
  'question-answering': [
    { question: 'Where did she live?', text: 'Ada Lovelace lived in London, and wrote the first program.' },
    { question: 'When was Nokia founded?', text: 'Nokia was founded in Tampere in 1865 as a paper mill.' },
  ],
  'fill-mask': [
    { text: 'Paris is the [MASK] of France.' },
    { text: 'The opposite of hot is [MASK].' },
    { text: 'She plays the [MASK] in an orchestra.' },
  ],
  'feature-extraction': [
    { text: 'A great movie.\nA wonderful film.\nThe train leaves at nine.' },
    { text: 'How do I reset my password?\nI cannot log in any more.\nWhere is my parcel?' },
  ],
};
// Letters of an example that its button shows.
const SHORT = 34;
const SHOWN = 2000;
let models = {};
let task = '';
let before = '';

const headers = () => (by('key').value ? { Authorization: `Bearer ${by('key').value}` } : {});

async function load() {
  const response = await fetch('info', { headers: headers() });
  if (response.status === 401) {
    by('key-part').hidden = false;
    by('send').textContent = 'Use the key';
    by('facts').textContent = 'The server asks for a key before it says what it serves.';
    return false;
  }
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  models = content.models;
  const names = Object.keys(models);
  by('model').replaceChildren(...names.map((name) => make('option', { value: name }, name)));
  by('model').value = content.default_model;
  by('model-part').hidden = names.length < 2;
  by('send').textContent = 'Answer';
  by('ask').hidden = false;
  by('hint').hidden = false;
  choose();
  return true;
}

// Show the fields that the chosen model's task has.
function choose() {
  const model = models[by('model').value];
  task = model.task;
  for (const part of document.querySelectorAll('[data-for]')) part.hidden = !part.dataset.for.split(' ').includes(task);
  by('options').hidden = ![...by('options').querySelectorAll('[data-for]')].some((part) => !part.hidden);
  by('lines-part').hidden = task === 'question-answering';
  by('lines').checked = task === 'feature-extraction';
  by('text-label').textContent = task === 'question-answering' ? 'Text that answers it' : 'Text';
  const examples = (EXAMPLES[task] ?? []).map(({ text, question }) => ({ text: text.replace('[MASK]', model.mask_token ?? '[MASK]'), question }));
  if (examples.length && (!by('text').value || by('text').value === before)) fill(examples[0]);
  by('examples').hidden = examples.length < 2;
  by('examples').replaceChildren(make('span', { className: 'soft small' }, 'Examples:'), ...examples.map((example) => {
    const title = (example.question ?? example.text).replaceAll('\n', ' ');
    const button = make('button', { type: 'button', className: 'example' }, title.length > SHORT ? `${title.slice(0, SHORT - 1).trimEnd()}…` : title);
    button.addEventListener('click', () => fill(example));
    return button;
  }));
  by('facts').textContent = `${by('model').value}: ${task}, ${model.precision} in ${model.engine}, ${model.parameters.toLocaleString('en')} `
    + `parameters, up to ${model.max_length} tokens. Hash ${model.model_sha256.slice(0, 12)}.`;
}

function fill({ text, question }) {
  before = text;
  by('text').value = text;
  by('question').value = question ?? '';
}

function inputs() {
  const text = by('text').value;
  if (task === 'question-answering') return { question: by('question').value, context: text };
  if (by('lines').checked) return text.split('\n').filter((line) => line.trim());
  if (task === 'text-classification' && by('pair').value) return { text, text_pair: by('pair').value };
  return text;
}

function parameters() {
  const found = {};
  if (task !== 'token-classification' && task !== 'feature-extraction' && by('top-k').value) found.top_k = Number(by('top-k').value);
  if (task === 'text-classification' && by('function').value) found.function_to_apply = by('function').value;
  if (task === 'token-classification') found.aggregation_strategy = by('aggregation').value;
  if (task === 'feature-extraction' && by('normalize').checked) found.normalize = true;
  if (task === 'question-answering' && by('impossible').checked) found.handle_impossible_answer = true;
  return found;
}

async function ask() {
  if (!task && !(await load())) return;
  const body = { inputs: inputs(), parameters: parameters() };
  const path = `models/${encodeURIComponent(by('model').value)}/predict`;
  by('curl').textContent = curl(new URL(path, document.baseURI), body);
  const started = performance.now();
  const response = await fetch(path, {
    method: 'POST', headers: { 'Content-Type': 'application/json', ...headers() }, body: JSON.stringify(body),
  });
  const content = await response.json();
  const wall = performance.now() - started;
  by('json').textContent = shorten(JSON.stringify(content, null, 2));
  if (!response.ok) throw new Error(`${response.status}: ${content.error}`);
  const said = ['Tokenize', 'Queue', 'Inference'].map((name) => `${name.toLowerCase()} ${milliseconds(response.headers.get(`X-${name}-Time-Ms`))}`);
  by('timing').textContent = `${response.headers.get('X-Tokens')} tokens; ${said.join(', ')}; ${wall.toFixed(1)} ms in all, as this page saw it.`;
  by('result').replaceChildren(...shown(task, body.inputs, content));
}

const milliseconds = (text) => `${Number(text).toFixed(1)} ms`;
const shorten = (text) => (text.length > SHOWN ? `${text.slice(0, SHOWN)}\n… ${text.length - SHOWN} characters more` : text);

function curl(url, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = by('key').value ? " -H 'Authorization: Bearer KEY'" : '';
  return `curl '${url}' -H 'Content-Type: application/json'${key} -d '${quoted}'`;
}

function complain(error) {
  by('answers').hidden = false;
  by('timing').textContent = '';
  by('result').replaceChildren(make('p', { className: 'problem', role: 'alert' }, make('strong', {}, 'No answer. '), error.message));
}

by('model').addEventListener('change', choose);
by('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  if (by('send').getAttribute('aria-disabled') === 'true') return;
  by('send').setAttribute('aria-disabled', 'true');
  try {
    await ask();
    if (task) by('answers').hidden = false;
  } catch (error) {
    complain(error);
  } finally {
    by('send').removeAttribute('aria-disabled');
  }
});
by('text').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) by('form').requestSubmit();
});
load().catch(complain);
