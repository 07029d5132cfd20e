// What a web viewer sees of a DICOM segmentation: Cornerstone's adapter reads it onto the slices of its source.
//
//     node read_seg.mjs HOW SEG LABELMAP SOURCE...
//
// HOW: "reference", frames find their source by its SOP instance, as in viewers with Cornerstone's image loader; or
// "position", by their place, which the adapter falls back on. SEG: the segmentation. LABELMAP: file to write, a byte
// a voxel, source by source in the order given, frame by frame, row by row. SOURCE: the files of the source series, in
// the order of the viewer's stack.
// Prints JSON: adapter (version), overlapping, segments (number, label, category, type, colour), slices (of each
// the SOP instance, frame, rows, columns, segments and SHA-256 of its labelmap).
//
// Nothing of the adapter is replaced. Cornerstone's own metadata providers read the headers, and the labelmaps lie in
// its cache. Only the General Image module is ours: with the SOP instance, as the image loader's provider gives it
// (packages/dicomImageLoader/src/imageLoader/wadouri/metaData/metaDataProvider.ts), or without.

import { createHash, webcrypto } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire, register } from 'node:module';

// Two globals of browsers that node 18 has not.
globalThis.crypto ??= webcrypto;
globalThis.CustomEvent ??= class CustomEvent extends Event {
  constructor(type, options) {
    super(type, options);
    this.detail = options?.detail ?? null;
  }
};
register('./detect_modules.mjs', import.meta.url);
const { adaptersSEG } = await import('@cornerstonejs/adapters');
const { metaData, registerDefaultProviders, utilities } = await import('@cornerstonejs/metadata');
const { data } = await import('dcmjs');

function arrayBuffer(path) {
  const file = readFileSync(path);
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
}

/** The image ids of a file, one a frame, once Cornerstone's metadata providers know its header. */
async function imageIdsOf(path, number) {
  const base = `wadouri:source/${number}`;
  await utilities.addDicomPart10Instance(base, arrayBuffer(path));
  const frames = Number(metaData.get('instance', base).NumberOfFrames ?? 1);
  return frames > 1 ? Array.from({ length: frames }, (_, n) => `${base}?frame=${n + 1}`) : [base];
}

function code(sequence) {
  const item = Array.isArray(sequence) ? sequence[0] : sequence;
  return { value: item.CodeValue, scheme: item.CodingSchemeDesignator, meaning: item.CodeMeaning };
}

function described(segment) {
  return {
    number: Number(segment.SegmentNumber),
    label: segment.SegmentLabel,
    category: code(segment.SegmentedPropertyCategoryCodeSequence),
    type: code(segment.SegmentedPropertyTypeCodeSequence),
    rgb: data.Colors.dicomlab2RGB(segment.RecommendedDisplayCIELabValue).map((part) => Math.round(255 * part)),
  };
}

function slice(image, segments) {
  const pixels = Uint8Array.from(image.voxelManager.getScalarData());
  const instance = metaData.get('instance', image.referencedImageId);
  return {
    pixels,
    facts: {
      sop_instance: instance.SOPInstanceUID,
      frame: Number(instance.frameNumber ?? 1),
      rows: image.rows,
      columns: image.columns,
      segments: [...new Set(segments)].sort((a, b) => a - b),
      sha256: createHash('sha256').update(pixels).digest('hex'),
    },
  };
}

/** The General Image module of an image. */
function generalImage(type, imageId) {
  if (type !== 'generalImageModule') return undefined;
  const instance = metaData.get('instance', imageId);
  return { sopInstanceUID: how === 'reference' ? instance.SOPInstanceUID : undefined };
}

const [how, segmentation, target, ...sources] = process.argv.slice(2);
console.warn = console.error; // stdout is for the result
console.log = console.error;
registerDefaultProviders();
metaData.addProvider(generalImage, 10_000);
const imageIds = (await Promise.all(sources.map(imageIdsOf))).flat();
const found = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(
  imageIds,
  arrayBuffer(segmentation),
  { metadataProvider: metaData },
);
// Several stacks are needed where segments overlap; a label map has one.
const [stack] = found.labelMapImages;
const slices = stack.map((image, n) => slice(image, found.segmentsOnFrame[n] ?? []));
writeFileSync(target, Buffer.concat(slices.map(({ pixels }) => pixels)));
const result = {
  adapter: createRequire(import.meta.url)('@cornerstonejs/adapters/package.json').version,
  overlapping: found.overlappingSegments,
  segments: found.segMetadata.data.filter(Boolean).map(described),
  slices: slices.map(({ facts }) => facts),
};
process.stdout.write(`${JSON.stringify(result, null, 1)}\n`);
