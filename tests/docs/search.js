// Searches a built site as its search page does: `node search.js FOLDER < queries.json`, a list of strings; prints the pages found.

"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];
const listeners = [];
const element = { children: [], firstChild: null, removeChild() {}, appendChild: (child) => child, dataset: {} };
const page = {
  readyState: "loading",
  documentElement: element,
  body: element,
  getElementById: () => element,
  createElement: () => element,
  querySelectorAll: () => [],
  addEventListener: (kind, listener) => listeners.push(listener),
};
const context = vm.createContext({
  document: page,
  location: { search: "" },
  localStorage: { setItem() {} },
  SPHINX_HIGHLIGHT_ENABLED: false,
  DOCUMENTATION_OPTIONS: {},
  URLSearchParams,
  console,
});
context.window = context;
// What the search page loads, in its order, but for what belongs to the theme.
const loaded = fs.readFileSync(path.join(folder, "search.html"), "utf8").matchAll(/<script[^>]* src="([\w./-]+\.js)/g);
for (const [, name] of loaded) {
  if (/theme|furo|clipboard|copybutton|design|highlight|documentation_options/.test(name)) continue;
  const file = path.join(folder, name);
  vm.runInContext(fs.readFileSync(file, "utf8"), context, { filename: file });
}
for (const listener of listeners) listener();
context.queries = JSON.parse(fs.readFileSync(0, "utf8"));
const found = vm.runInContext(
  `queries.map((query) => {
     const results = Search._performSearch(...Search._parseQuery(query));
     return [...new Set(results.reverse().map((result) => result[0]))];
   })`,
  context,
);
console.log(JSON.stringify(found));
