// Load every bundle with transformers.js and compare: node with_transformers_js.mjs DIR, where make_bundles.py wrote.
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import {
  AutoModel,
  AutoModelForMaskedLM,
  AutoModelForQuestionAnswering,
  AutoModelForSequenceClassification,
  AutoModelForTokenClassification,
  AutoTokenizer,
  env,
} from '@huggingface/transformers';

const TOOL = `transformers.js ${env.version}`;
const CLASSES = {
  'feature-extraction': AutoModel,
  'fill-mask': AutoModelForMaskedLM,
  'question-answering': AutoModelForQuestionAnswering,
  'text-classification': AutoModelForSequenceClassification,
  'token-classification': AutoModelForTokenClassification,
};
// A dtype is a suffix of the file's name. Where there is none of that name, the file is named and fp32 adds nothing.
const OPTIONS = {
  fp32: { dtype: 'fp32' },
  int8: { dtype: 'int8' },
  'int8-static': { dtype: 'fp32', model_file_name: 'model_int8_static' },
};
// What is loaded where nothing is said: what config.json names.
const DEFAULT = 'int8';
// As in compare.py, and so is how a difference is measured.
const TOLERANCES = { fp32: 1e-4, int8: 3e-2, 'int8-static': 1e-2 };

env.localModelPath = process.argv[2];
env.allowRemoteModels = false;

async function ask({ name, task, options, batches }) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await CLASSES[task].from_pretrained(name, options);
  const answers = [];
  for (const { texts, inputs: expected } of batches) {
    const pairs = Array.isArray(texts[0]);
    const first = pairs ? texts.map((pair) => pair[0]) : texts;
    const second = pairs ? texts.map((pair) => pair[1]) : null;
    const inputs = await tokenizer(first, { text_pair: second, padding: true, truncation: true });
    for (const [input, ids] of Object.entries(expected)) {
      if (String(inputs[input].tolist()) !== String(ids)) throw new Error(`${TOOL}: ${name}: other ${input}`);
    }
    answers.push(await model(inputs));
  }
  return answers;
}

// The largest difference; infinite where the shapes or, if asked, the labels differ.
function difference(tensor, wanted, { labels }) {
  const [theirs, ours] = [Array.from(tensor.data), wanted.flat(Infinity)];
  const width = tensor.dims.at(-1);
  const best = (values) => wanted.map((_, row) => {
    const some = values.slice(row * width, (row + 1) * width);
    return some.indexOf(Math.max(...some));
  });
  if (theirs.length !== ours.length || (labels && String(best(theirs)) !== String(best(ours)))) return Infinity;
  const largest = ours.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
  return ours.reduce((most, value, index) => Math.max(most, Math.abs(value - theirs[index])), 0) / largest;
}

const fits = [];
for (const file of readdirSync(env.localModelPath).filter((file) => file.endsWith('.json')).sort()) {
  const { task, files, batches: all } = JSON.parse(readFileSync(join(env.localModelPath, file), 'utf-8'));
  // transformers.js cuts off a text that is too long together with the separator that belongs at its end.
  const batches = all.filter(({ cut }) => !cut);
  const asked = Object.keys(files).map((precision) => [precision, OPTIONS[precision], precision]);
  for (const [precision, options, told] of [...asked, [DEFAULT, {}, 'unasked']]) {
    const answers = await ask({ name: basename(file, '.json'), task, options, batches });
    const names = Object.keys(batches[0].outputs[precision]).sort();
    const worst = Math.max(...names.flatMap((name) => answers.map((answer, index) =>
      difference(answer[name], batches[index].outputs[precision][name], { labels: task === 'text-classification' }))));
    fits.push(worst <= TOLERANCES[precision]);
    const verdict = fits.at(-1) ? 'ok' : `MISMATCH: at most ${TOLERANCES[precision]} was expected`;
    console.log(`${TOOL}: ${task} ${told} (${names.join(', ')}): max difference ${worst.toExponential(1)} ${verdict}`);
  }
}
process.exitCode = fits.length && fits.every(Boolean) ? 0 : 1;
