// An exported student in the browser: texts to unit vectors, by onnxruntime-web on one thread.
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./runtime/tokenizers.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

export async function readJson(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  return response.json();
}

export class Encoder {
  // folder: where export.json and tokenizer.json lie, ending in a slash; file: the graph below it.
  static async load(folder, file) {
    const [description, tokenizer, config] = await Promise.all(
      ["export.json", "tokenizer.json", "tokenizer_config.json"].map((name) => readJson(folder + name))
    );
    const session = await ort.InferenceSession.create(folder + file, { executionProviders: ["wasm"] });
    return new Encoder(description, new Tokenizer(tokenizer, config), session);
  }

  constructor(description, tokenizer, session) {
    Object.assign(this, { description, tokenizer, session });
  }

  // What stands in front of a "query" or a "document"; "" where the model names nothing.
  prompt(role) {
    return this.description.prompts[role] || "";
  }

  // Token ids, cut to what the model reads; the special tokens at the end are kept.
  ids(text) {
    const most = this.description.max_tokens;
    const whole = this.tokenizer.encode(text).ids;
    if (whole.length <= most) return whole.length ? whole : [this.description.pad_token_id];
    const bare = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const empty = this.tokenizer.encode("").ids; // the special tokens alone
    const before = whole.indexOf(bare[0]);
    return [
      ...empty.slice(0, before),
      ...bare.slice(0, most - empty.length),
      ...empty.slice(before),
    ];
  }

  // A text at a time: int8 scales its activations by the batch, and a page is in no hurry.
  async encode(text) {
    const ids = this.ids(text);
    const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const outputs = await this.session.run({
      input_ids: tensor(ids),
      attention_mask: tensor(ids.map(() => 1)),
    });
    return outputs.sentence_embedding.data;
  }
}
