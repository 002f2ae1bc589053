// Parses files of Terraform's language by HashiCorp's own parser, and formats them as `terraform fmt` does.
//
// usage: node hcl.js NODE_MODULES FILE...
//
// Prints for each file what it says as JSON, and whether it is formatted. A file that does not parse is an error.

const fs = require("fs");
const path = require("path");

async function main(modules, files) {
  const { parse } = require(path.resolve(modules, "@cdktf/hcl2json"));
  const { format } = require(path.resolve(modules, "@cdktf/hcl-tools"));
  const found = {};
  for (const file of files) {
    const text = fs.readFileSync(file, "utf8");
    found[file] = { says: await parse(file, text), formatted: (await format(text)) === text };
  }
  console.log(JSON.stringify(found));
}

main(process.argv[2], process.argv.slice(3)).then(
  () => process.exit(0),
  (error) => {
    console.error(String(error));
    process.exit(1);
  },
);
