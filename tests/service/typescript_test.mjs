// Compiles examples/clients/typescript strictly and runs it against a server, a silent one and none.
// Usage: node typescript_test.mjs SLUICE CLIENT_FOLDER WORK_FOLDER. Exit status 77: no compiler can be installed here.
import assert from 'node:assert/strict';
import {spawn, spawnSync} from 'node:child_process';
import {copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync} from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import {pathToFileURL} from 'node:url';

const [sluice, folder, work] = process.argv.slice(2).map(p => path.resolve(p));
mkdirSync(work, {recursive: true});
writeFileSync(path.join(work, 'package.json'), '{"private": true, "type": "module"}');
if (!existsSync(path.join(work, 'node_modules/typescript')) || !existsSync(path.join(work, 'node_modules/@types/node'))) {
  const npm = spawnSync('npm', ['install', 'typescript@5', '@types/node@20', '--no-audit', '--no-fund'], {cwd: work, encoding: 'utf8', timeout: 90000});
  if (npm.status !== 0) {
    console.log(`skipped: npm install typescript: ${npm.error?.message ?? npm.stderr}`);
    process.exit(77);
  }
}
copyFileSync(path.join(folder, 'sluice.ts'), path.join(work, 'sluice.ts'));
const example = readFileSync(path.join(folder, 'README.md'), 'utf8').match(/```ts\n([\s\S]*?)```/)[1];
writeFileSync(path.join(work, 'example.ts'), example);
const compiled = spawnSync(process.execPath, [path.join(work, 'node_modules/typescript/bin/tsc'), '--strict', '--noUncheckedIndexedAccess', '--exactOptionalPropertyTypes', 'false',
  '--target', 'es2022', '--module', 'nodenext', '--moduleResolution', 'nodenext', '--lib', 'es2022,dom', '--outDir', 'out', 'sluice.ts', 'example.ts'], {cwd: work, encoding: 'utf8'});
assert.equal(compiled.status, 0, compiled.stdout);
writeFileSync(path.join(work, 'out/package.json'), '{"type": "module"}');
const {Sluice, SluiceError} = await import(pathToFileURL(path.join(work, 'out/sluice.js')));

const bound = server => new Promise(go => server.listen(0, '127.0.0.1', () => go(server.address().port)));
const free = net.createServer();
const port = await bound(free);
await new Promise(go => free.close(go));
const home = mkdtempSync(path.join(work, 'sidecar-'));
writeFileSync(path.join(home, 'team.textproto'), `endpoint: "ipc://${home}/s" http { port: ${port} } task: "math" task: "code" state { sqlite: "${home}/db" }
  stage { agent { id: "small" cost_usd: 0.001 } agent { id: "large" cost_usd: 0.01 } }`);
const server = spawn(sluice, ['serve', '--config', path.join(home, 'team.textproto')], {stdio: ['ignore', 'pipe', 'ignore']});
let failure;
try {
  await new Promise((go, fail) => {
    server.stdout.once('data', go);
    server.once('exit', code => fail(new Error(`sluice ended with ${code}`)));
  });
  const client = new Sluice({url: `http://127.0.0.1:${port}/`});
  const decision = await client.route({task: 'math', exclude: ['large'], unit: 'u'});
  assert.deepEqual(decision.agents, ['small']);
  assert.equal(await client.feedback({receipt: decision.receipt, quality: 1, cost_usd: 0.002, agents: [{agent: 'small', latency_s: 0.5}]}), true);
  assert.equal(await client.feedback({receipt: decision.receipt, quality: 1, cost_usd: 0.002}), false);
  const why = await client.explain(decision.id);
  assert.equal(why.stages[0].candidates.length, 2);
  assert.equal(why.stages[0].candidates.find(c => c.agent === 'small').chosen, true);
  const many = await client.routeMany([{}, {task: 'poetry'}]);
  assert.equal(many[0].error, undefined);
  assert.equal(many[1].error.code, 'INVALID_ARGUMENT');
  const chat = await client.decide({model: 'auto', messages: [{role: 'user', content: 'hi'}], metadata: {exclude: 'small'}});
  assert.equal(chat.model, 'large');
  const refused = async (call, code, status, retry) => {
    await assert.rejects(call, e => e instanceof SluiceError && e.code === code && e.status === status && e.retry === retry, code);
  };
  await refused(client.route({task: 'poetry'}), 'INVALID_ARGUMENT', 400, false);
  await refused(client.explain('999999'), 'NOT_FOUND', 404, false);
  await refused(client.feedback({receipt: 'AAAA', quality: 1}), 'INVALID_ARGUMENT', 400, false);

  // Servers that say nothing, or begin and stop: a call ends in its time.
  const begun = [];
  for (const say of ['', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{']) {
    const silent = net.createServer(socket => { begun.push(socket); socket.write(say); socket.on('error', () => {}); });
    const late = new Sluice({url: `http://127.0.0.1:${await bound(silent)}`, timeoutMs: 200});
    const began = performance.now();
    await refused(late.route(), 'DEADLINE_EXCEEDED', 0, true);
    assert.ok(performance.now() - began < 1000);
    begun.splice(0).forEach(s => s.destroy());
    silent.close();
  }
  server.removeAllListeners('exit');
  server.kill('SIGKILL');
  await new Promise(go => server.on('close', go));
  await refused(client.route(), 'UNAVAILABLE', 0, true);
  console.log('typescript: compiles strictly, agrees with the server, and no call outlives its timeout');
} catch (error) {
  failure = error;
  console.error(error);
} finally {
  server.kill('SIGKILL');
}
process.exit(failure ? 1 : 0);
