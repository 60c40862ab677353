// Read trimmed tokenizers with transformers.js and compare their ids: node with_trimmed.mjs DIR, where trimmed.py wrote.
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { AutoTokenizer, env } from '@huggingface/transformers';

env.localModelPath = process.argv[2];
env.allowRemoteModels = false;

const fits = [];
for (const file of readdirSync(env.localModelPath).filter((file) => file.endsWith('.json')).sort()) {
  const { texts, ids, ids_before: before } = JSON.parse(readFileSync(join(env.localModelPath, file), 'utf-8'));
  const name = basename(file, '.json');
  const [smaller, whole] = [await AutoTokenizer.from_pretrained(name), await AutoTokenizer.from_pretrained(`before/${name}`)];
  // Of sentencepiece's table of characters it knows a part, so joined emoji are read otherwise before and after.
  const own = texts.filter((text, index) => String(whole.encode(text)) !== String(before[index]));
  const wrong = texts.filter((text, index) => String(smaller.encode(text)) !== String(ids[index]) && !own.includes(text));
  fits.push(wrong.length === 0 && own.length <= 3);
  const verdict = fits.at(-1) ? 'ok' : `MISMATCH: ${JSON.stringify([...wrong, ...own][0]).slice(0, 80)}`;
  console.log(`transformers.js ${env.version}: ${name}: ${wrong.length} of ${texts.length} texts read otherwise, `
    + `${own.length} already before the trimming ${verdict}`);
}
process.exitCode = fits.length && fits.every(Boolean) ? 0 : 1;
