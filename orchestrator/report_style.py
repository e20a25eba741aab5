"""The look of the report page, and the few lines of script that draw its figures."""

STYLE = """
:root { --ink: #1f2a37; --faint: #5d6776; --line: #e6e8ec; --card: #ffffff; --ground: #f6f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.55 Inter, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header { margin: 0 0 28px; }
.brand { margin: 0 0 10px; color: var(--accent); font-weight: 600; font-size: 14px; letter-spacing: .01em; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: clamp(22px, 3.4vw, 34px); line-height: 1.25; font-weight: 650; letter-spacing: -.015em; text-wrap: balance; }
h2 { margin: 0 0 14px; font-size: 20px; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 26px 0 8px; font-size: 15px; font-weight: 650; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 24px 26px; margin: 18px 0; }
.note { margin: -8px 0 14px; color: var(--faint); font-size: 14.5px; }
h3 + .note { margin-top: -2px; }
.figure + .note, .note.after { margin: 6px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 0 0 18px; }
.six { grid-template-columns: repeat(3, 1fr); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 20px; }
.tile b { display: block; font-size: 27px; line-height: 1.2; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 14.5px; margin-top: 4px; }
.tile small { display: block; color: var(--faint); font-size: 13.5px; }
ul { margin: 0; padding-left: 20px; }
li { margin: 7px 0; }
li::marker { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px 9px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: 600; }
thead th { color: var(--faint); font-weight: 500; font-size: 13.5px; }
tbody tr:last-child > * { border-bottom: 0; }
td:last-child, thead th:last-child { padding-right: 0; }
dl { margin: 0; font-size: 15px; }
dl > div { display: grid; grid-template-columns: minmax(110px, 34%) 1fr; gap: 14px; padding: 7px 0; border-bottom: 1px solid var(--line); }
dl > div:last-child { border-bottom: 0; }
dt { color: var(--faint); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 8px 40px; }
.columns h3 { margin-top: 4px; }
.columns > * { min-width: 0; }
.figure { width: 100%; overflow: hidden; }
details { margin-top: 14px; }
section > details:first-of-type:last-child { margin-top: 0; }
h3 ~ details, .figure ~ details { margin-top: 14px !important; }
summary { cursor: pointer; color: var(--accent); font-weight: 550; font-size: 15px; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px; }
details > .scroll { max-height: 520px; overflow: auto; margin-top: 10px; }
details thead th { position: sticky; top: 0; background: var(--card); }
pre { margin: 12px 0 0; padding: 16px; background: var(--ground); border-radius: 8px; overflow-x: auto;
      font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 560px) {
  main { padding: 24px 12px 48px; }
  section { padding: 18px 16px; border-radius: 10px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 12px 14px; }
  .tile b { font-size: 22px; }
  dl > div { grid-template-columns: 1fr; gap: 0; }
}
@media print { body { background: white; } section, .tile { break-inside: avoid; } }
"""

SCRIPT = """
const drawn = JSON.parse(document.getElementById("figures").textContent);
for (const [name, figure] of Object.entries(drawn)) {
  Plotly.newPlot("figure-" + name, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}
"""
