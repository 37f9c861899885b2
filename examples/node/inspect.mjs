// Judges one image: npm install, then node inspect.mjs part.onnx image.png mask.png

import * as ort from "onnxruntime-node";
import sharp from "sharp";

const [model, picture, mask] = process.argv.slice(2);
// Turned as its EXIF data say; grey becomes RGB; transparency is laid over black.
const { data, info } = await sharp(picture).rotate().flatten({ background: "#000" }).toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
// A threshold of your own is one more input, such as reject_above: new ort.Tensor("float32", [1234.5], []).
const found = await session.run({ image: new ort.Tensor("uint8", data, [1, info.height, info.width, 3]) });
const decision = ["ok", "review", "reject"][Number(found.decision.data[0])];
console.log(JSON.stringify({ decision, score: found.score.data[0], p_value: found.p_value.data[0] }));
if (found.mask) {
  const pixels = Buffer.from(found.mask.data).map((isFound) => 255 * isFound);
  await sharp(pixels, { raw: { width: info.width, height: info.height, channels: 1 } }).png().toFile(mask);
}
