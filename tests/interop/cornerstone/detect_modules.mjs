// Takes a file that imports or exports for an ECMAScript module, whatever its package.json says. Packages made for
// bundlers need that; node 20.19 and 22.7 do it themselves, node 18 does not.
import { readFile } from 'node:fs/promises';

export async function load(url, context, next) {
  if (url.startsWith('file:') && context.format === 'commonjs') {
    const source = await readFile(new URL(url), 'utf8');
    if (/^(import|export)\b/m.test(source)) return { format: 'module', source, shortCircuit: true };
  }
  return next(url, context);
}
