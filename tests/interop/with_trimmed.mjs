// Read trimmed tokenizers with transformers.js and compare their ids: node with_trimmed.mjs DIR, where trimmed.py wrote.
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { AutoTokenizer, env } from '@huggingface/transformers';

env.localModelPath = process.argv[2];
env.allowRemoteModels = false;

const fits = [];
for (const file of readdirSync(env.localModelPath).filter((file) => file.endsWith('.json')).sort()) {
  const { texts, ids } = JSON.parse(readFileSync(join(env.localModelPath, file), 'utf-8'));
  const name = basename(file, '.json');
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const wrong = texts.filter((text, index) => String(tokenizer.encode(text)) !== String(ids[index]));
  fits.push(wrong.length === 0);
  const verdict = fits.at(-1) ? 'ok' : `MISMATCH: ${JSON.stringify(wrong[0]).slice(0, 80)}`;
  console.log(`transformers.js ${env.version}: ${name}: ${wrong.length} of ${texts.length} texts read otherwise ${verdict}`);
}
process.exitCode = fits.length && fits.every(Boolean) ? 0 : 1;
