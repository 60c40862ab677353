// What the checks of reports and of the server's pages share: a browser, and what a reader would mind.
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import chromium from '@sparticuz/chromium';
import puppeteer from 'puppeteer-core';

export const WIDTHS = [360, 768, 1280];
export const SCHEMES = ['light', 'dark'];
// Chromium's screenshots repeat themselves beyond about 8,000 pixels.
const SLICE = 2400;
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

export async function launch() {
  return puppeteer.launch({
    args: [...chromium.args, '--no-sandbox'], executablePath: await chromium.executablePath(), headless: 'shell',
  });
}

// Open a page that notes in `wrong` what the browser says and what it asks for beyond what `isAllowed` lets through.
export async function open(browser, { width, scheme, media = 'screen', wrong, isAllowed }) {
  const page = await browser.newPage();
  page.on('console', (message) => {
    if (['error', 'warn', 'warning'].includes(message.type())) wrong.push(`console ${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => wrong.push(`page error: ${error.message}`));
  page.on('request', (request) => {
    if (!isAllowed(request.url())) wrong.push(`request: ${request.url()}`);
  });
  page.on('dialog', async (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  await page.setViewport({ width, height: 800 });
  // Puppeteer's own two calls each undo the other.
  const devtools = await page.createCDPSession();
  await devtools.send('Emulation.setEmulatedMedia', { media, features: [{ name: 'prefers-color-scheme', value: scheme }] });
  return page;
}

// Nothing may be wider than the window; what scrolls within itself may, but not on paper.
export function overflow(page) {
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

export async function violations(page) {
  await page.evaluate(axe);
  const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return result.violations.map((rule) => `axe ${rule.id}: ${rule.help}: ${rule.nodes.slice(0, 3).map((node) => node.target.join(' ')).join('; ')}`);
}

// Pictures are for people, and take longer than the checks: SHOTS=no leaves them out.
export async function shoot(page, folder, label, width) {
  if (process.env.SHOTS === 'no') return;
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  for (let top = 0, part = 0; top < height; top += SLICE, part += 1) {
    const clip = { x: 0, y: top, width, height: Math.min(SLICE, height - top) };
    const image = await page.screenshot({ clip, captureBeyondViewport: true });
    await writeFile(path.join(folder, `${label}-${String(part).padStart(2, '0')}.png`), image);
  }
}

// Counts what was looked at; `end` says it and gives the exit code.
export function tally() {
  const found = [];
  let passed = 0;
  let failed = 0;
  return {
    add(where, wrong) {
      if (wrong.length === 0) passed += 1;
      else failed += 1;
      found.push(...[...new Set(wrong)].map((line) => `${where}: ${line}`));
    },
    end() {
      for (const line of found) console.error(line);
      console.log(`${passed} passed, ${failed} failed`);
      return failed ? 1 : 0;
    },
  };
}
