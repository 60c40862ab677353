// Show openapi.json.
import { make, table } from './parts.js';

const TITLES = { model: 'Ask a model', 'open inference protocol': 'Open Inference Protocol', health: 'Health', facts: 'What is served', pages: 'Pages' };
const ABOUT = {
  maxLength: (value) => `at most ${value.toLocaleString('en')} characters`, maxItems: (value) => `at most ${value.toLocaleString('en')}`,
  minItems: (value) => `at least ${value}`, pattern: (value) => `matches ${value}`,
};

// So many long paths are folded; fewer stand as they are.
const FOLDED = 3;

const spec = await (await fetch('openapi.json')).json();
document.getElementById('about').textContent = `potstill ${spec.info.version}. ${spec.info.summary} ${spec.info.description}`;
document.getElementById('operations').replaceChildren(...groups(), errors());

function groups() {
  const found = new Map(Object.keys(TITLES).map((tag) => [tag, []]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? 'facts';
      if (!found.has(tag)) found.set(tag, []);
      found.get(tag).push([path, shown(path, method, operation)]);
    }
  }
  return [...found].filter(([, parts]) => parts.length).map(([tag, parts]) => {
    // The sort is stable: paths of one length stay in the document's order.
    const sorted = parts.sort(([one], [other]) => depth(one) - depth(other));
    const short = sorted.filter(([path]) => depth(path) === 1).map(([, part]) => part);
    const long = sorted.filter(([path]) => depth(path) > 1).map(([, part]) => part);
    const fold = long.length < FOLDED ? long : [make('details', { className: 'more' },
      make('summary', {}, `${long.length} ${short.length ? 'longer ' : ''}paths`), ...long)];
    return make('section', {}, make('h2', {}, TITLES[tag] ?? tag), ...short, ...fold);
  });
}

function depth(path) {
  return path.split('/').length - 1;
}

function shown(path, method, operation) {
  const title = make('summary', {}, make('span', { className: 'method' }, method.toUpperCase()), make('code', {}, path), make('span', { className: 'what' }, ` ${operation.summary ?? ''}`));
  const parts = [];
  if (operation.description) parts.push(make('p', {}, operation.description));
  if (operation.security) parts.push(make('p', {}, 'Needs a key: ', make('code', {}, 'Authorization: Bearer KEY')));
  const media = operation.requestBody?.content?.['application/json'];
  if (media) {
    parts.push(make('h3', {}, 'Body'), fields(media.schema));
    parts.push(make('h3', {}, 'Example'), make('pre', { tabIndex: 0, ariaLabel: 'example', role: 'group' }, curl(path, media.example)));
  }
  if (operation.parameters?.length) {
    parts.push(make('h3', {}, 'Headers and parameters'), table(['Name', 'Where', 'What'], operation.parameters.map((parameter) => [
      parameter.name, parameter.in, [words(parameter.schema), parameter.description].filter(Boolean).join('. '),
    ])));
  }
  const answers = Object.entries(operation.responses);
  const good = answers.find(([status]) => status === '200')?.[1];
  const schema = good?.content?.['application/json']?.schema;
  if (schema) parts.push(make('h3', {}, 'Answer'), fields(schema));
  if (good?.headers) {
    parts.push(make('h3', {}, 'Headers of the answer'), table(['Name', 'What'], Object.entries(good.headers).map(([name, header]) => [name, header.description ?? words(header.schema)])));
  }
  parts.push(make('p', { className: 'soft small' }, `Statuses: ${answers.map(([status]) => status).join(', ')}.`));
  return make('details', {}, title, ...parts);
}

function errors() {
  const all = new Map();
  for (const methods of Object.values(spec.paths)) {
    for (const operation of Object.values(methods)) {
      for (const [status, response] of Object.entries(operation.responses)) if (status >= '400') all.set(status, response.description);
    }
  }
  const rows = [...all].sort(([one], [other]) => one - other);
  return make('section', {}, make('h2', {}, 'Errors'),
    make('p', {}, 'Every error is ', make('code', {}, '{"error": "what was wrong, what was expected", "error_type": "…"}'), ' (under ', make('code', {}, '/v1'), ' as OpenAI has them), and holds nothing of what was sent.'),
    make('details', {}, make('summary', {}, 'All statuses'), table(['Status', 'When'], rows)));
}

// A schema in words, and its fields below it.
function fields(schema, parts = [make('p', {}, words(schema))]) {
  const objects = inner(schema);
  for (const object of objects) {
    const rows = Object.entries(object.properties ?? {}).map(([name, child]) => make('li', {},
      make('p', {}, make('code', {}, name), (object.required ?? []).includes(name) ? ' (needed): ' : ': ', words(child)),
      ...(child.description ? [make('p', { className: 'soft small' }, child.description)] : []),
      ...(inner(child).length ? [fields(child, [])] : [])));
    if (rows.length) parts.push(make('ul', { className: 'fields' }, ...rows));
  }
  return make('div', {}, ...parts);
}

// The objects that a value of this schema is, or is a list of.
function inner(schema) {
  if (schema.$ref) return inner(resolve(schema));
  const found = [schema, ...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.items ? [schema.items] : [])]
    .flatMap((part) => (part === schema ? (schema.properties ? [schema] : []) : inner(part)));
  return [...new Map(found.map((part) => [JSON.stringify(part.properties), part])).values()];
}

function words(schema) {
  if (schema.$ref) return words(resolve(schema));
  const [one, several] = schema.anyOf ?? [];
  if (several?.type === 'array' && schema.anyOf.length === 2 && JSON.stringify(several.items) === JSON.stringify(one)) {
    const count = 'maxItems' in several ? ` (${several.minItems ?? 0} to ${several.maxItems.toLocaleString('en')})` : '';
    return `${words(one)}; or a list of these${count}`;
  }
  if (schema.anyOf ?? schema.oneOf) return [...new Set((schema.anyOf ?? schema.oneOf).map(words))].join(', or ');
  if ('const' in schema) return JSON.stringify(schema.const);
  if (schema.enum) return `one of ${schema.enum.map((value) => JSON.stringify(value)).join(', ')}`;
  const limits = range(schema);
  limits.push(...Object.entries(ABOUT).filter(([key]) => key in schema).map(([key, write]) => write(schema[key])));
  if ('default' in schema && schema.default !== null) limits.push(`${JSON.stringify(schema.default)} by default`);
  const name = schema.type === 'array' ? `list of (${words(schema.items ?? {})})` : schema.type ?? 'any value';
  return [name, ...limits].join(', ');
}

function range({ minimum, maximum }) {
  const [least, most] = [minimum, maximum].map((value) => value?.toLocaleString('en'));
  if (least !== undefined && most !== undefined) return [`${least} to ${most}`];
  return [...(least === undefined ? [] : [`at least ${least}`]), ...(most === undefined ? [] : [`at most ${most}`])];
}

function resolve(schema) {
  return schema.$ref.split('/').slice(1).reduce((found, key) => found[key], spec);
}

function curl(path, example) {
  const url = new URL(`.${path}`, document.baseURI);
  return `curl '${url}' -H 'Content-Type: application/json' -d '${JSON.stringify(example).replaceAll("'", "'\\''")}'`;
}
