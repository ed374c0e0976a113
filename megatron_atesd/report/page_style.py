"""The style sheet of the report's page: light and dark, from a phone's width to a laptop's. h1 … h6 of a strip are LEVELS of samples.py."""

STYLE = """
:root { --ink: #222; --muted: #6b6b6b; --line: #e2e2e2; --paper: #fff; --ground: #f5f5f3; --accent: #0072b2; --heat: 213, 94, 0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --muted: #a3a3a0; --line: #3a3a3a; --paper: #1e1e1e; --ground: #141414; --accent: #6cb8e6; --heat: 240, 120, 20; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
h3 { font-size: 1rem; margin: .8rem 0 .3rem; }
header p { margin: .2rem 0; color: var(--muted); overflow-wrap: anywhere; }
nav { margin: .8rem 0 0; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 1.1rem 1.25rem; margin: 1.1rem 0; }
p { margin: .5rem 0; }
section > p, figcaption, .note, small { color: var(--muted); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
td .note { display: inline-block; white-space: normal; min-width: 18rem; }
.settings td { white-space: normal; overflow-wrap: anywhere; }
.settings td { min-width: 7rem; }
.settings td:first-child { white-space: nowrap; }
th { font-weight: 600; color: var(--muted); font-size: .82rem; }
code { font: .86rem/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.2rem; }
.tiles b { display: block; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles code { color: var(--muted); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.4rem 1.6rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { fill: var(--ink); }
figcaption { margin-top: .2rem; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .4em; }
.key { margin-right: 1rem; white-space: nowrap; font-size: .88rem; }
.bar { display: flex; height: 1.3rem; border-radius: 4px; overflow: hidden; }
.bar i { display: block; }
article { border-top: 1px solid var(--line); padding: .7rem 0 .3rem; }
article p { margin: .15rem 0 .4rem; overflow-wrap: anywhere; }
.strip { font: .9rem/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
section > p.scale { font-size: .8rem; color: var(--ink); }
.strip span { border-radius: 3px; padding: .12em 0; }
.h1 { background: rgba(var(--heat), .12); } .h2 { background: rgba(var(--heat), .22); } .h3 { background: rgba(var(--heat), .36); }
.h4 { background: rgba(var(--heat), .52); } .h5 { background: rgba(var(--heat), .7); } .h6 { background: rgba(var(--heat), .9); }
@media (max-width: 40rem) {
  header, main { padding: 0 .6rem; }
  section { padding: .9rem .8rem; border-radius: 6px; }
  h1 { font-size: 1.35rem; }
  table:not(.settings) td:first-child { white-space: normal; overflow-wrap: break-word; min-width: 6.5rem; }
}
@media print { body { background: #fff; } section { break-inside: avoid-page; border: 0; } }
"""
