// Runs examples/proxy between the unmodified `openai` package and upstreams that fail on purpose, with a sidecar that is
// real, one that the test speaks for, and one that is killed.
// Usage: node proxy_test.mjs SLUICE PROXY_FOLDER WORK_FOLDER. Exit status 77: the package cannot be installed here.
import assert from 'node:assert/strict';
import {spawn, spawnSync} from 'node:child_process';
import {existsSync, mkdirSync, mkdtempSync, writeFileSync} from 'node:fs';
import http from 'node:http';
import {createRequire} from 'node:module';
import net from 'node:net';
import path from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';

const [sluice, folder, work] = process.argv.slice(2).map(p => path.resolve(p));
mkdirSync(work, {recursive: true});
if (!existsSync(path.join(work, 'node_modules/openai'))) {
  writeFileSync(path.join(work, 'package.json'), '{"private": true}');
  const npm = spawnSync('npm', ['install', 'openai@6', '--no-audit', '--no-fund'], {cwd: work, encoding: 'utf8', timeout: 90000});
  if (npm.status !== 0) {
    console.log(`skipped: npm install openai: ${npm.error?.message ?? npm.stderr}`);
    process.exit(77);
  }
}
const {default: OpenAI} = createRequire(path.join(work, 'package.json'))('openai');
const children = [];
const listening = (server, port = 0) => new Promise(go => server.listen(port, '127.0.0.1', () => go(server.address().port)));

async function until(what, check) {
  for (let i = 0; i < 200; ++i) {
    if (await check()) return;
    await sleep(25);
  }
  assert.fail(`never: ${what}`);
}
function start(program, args, ready) {
  const child = spawn(program, args, {stdio: ['ignore', 'pipe', 'pipe']});
  children.push(child);
  return new Promise((go, fail) => {
    let said = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', data => {
        said += data;
        const found = said.match(ready);
        if (found) go({child, found, said: () => said});
      });
    child.on('exit', code => fail(new Error(`${program} ended with ${code}: ${said}`)));
  });
}

// Upstreams: how each model behaves is said here, and what it was asked is kept.
const behaves = {};
const asked = [];
const piece = (text, more = {}) => `data: ${JSON.stringify({id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm', choices: [{index: 0, delta: {content: text}, finish_reason: null}], usage: null, ...more})}\n\n`;
const usage = {prompt_tokens: 1000, completion_tokens: 500, total_tokens: 1500};
const upstreams = http.createServer(async (request, response) => {
  let text = '';
  for await (const part of request) text += part;
  const body = JSON.parse(text);
  const how = behaves[body.model] ?? 'well';
  asked.push({model: body.model, body, key: request.headers.authorization});
  const fail = (status, headers = {}) => response.writeHead(status, {'content-type': 'application/json', ...headers}).end(JSON.stringify({error: {message: `${body.model} says ${status}`, type: 't', code: null, param: null}}));
  if (typeof how === 'number') return fail(how, how === 429 ? {'retry-after': '7'} : {});
  if (how === 'silent') return;
  if (how === 'dies') return request.socket.destroy();
  if (!body.stream) {
    const message = {role: 'assistant', content: `${body.model} answers`, refusal: null};
    return response.writeHead(200, {'content-type': 'application/json'}).end(JSON.stringify({id: 'c', object: 'chat.completion', created: 1, model: body.model, choices: [{index: 0, message, finish_reason: 'stop', logprobs: null}], usage}));
  }
  response.writeHead(200, {'content-type': 'text/event-stream'});
  response.flushHeaders();
  if (how === 'dies first') return setTimeout(() => request.socket.destroy(), 20);
  response.write(': a comment\n\n');
  for (const word of [body.model, ' ', 'stre', 'ams']) {
    const whole = piece(word);
    response.write(whole.slice(0, 9));  // events come in pieces
    await sleep(3);
    response.write(whole.slice(9));
    if (how === 'dies midway' && word === ' ') return setTimeout(() => request.socket.destroy(), 20);
    if (how === 'falls silent' && word === ' ') return;
    if (how === 'says error' && word === ' ') return response.end(`data: ${JSON.stringify({error: {message: 'overloaded'}})}\n\n`);
  }
  if (body.stream_options?.include_usage) response.write(piece('', {choices: [], usage}));
  response.end('data: [DONE]\n\n');
});
const upstreamPort = await listening(upstreams);

