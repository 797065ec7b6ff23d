// BullMQ: the backlog is filled first, then two processes of so many slots each work it off.
//
//   node bullmq.mjs PORT TASKS SAMPLES SLOTS      prints one line of JSON
//
// The same file is the worker process, told so by a fifth argument.

import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Queue, Worker } from "bullmq";

const [port, tasks, samples, slots, role] = process.argv.slice(2);
const connection = { host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: null };
const PROCESSES = 2;
const BATCH = 500;
const SINGLES = 2000;

async function beWorker() {
  let done = 0;
  let told = 0;
  const worker = new Worker(
    "bench",
    async (job) => (job.name === "stamp" ? String(process.hrtime.bigint()) : null),
    { connection, concurrency: Number(slots), autorun: false },
  );
  worker.on("completed", (job, result) => {
    done += 1;
    if (job.name === "stamp") process.send({ stamp: result });
  });
  worker.on("error", () => {});
  await worker.waitUntilReady();
  process.on("message", async (message) => {
    if (message === "go") worker.run();
    if (message === "end") {
      await worker.close();
      process.exit(0);
    }
  });
  setInterval(() => {
    if (done !== told) process.send({ done: (told = done) });
  }, 2);
  process.send({ ready: true });
}

class Workers {
  constructor(count) {
    this.finished = 0;
    this.stamps = [];
    this.waiting = () => {};
    this.processes = Array.from({ length: count }, () => {
      const one = fork(fileURLToPath(import.meta.url), [port, tasks, samples, slots, "worker"]);
      let counted = 0;
      one.on("message", (message) => {
        if (message.done !== undefined) {
          this.finished += message.done - counted;
          counted = message.done;
        }
        if (message.stamp) this.stamps.push(BigInt(message.stamp));
        if (message.ready) this.ready = (this.ready ?? 0) + 1;
        this.waiting();
      });
      return one;
    });
  }

  until(condition) {
    return new Promise((resolve) => {
      this.waiting = () => condition() && resolve();
      this.waiting();
    });
  }

  tell(message) {
    for (const one of this.processes) one.send(message);
  }
}

const seconds = (since) => Number(process.hrtime.bigint() - since) / 1e9;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function measure() {
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  const count = Number(tasks);

  let began = process.hrtime.bigint();
  for (let at = 0; at < count; at += BATCH) {
    const size = Math.min(BATCH, count - at);
    await queue.addBulk(Array.from({ length: size }, () => ({ name: "noop", data: { n: 1 } })));
  }
  const bulk = count / seconds(began);

  began = process.hrtime.bigint();
  for (let n = 0; n < SINGLES; n += 1) await queue.add("noop", { n: 1 });
  const single = SINGLES / seconds(began);

  const workers = new Workers(PROCESSES);
  await workers.until(() => workers.ready === PROCESSES);
  began = process.hrtime.bigint();
  workers.tell("go");
  await workers.until(() => workers.finished >= count + SINGLES);
  const done = (count + SINGLES) / seconds(began);

  const latencies = [];
  for (let n = 0; n < Number(samples) + 20; n += 1) {
    await pause(5 + Math.random() * 20);
    const sent = process.hrtime.bigint();
    const had = workers.stamps.length;
    await queue.add("stamp", {});
    await workers.until(() => workers.stamps.length > had);
    if (n >= 20) latencies.push(Number(workers.stamps.at(-1) - sent) / 1e6);
  }
  latencies.sort((a, b) => a - b);
  const at = (part) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * part))];
  workers.tell("end");
  await queue.close();
  console.log(JSON.stringify({ bulk, single, done, p50: at(0.5), p99: at(0.99) }));
}

await (role === "worker" ? beWorker() : measure());
