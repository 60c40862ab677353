// Use the pages of a running server in Chromium at three widths, light and dark: ask every model, read the
// documentation; fail at messages of the browser, requests to elsewhere, sideways scrolling, violations of axe's rules,
// and at markup that a text smuggled in.
//
//   node check_server.mjs OUT OPEN-URL [LOCKED-URL KEY]     screenshots go below OUT
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { launch, open, overflow, SCHEMES, shoot, tally, violations, WIDTHS } from './browse.mjs';

const HOSTILE = '<img src=x onerror=alert(1)> \u{1F642} </textarea><script>alert(2)</script>';
const [out, base, locked, key] = process.argv.slice(2);
if (!base) {
  console.error('usage: node check_server.mjs OUT OPEN-URL [LOCKED-URL KEY]');
  process.exit(2);
}
const results = tally();
const browser = await launch();
try {
  for (const scheme of SCHEMES) {
    for (const width of WIDTHS) {
      await look('try', base, { scheme, width, quiet: /status of 413/ }, tryAll);
      await look('docs', new URL('docs', base).href, { scheme, width }, readDocs);
      if (locked) await look('locked', locked, { scheme, width, quiet: /status of 401/ }, unlock);
    }
  }
} finally {
  await browser.close();
}
process.exit(results.end());

async function look(name, url, { scheme, width, quiet }, use) {
  const wrong = [];
  const folder = path.join(out, name);
  await mkdir(folder, { recursive: true });
  const origin = new URL(url).origin;
  const page = await open(browser, { width, scheme, wrong, isAllowed: (asked) => new URL(asked).origin === origin });
  await page.goto(url, { waitUntil: 'networkidle0' });
  const check = async (label) => {
    wrong.push(...(await overflow(page)).map((line) => `${label}: ${line}`));
    wrong.push(...(await violations(page)).map((line) => `${label}: ${line}`));
    await shoot(page, folder, `${scheme}-${width}-${label}`, width);
  };
  await use(page, check, wrong);
  await page.close();
  results.add(`${name}, ${width} px, ${scheme}`, wrong.filter((line) => !quiet?.test(line)));
}

async function tryAll(page, check, wrong) {
  await check('first');
  const models = await page.$$eval('#model option', (options) => options.map((option) => option.value));
  for (const model of models) {
    await page.select('#model', model);
    await page.$eval('#options', (part) => { part.open = true; });
    await ask(page, wrong, model);
    await check(`answer-${model}`);
  }
  // An example's button fills the field, and its text is answered.
  for (const model of models) {
    await page.select('#model', model);
    const buttons = await page.$$('#examples button');
    if (buttons.length < 2) wrong.push(`no example texts: ${model}`);
    const first = await page.$eval('#text', (field) => field.value);
    await buttons.at(-1)?.click();
    if ((await page.$eval('#text', (field) => field.value)) === first) wrong.push(`an example does not fill the field: ${model}`);
    await ask(page, wrong, `example ${model}`);
  }
  // What is typed never becomes part of the page.
  for (const model of models) {
    await page.select('#model', model);
    await page.$eval('#text', (field, text) => { field.value = text; }, `[MASK] ${HOSTILE}`);
    await page.$eval('#question', (field, text) => { field.value = text; }, HOSTILE);
    await ask(page, wrong, `hostile ${model}`);
    if (await page.$('#answers img, #answers script')) wrong.push(`a text became markup: ${model}`);
  }
  await page.$eval('#text', (field) => { field.value = 'x'.repeat(600000); });
  await page.click('#send');
  await page.waitForSelector('#result .problem');
  await check('refused');
}

async function ask(page, wrong, label) {
  await page.$eval('#result', (part) => part.replaceChildren());
  await page.click('#send');
  await page.waitForSelector('#result > *');
  const problem = await page.$('#result .problem');
  if (problem) wrong.push(`no answer: ${label}: ${await problem.evaluate((part) => part.textContent)}`);
}

async function readDocs(page, check, wrong) {
  await page.waitForSelector('#operations details');
  await check('first');
  const paths = await page.$$eval('#operations section:first-child > details > summary code', (codes) => codes.map((code) => code.textContent));
  if (paths[0] !== '/predict' || paths.some((path) => path.split('/').length > 2)) wrong.push(`long paths are not folded: ${paths.join(', ')}`);
  await page.evaluate(() => document.querySelectorAll('details').forEach((part) => { part.open = true; }));
  await check('open');
  const text = await page.$eval('#operations', (part) => part.textContent);
  if (/undefined|\[object/.test(text)) wrong.push('the documentation says "undefined" or "[object"');
}

async function unlock(page, check, wrong) {
  await page.waitForSelector('#key-part:not([hidden])');
  await check('first');
  await page.type('#key', key);
  await page.click('#send');
  await page.waitForSelector('#result .answer');
  if (await page.$('#result .problem')) wrong.push('the key does not open');
  await check('answer');
}