// A sidecar that the test speaks for.
let decision, refusal;
const told = [], questions = [];
const spoken = http.createServer(async (request, response) => {
  let text = '';
  for await (const part of request) text += part;
  const feedback = request.url === '/v1/feedback';
  (feedback ? told : questions).push(JSON.parse(text));
  const [status, answer] = feedback ? [200, {results: []}] : refusal ?? [200, decision];
  response.writeHead(status, {'content-type': 'application/json', ...(status === 429 ? {'retry-after': '3'} : {})}).end(JSON.stringify(answer));
});
const spokenPort = await listening(spoken);

let number = 0;
async function proxy(sidecarPort, more = {}) {
  const upstream = {url: `http://127.0.0.1:${upstreamPort}/v1`, key_env: 'PROXY_TEST_KEY', usd_per_mtok_in: 2, usd_per_mtok_out: 8};
  const file = path.join(work, `proxy-${++number}.json`);
  writeFileSync(file, JSON.stringify({listen: {port: 0}, sidecar: {url: `http://127.0.0.1:${sidecarPort}`, timeout_ms: 1000}, timeout_ms: 1500, silence_ms: 700,
    upstreams: {small: upstream, large: upstream, third: {...upstream, model: 'third-by-another-name'}}, order: ['large', 'small'], ...more}));
  process.env.PROXY_TEST_KEY = 'secret';
  const {found, said} = await start(process.execPath, [path.join(folder, 'proxy.mjs'), file], /listening on (\S+)/);
  const client = new OpenAI({baseURL: found[1], apiKey: 'unused', maxRetries: 0});
  return {client, said, url: found[1]};
}
const messages = [{role: 'system', content: 'Be short.'}, {role: 'user', content: [{type: 'text', text: 'What is 17 * 4?'}]}];
const plain = (client, more = {}) => client.chat.completions.create({model: 'auto', messages, ...more}).withResponse();
async function streamed(client, more = {}) {
  const chunks = [];
  let error;
  try {
    for await (const chunk of await client.chat.completions.create({model: 'auto', messages, stream: true, ...more})) chunks.push(chunk);
  } catch (e) {
    error = e;
  }
  return {chunks, error, text: chunks.map(c => c.choices[0]?.delta?.content ?? '').join('')};
}
const calls = () => asked.splice(0).map(a => a.model);
const lastTold = async n => { await until('feedback', () => told.length >= n); return told.splice(0).at(-1); };
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);
const chosen = (model, ...fallbacks) => ({decision_id: '7', model, agents: ['planner', `agent-${model}`], fallbacks: fallbacks.map(m => ({agent: `agent-${m}`, model: m})), receipt: 'AQI=', policy: 'p', propensity: 1, kept: false, why: ''});
const oneCost = (1000 * 2 + 500 * 8) / 1e6;

