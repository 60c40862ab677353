// Open each report in Chromium at three widths, light and dark, and as it is printed; fail at anything that a reader
// would mind: messages of the browser, requests, sideways scrolling, hidden parts on paper, violations of axe's rules.
//
//   node check.mjs OUT REPORT.html...      screenshots and a PDF of each go below OUT
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { launch, open, overflow, SCHEMES, shoot, tally, violations, WIDTHS } from './browse.mjs';

// Where what is folded away is shown as well; it is checked everywhere.
const OPEN = new Set(['light-1280', 'dark-360']);
// A4 at 96 pixels per inch, less the page's margins of 12 mm.
const PAPER = Math.round((210 - 24) / 25.4 * 96);

const [out, ...files] = process.argv.slice(2);
if (!out || files.length === 0) {
  console.error('usage: node check.mjs OUT REPORT.html...');
  process.exit(2);
}
const results = tally();
const browser = await launch();
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
process.exit(results.end());

// Look at one file in one way; note what is wrong with it.
async function look(file, name, { scheme, width, media }) {
  const wrong = [];
  const url = pathToFileURL(path.resolve(file)).href;
  const folder = path.join(out, name);
  const page = await open(browser, { width, scheme, media, wrong, isAllowed: (asked) => asked === url });
  await page.goto(url, { waitUntil: 'networkidle0' });
  if (media === 'screen') {
    wrong.push(...await overflow(page));
    await shoot(page, folder, `${scheme}-${width}`, width);
    await page.evaluate(() => document.querySelectorAll('details').forEach((part) => { part.open = true; }));
    if (OPEN.has(`${scheme}-${width}`)) await shoot(page, folder, `${scheme}-${width}-open`, width);
  } else {
    wrong.push(...await hidden(page));
    await page.pdf({ path: path.join(folder, `${scheme}.pdf`), format: 'A4', printBackground: false, preferCSSPageSize: true });
    await shoot(page, folder, `${scheme}-print`, width);
  }
  wrong.push(...await overflow(page), ...await violations(page));
  await page.close();
  results.add(`${name}, ${media} ${width} px, ${scheme}`, wrong);
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
