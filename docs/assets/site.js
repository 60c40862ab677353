// What the theme leaves to be wished by those who use a keyboard or a screen reader. The theme itself works at `load`.
addEventListener('load', () => setTimeout(() => {
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  for (const part of document.querySelectorAll('.md-typeset pre > code, .md-typeset__scrollwrap')) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
  document.querySelectorAll('nav').forEach((part, number) => {
    part.removeAttribute('aria-labelledby');
    part.setAttribute('aria-label', part.matches('.md-code__nav') ? `Code ${number}` : `Navigation ${number}`);
  });
}, 100));