async function withASpokenSidecar() {
  const {client, url} = await proxy(spokenPort);
  assert.deepEqual((await client.models.list()).data.map(m => m.id), ['auto', 'small', 'large', 'third']);

  decision = chosen('small', 'large');
  const {data, response} = await plain(client, {user: 'u-1', temperature: 0.5, metadata: {task: 'math', tags: 'a,b', mine: 'x'}, tools: [{type: 'function', function: {name: 'f', parameters: {}}}]});
  assert.equal(data.choices[0].message.content, 'small answers');
  assert.equal(response.headers.get('x-sluice-model'), 'small');
  assert.equal(response.headers.get('x-sluice-decision'), '7');
  const [{body, key}] = asked.splice(0);
  assert.equal(key, 'Bearer secret');
  assert.equal(body.temperature, 0.5);
  assert.equal(body.tools.length, 1);
  assert.deepEqual(body.metadata, {mine: 'x'}, 'what is for Sluice goes to no upstream');
  assert.deepEqual(questions.splice(0), [{model: 'auto', user: 'u-1', metadata: {task: 'math', tags: 'a,b', mine: 'x'}, messages: [{role: 'user', content: 'What is 17 * 4?'}]}]);
  let outcome = await lastTold(1);
  assert.equal(outcome.receipt, 'AQI=');
  assert.ok(!('quality' in outcome), 'nobody graded it');
  near(outcome.cost_usd, oneCost);
  assert.equal(outcome.agents.length, 1);
  assert.deepEqual([outcome.agents[0].agent, outcome.agents[0].failed], ['agent-small', false]);
  near(outcome.agents[0].cost_usd, oneCost);
  assert.ok(outcome.agents[0].latency_s > 0 && outcome.agents[0].latency_s < 2);

  // Failures of every kind: the next one answers, and the sidecar hears why.
  for (const [how, why] of [[500, /HTTP 500: .*small says 500/], [429, /HTTP 429/], [401, /HTTP 401/], ['dies', /./], ['silent', /nothing for 1500 ms/]]) {
    behaves.small = how;
    for (const stream of [false, true]) {
      const got = stream ? (await streamed(client)).text : (await plain(client)).data.choices[0].message.content;
      assert.equal(got, stream ? 'large streams' : 'large answers', how);
      assert.deepEqual(calls(), ['small', 'large'], how);
      outcome = await lastTold(1);
      assert.deepEqual(outcome.agents.map(a => [a.agent, a.failed]), [['agent-small', true], ['agent-large', false]]);
      assert.match(outcome.agents[0].why, why);
      near(outcome.cost_usd, oneCost);
    }
  }
  behaves.small = 'dies first';
  assert.equal((await streamed(client)).text, 'large streams', 'before the first event another one can answer');
  assert.deepEqual(calls(), ['small', 'large']);
  await lastTold(1);

  // In the middle of a stream nobody else can: the client keeps its part, hears of it, and so does the sidecar.
  for (const [how, why] of [['dies midway', /./], ['falls silent', /nothing for 700 ms/], ['says error', /overloaded/]]) {
    behaves.small = how;
    const broken = await streamed(client);
    assert.equal(broken.text, 'small ', how);
    assert.ok(broken.error instanceof OpenAI.APIError, `${how}: ${broken.error}`);
    assert.match(broken.error.message, /small/);
    assert.deepEqual(calls(), ['small'], how);
    outcome = await lastTold(1);
    assert.deepEqual(outcome.agents.map(a => a.failed), [true], how);
    assert.match(outcome.agents[0].why, why);
  }
  // What the client did wrong, no other upstream does better.
  behaves.small = 400;
  await assert.rejects(plain(client), e => e instanceof OpenAI.BadRequestError && /small says 400/.test(e.message));
  assert.deepEqual(calls(), ['small']);
  assert.equal((await lastTold(1)).agents[0].failed, false);

  Object.assign(behaves, {small: 500, large: 429});
  await assert.rejects(plain(client), e => e instanceof OpenAI.RateLimitError && e.headers.get('retry-after') === '7' && /small: HTTP 500.*large: HTTP 429/.test(e.message));
  assert.equal((await lastTold(1)).agents.length, 2);
  Object.assign(behaves, {small: 'well', large: 'well'});
  calls();

  // Streams: the usage is for the sidecar, and for whoever asked.
  const quiet = await streamed(client);
  assert.equal(quiet.text, 'small streams');
  assert.ok(quiet.chunks.every(c => c.choices.length === 1));
  near((await lastTold(1)).cost_usd, oneCost);
  const curious = await streamed(client, {stream_options: {include_usage: true}});
  assert.deepEqual(curious.chunks.at(-1).usage, usage);
  await lastTold(1);
  calls();

  // A client that goes is nobody's failure.
  behaves.small = 'falls silent';
  for await (const chunk of await client.chat.completions.create({model: 'auto', messages, stream: true})) {
    assert.ok(chunk);
    break;
  }
  assert.equal((await lastTold(1)).agents[0].failed, false);
  behaves.small = 'well';
  calls();

  // Without a decision: a model by its name; another that is not there.
  assert.equal((await plain(client, {model: 'third'})).data.choices[0].message.content, 'third-by-another-name answers');
  assert.equal(told.length, 0);
  await assert.rejects(plain(client, {model: 'fourth'}), e => e instanceof OpenAI.NotFoundError && /there are: auto, small/.test(e.message));
  questions.splice(0);

  // What the sidecar refuses is refused; that it has trouble is not.
  calls();
  refusal = [429, {error: {code: 'RATE_LIMITED', message: 'slower', retry_after_s: 3}}];
  await assert.rejects(plain(client), e => e instanceof OpenAI.RateLimitError && e.headers.get('retry-after') === '3' && /slower/.test(e.message));
  refusal = [503, {error: {code: 'UNAVAILABLE', message: 'over budget', retry_after_s: 3}}];
  await assert.rejects(plain(client), e => e.status === 503 && /over budget/.test(e.message));
  refusal = [400, {error: {code: 'INVALID_ARGUMENT', message: 'no task', retry_after_s: 0}}];
  await assert.rejects(plain(client), e => e.status === 400);
  assert.deepEqual(calls(), []);
  refusal = [504, {error: {code: 'DEADLINE_EXCEEDED', message: 'late', retry_after_s: 0}}];
  assert.equal((await plain(client)).data.choices[0].message.content, 'large answers', 'the configured order');
  refusal = undefined;

  const post = (headers, body) => fetch(`${url}/chat/completions`, {method: 'POST', headers, body});
  assert.equal((await post({'content-type': 'application/json', origin: 'http://evil.example'}, '{}')).status, 403);
  assert.equal((await post({'content-type': 'text/plain'}, '{}')).status, 415);
  assert.equal((await post({'content-type': 'application/json'}, '{')).status, 400);
  assert.equal((await post({'content-type': 'application/json'}, '{}')).status, 400);
  assert.equal((await fetch(`${url}/nothing`)).status, 404);
}

