// Runs a task through a sidecar's local listener and prints what happens, a JSON object per line:
// first the task, then every event.
//
//     node client.js PROTO_DIR SIDECAR SKILL TEXT
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const LIMIT = 50; // Seconds; of the whole task.

const [protos, sidecar, skill, text] = process.argv.slice(2);
const definition = loader.loadSync("attache/v1/agent.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { attache } = grpc.loadPackageDefinition(definition);
const agent = new attache.v1.Agent(sidecar, grpc.credentials.createInsecure());

const spec = { selector: { skill }, input: [{ text }], options: { timeout: { seconds: LIMIT } } };
const updates = agent.RunTask({ spec }, { deadline: Date.now() + LIMIT * 1000 });
updates.on("data", ({ update }) => {
  if (update.task) {
    console.log(JSON.stringify({ task: update.task.id }));
  }
  if (update.event) {
    const { seq, state, kind, result } = update.event;
    const line = { seq, state, kind };
    if (result) {
      line.text = result.parts.map((part) => part.text).join("");
    }
    console.log(JSON.stringify(line));
  }
});
updates.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
updates.on("end", () => agent.close());
