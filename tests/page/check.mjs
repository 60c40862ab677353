// Open each report in Chromium at three widths, light and dark, and as it is printed; fail at anything that a reader
// would mind: messages of the browser, requests, sideways scrolling, hidden parts on paper, violations of axe's rules.
//
//   node check.mjs OUT REPORT.html...      screenshots and a PDF of each go below OUT
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import chromium from '@sparticuz/chromium';
import puppeteer from 'puppeteer-core';

const WIDTHS = [360, 768, 1280];
// Where what is folded away is shown as well; it is checked everywhere.
const OPEN = new Set(['light-1280', 'dark-360']);
const SCHEMES = ['light', 'dark'];
// A4 at 96 pixels per inch, less the page's margins of 12 mm.
const PAPER = Math.round((210 - 24) / 25.4 * 96);
// Chromium's screenshots repeat themselves beyond about 8,000 pixels.
const SLICE = 2400;

const [out, ...files] = process.argv.slice(2);
if (!out || files.length === 0) {
  console.error('usage: node check.mjs OUT REPORT.html...');
  process.exit(2);
}
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const found = [];
let passed = 0;
let failed = 0;

const browser = await puppeteer.launch({
  args: [...chromium.args, '--no-sandbox'], executablePath: await chromium.executablePath(), headless: 'shell',
});
try {
  for (const file of files) {
    const name = path.basename(path.dirname(path.resolve(file)));
    await mkdir(path.join(out, name), { recursive: true });
    for (const scheme of SCHEMES) {
      for (const width of WIDTHS) await look(file, name, { scheme, width, media: 'screen' });
      await look(file, name, { scheme, width: PAPER, media: 'print' });
    }
  }
} finally {
  await browser.close();
}
for (const line of found) console.error(line);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);

// Look at one file in one way; note what is wrong with it.
async function look(file, name, { scheme, width, media }) {
  const where = `${name}, ${media} ${width} px, ${scheme}`;
  const wrong = [];
  const page = await browser.newPage();
  const url = pathToFileURL(path.resolve(file)).href;
  page.on('console', (message) => {
    if (['error', 'warn', 'warning'].includes(message.type())) wrong.push(`console ${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => wrong.push(`page error: ${error.message}`));
  page.on('request', (request) => {
    if (request.url() !== url) wrong.push(`request: ${request.url()}`);
  });
  page.on('dialog', async (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  await page.setViewport({ width, height: 800 });
  // Puppeteer's own two calls each undo the other.
  const devtools = await page.createCDPSession();
  await devtools.send('Emulation.setEmulatedMedia', { media, features: [{ name: 'prefers-color-scheme', value: scheme }] });
  await page.goto(url, { waitUntil: 'networkidle0' });
  if (media === 'screen') {
    wrong.push(...await overflow(page));
    await shoot(page, name, `${scheme}-${width}`, width);
    await page.evaluate(() => document.querySelectorAll('details').forEach((part) => { part.open = true; }));
    if (OPEN.has(`${scheme}-${width}`)) await shoot(page, name, `${scheme}-${width}-open`, width);
  } else {
    wrong.push(...await hidden(page));
    await page.pdf({ path: path.join(out, name, `${scheme}.pdf`), format: 'A4', printBackground: false, preferCSSPageSize: true });
    await shoot(page, name, `${scheme}-print`, width);
  }
  wrong.push(...await overflow(page), ...await violations(page));
  await page.close();
  if (wrong.length === 0) passed += 1;
  else {
    failed += 1;
    found.push(...[...new Set(wrong)].map((line) => `${where}: ${line}`));
  }
}

// Nothing may be wider than the window; what scrolls within itself may, but not on paper.
function overflow(page) {
  return page.evaluate(() => {
    const root = document.documentElement;
    if (root.scrollWidth <= root.clientWidth) return [];
    const wide = [...document.body.querySelectorAll('*')].filter((part) => {
      const box = part.getBoundingClientRect();
      return box.width > 0 && box.right > root.clientWidth + 1 && !part.closest('.table table') && !part.closest('.skip');
    });
    const names = wide.slice(0, 3).map((part) => `${part.tagName.toLowerCase()}.${part.getAttribute('class') ?? ''}`);
    return [`scrolls sideways: ${root.scrollWidth} of ${root.clientWidth} px (${names.join(', ')})`];
  });
}

// On paper nothing can be opened and nothing scrolled.
function hidden(page) {
  return page.evaluate(() => {
    const lost = [];
    for (const part of document.querySelectorAll('details > :not(summary)')) {
      if (part.checkVisibility && !part.checkVisibility({ contentVisibilityAuto: true })) lost.push('a folded part is not printed');
    }
    for (const table of document.querySelectorAll('table')) {
      const over = Math.round(table.getBoundingClientRect().right - document.documentElement.clientWidth);
      if (over > 0) lost.push(`a table is cut on paper by ${over} px: ${table.innerText.slice(0, 40).replace(/\s+/g, ' ')}`);
    }
    return lost;
  });
}

async function violations(page) {
  await page.evaluate(axe);
  const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return result.violations.map((rule) => `axe ${rule.id}: ${rule.help}: ${rule.nodes.slice(0, 3).map((node) => node.target.join(' ')).join('; ')}`);
}

async function shoot(page, name, label, width) {
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  for (let top = 0, part = 0; top < height; top += SLICE, part += 1) {
    const clip = { x: 0, y: top, width, height: Math.min(SLICE, height - top) };
    const image = await page.screenshot({ clip, captureBeyondViewport: true });
    await writeFile(path.join(out, name, `${label}-${String(part).padStart(2, '0')}.png`), image);
  }
}