async function withARealSidecar() {
  const free = net.createServer();
  const port = await listening(free);
  await new Promise(go => free.close(go));
  const home = mkdtempSync(path.join(work, 'sidecar-'));
  const file = path.join(home, 'team.textproto');
  writeFileSync(file, `endpoint: "ipc://${home}/s" http { port: ${port} } task: "math" task: "code" state { sqlite: "${home}/db" }
    stage { agent { id: "small" cost_usd: 0.001 } agent { id: "large" cost_usd: 0.01 } }`);
  const {child} = await start(sluice, ['serve', '--config', file], /ipc:/);
  const {client, said} = await proxy(port);
  const {data, response} = await plain(client, {metadata: {task: 'math'}});
  const answered = response.headers.get('x-sluice-model');
  assert.equal(data.choices[0].message.content, `${answered} answers`);
  assert.equal((await streamed(client)).text.split(' ')[1], 'streams');
  const stats = async () => (await fetch(`http://127.0.0.1:${port}/api/stats`)).json();
  await until('both outcomes are on disk', async () => (await stats()).feedbacks === '2');
  const spent = (await stats()).agents.reduce((sum, a) => sum + a.cost_usd, 0);
  near(spent, 2 * oneCost);
  await assert.rejects(plain(client, {metadata: {task: 'poetry'}}), e => e.status === 400 && /no task 'poetry'/.test(e.message));

  child.removeAllListeners('exit');
  child.kill('SIGKILL');
  await new Promise(go => child.on('close', go));
  const began = performance.now();
  assert.equal((await plain(client)).data.choices[0].message.content, 'large answers', 'first of the configured order');
  assert.equal((await streamed(client)).text, 'large streams');
  assert.ok(performance.now() - began < 3000);
  assert.match(said(), /the sidecar does not answer/);
}

let failure;
try {
  await withASpokenSidecar();
  await withARealSidecar();
  console.log('proxy: plain and streamed answers, failures, a dying upstream, refusals and a killed sidecar are as they should be');
} catch (error) {
  failure = error;
  console.error(error);
} finally {
  for (const child of children) {
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
  }
}
process.exit(failure ? 1 : 0);
