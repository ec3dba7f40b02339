// Asks llama.cpp: ids of texts, greedy tokens after prompts, nats of each token but the first.
//   node llama_cpp.mjs NODE_MODULES < asked.json > said.json
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const entry = `${process.argv[2]}/node-llama-cpp/dist/index.js`;
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry));
const asked = JSON.parse(readFileSync(0, "utf8"));
const quiet = { gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error };
const llama = await getLlama(quiet);
const model = await llama.loadModel({ modelPath: asked.model });
const said = { ids: asked.texts.map((text) => [...model.tokenize(text)]), greedy: [], nats: [] };
if (asked.prompts.length + asked.scored.length) {
  const context = await model.createContext({
    contextSize: asked.context, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const sequence = context.getSequence();
  for (const prompt of asked.prompts) {
    await sequence.clearHistory();
    const written = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      written.push(token);
      if (written.length === asked.n) break;
    }
    said.greedy.push(written);
  }
  for (const ids of asked.scored) {
    await sequence.clearHistory();
    const wanted = ids.map((id) => [id, { generateNext: { logits: true } }]);
    const found = await sequence.controlledEvaluate(wanted.slice(0, -1));
    said.nats.push(found.map(({ next }, at) => {
      const all = [...next.logits.values()];
      const most = all.reduce((one, other) => Math.max(one, other));
      const whole = all.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
      return Math.log(whole) + most - next.logits.get(ids[at + 1]);
    }));
  }
}
process.stdout.write(JSON.stringify(said), () => process.exit(0));
