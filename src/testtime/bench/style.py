"""How the report looks, and the one thing it does: bring a line forward."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root{--paper:#fdfcfa;--ink:#1c1f24;--dim:#666d78;--rule:#dcdad4;--soft:#f3f1ec;--accent:#0b63a5;--quiet:#b4b3ae;
--c1:#0b63a5;--c2:#c4500a;--c3:#0f8a66;--c4:#a8408a;--c5:#9a7400;--c6:#5a5f69;--known:#0b63a5;--unknown:#c4500a}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--ink:#e8e6e1;--dim:#9aa1ac;--rule:#30353d;--soft:#1c2027;
--accent:#6cb4f0;--quiet:#4d535d;--c1:#6cb4f0;--c2:#ff9a5c;--c3:#4fd1a5;--c4:#e88fcf;--c5:#e3c04d;--c6:#a7adb8;
--known:#6cb4f0;--unknown:#ff9a5c}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:66rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem}
h1{font-size:clamp(1.6rem,4.5vw,2.5rem);line-height:1.15;margin:.2rem 0 1rem;letter-spacing:-.02em;text-wrap:balance}
h2{font-size:1.3rem;margin:3rem 0 .75rem;letter-spacing:-.01em}
.kicker{color:var(--dim);margin:0;font-size:.9rem}
.lead{font-size:1.12rem;max-width:46rem;margin:0 0 1.25rem}
.note{color:var(--dim);font-size:.9rem;max-width:50rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:.7rem 0;border-block:1px solid var(--rule);font-size:.92rem}
a{color:var(--accent);text-underline-offset:.2em}
section{scroll-margin-top:1rem}
main{padding-bottom:5rem}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll:focus-visible,button:focus-visible,summary:focus-visible,a:focus-visible{outline:2px solid var(--accent);
outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.32rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
thead th{color:var(--dim);font-weight:500;vertical-align:bottom}
thead th[colspan]{text-align:center;color:var(--ink);font-weight:600}
th[scope=row],thead tr:first-child th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th[scope=row]{font-weight:500}
td.left,th.left{text-align:left;white-space:normal}
td.h{background:var(--soft)}
.best{font-weight:700}
tr.first th[scope=row]{font-weight:700}
tbody tr:hover td,tbody tr:hover th{background:var(--soft)}
.dim,.published{color:var(--dim);font-weight:400;font-size:.82em}
.published{font-style:italic}
abbr{text-decoration:underline dotted;text-underline-offset:.2em}
th.tilt{height:8.2rem;padding:.3rem .2rem}
th.tilt span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block}
td.heat{padding:.32rem .4rem;background:color-mix(in srgb,var(--accent) calc(var(--heat)*.55),var(--paper))}
figure{margin:1.4rem 0}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.35rem}
figure .scroll svg{width:100%;min-width:680px}
svg{display:block;max-width:100%;height:auto;overflow:visible;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
.scroll svg{max-width:none}
.grid{stroke:var(--rule);stroke-width:1}
.mark{stroke:var(--dim);stroke-width:1;stroke-dasharray:3 4;opacity:.55}
.tick{fill:var(--dim);font-size:11.5px}
.label{font-size:12.5px;font-weight:600;stroke:none}
.label.quiet{fill:var(--dim);font-weight:400}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.quiet{stroke:var(--quiet);stroke-width:1.1}
.dot.quiet{fill:var(--quiet)}
.whisker{stroke-width:1.5}.whisker.quiet{stroke:var(--quiet)}
.leader{stroke:var(--dim);stroke-width:.8;opacity:.7}
.line.forward{stroke-width:4!important;stroke:var(--ink)!important;stroke-dasharray:none}
.some-forward .line:not(.forward){opacity:.25}
.line.c1,.whisker.c1{stroke:var(--c1)}.label.c1,.dot.c1{fill:var(--c1)}
.line.c2,.whisker.c2{stroke:var(--c2)}.label.c2,.dot.c2{fill:var(--c2)}
.line.c3,.whisker.c3{stroke:var(--c3)}.label.c3,.dot.c3{fill:var(--c3)}
.line.c4,.whisker.c4{stroke:var(--c4)}.label.c4,.dot.c4{fill:var(--c4)}
.line.c5,.whisker.c5{stroke:var(--c5)}.label.c5,.dot.c5{fill:var(--c5)}
.line.c6,.whisker.c6{stroke:var(--c6)}.label.c6,.dot.c6{fill:var(--c6)}
.band{opacity:.13;stroke:none}.band.c1{fill:var(--c1)}.band.c2{fill:var(--c2)}.band.c3{fill:var(--c3)}
.band.c4{fill:var(--c4)}.band.c5{fill:var(--c5)}.band.c6{fill:var(--c6)}
.legend{display:flex;flex-wrap:wrap;gap:.35rem}
.legend button{font:inherit;font-size:.85rem;padding:.25rem .7rem;border-radius:99px;border:1px solid var(--rule);
background:none;color:var(--dim);cursor:pointer;min-height:2rem}
.legend button[aria-pressed=true]{background:var(--ink);color:var(--paper)!important;border-color:var(--ink)}
.legend .c1{color:var(--c1)}.legend .c2{color:var(--c2)}.legend .c3{color:var(--c3)}.legend .c4{color:var(--c4)}
.legend .c5{color:var(--c5)}.legend .c6{color:var(--c6)}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1.1rem 1.6rem}
figure.small{margin:0}
.area{opacity:.5}.area.known{fill:var(--known)}.area.unknown{fill:var(--unknown)}
.base{stroke:var(--dim);stroke-width:1}
.key{padding-left:1.1em;position:relative;margin-left:.6em}
.key::before{content:"";position:absolute;left:0;top:.3em;width:.8em;height:.8em;border-radius:2px;opacity:.6}
.key.known::before{background:var(--known)}.key.unknown::before{background:var(--unknown)}
details{border-top:1px solid var(--rule);padding:.5rem 0}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
dl{display:grid;grid-template-columns:minmax(9rem,auto) 1fr;gap:.3rem 1.2rem;font-size:.9rem}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
code{font-size:.9em}
@media (max-width:36rem){th[scope=row]{white-space:normal;max-width:8rem}}
@media (max-width:36rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}h2{margin-top:2.2rem}}
@media print{nav,.legend{display:none}details{break-inside:avoid}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""

SCRIPT = """
for (const button of document.querySelectorAll('[data-line]')) button.addEventListener('click', () => {
  const on = button.getAttribute('aria-pressed') !== 'true';
  button.setAttribute('aria-pressed', on);
  for (const path of document.querySelectorAll('path.line'))
    if (path.querySelector('title')?.textContent === button.dataset.line) path.classList.toggle('forward', on);
  for (const svg of document.querySelectorAll('svg'))
    svg.classList.toggle('some-forward', !!svg.querySelector('.forward'));
});
"""
