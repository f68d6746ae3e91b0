// An OpenAI-compatible door before several upstreams: `sluice serve` says which model a chat
// completion goes to, and hears what each call cost, how long it took and whether it failed.
// Plain Node (18 or later), no dependencies. Usage: node proxy.mjs CONFIG.json
import http from 'node:http';
import {readFileSync} from 'node:fs';
import {setTimeout as sleep} from 'node:timers/promises';

const config = JSON.parse(readFileSync(process.argv[2] ?? 'proxy.json', 'utf8'));
const sidecar = {url: 'http://127.0.0.1:8571', timeout_ms: 300, ...config.sidecar};
const listen = {host: '127.0.0.1', port: 8600, ...config.listen};
const answerMs = config.timeout_ms ?? 60000;      // for the first byte of an upstream
const silenceMs = config.silence_ms ?? 30000;     // between two pieces of a stream
const mostBytes = config.max_body_bytes ?? 10 << 20;
for (const model of config.order)
  if (!config.upstreams[model]) throw new Error(`order: no upstream '${model}'; there are: ${Object.keys(config.upstreams).join(', ')}`);

const bearer = env => (env && process.env[env] ? {authorization: `Bearer ${process.env[env]}`} : {});
const log = (event, fields) => console.error(JSON.stringify({time: new Date().toISOString(), event, ...fields}));

class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}
function refuse(response, {status = 500, message, retryAfter}) {
  if (response.headersSent) return response.destroy();
  const headers = {'content-type': 'application/json', ...(retryAfter ? {'retry-after': retryAfter} : {})};
  response.writeHead(status, headers).end(JSON.stringify({error: {message, type: 'sluice_proxy', code: null, param: null}}));
}

function ask(path, body, timeoutMs) {
  return fetch(sidecar.url + path, {
    method: 'POST',
    headers: {'content-type': 'application/json', ...bearer(sidecar.key_env)},
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(timeoutMs),
  });
}
// The sidecar needs the last question alone, and no pictures.
function question(body) {
  const said = body.messages.filter(m => m?.role === 'user').at(-1)?.content ?? '';
  const text = Array.isArray(said) ? said.filter(p => p?.type === 'text').map(p => p.text).join('\n') : said;
  const content = typeof text === 'string' ? text.slice(0, 16384) : text;
  return {model: body.model, user: body.user, metadata: body.metadata, messages: [{role: 'user', content}]};
}
// Whom to call, best first: [{agent, model}], and the receipt of the decision.
async function decide(body) {
  if (body.model !== 'auto') return {calls: [{model: body.model}]};
  const inOrder = {calls: config.order.map(model => ({model}))};
  let answer, said;
  try {
    answer = await ask('/v1/decide', question(body), sidecar.timeout_ms);
    said = await answer.json();
  } catch (error) {
    log('the sidecar does not answer; the configured order decides', {why: String(error.cause?.code ?? error.message)});
    return inOrder;
  }
  if (answer.ok) {
    const calls = [{agent: said.agents.at(-1), model: said.model}, ...said.fallbacks];
    return {id: said.decision_id, receipt: said.receipt, calls: calls.filter(c => config.upstreams[c.model])};
  }
  // What it refuses is refused; that it has trouble of its own is no reason to be silent.
  if (answer.status < 500 || said.error?.code === 'UNAVAILABLE')
    throw new Refusal(answer.status, `sluice: ${said.error?.message}`, answer.headers.get('retry-after'));
  log('the sidecar is in trouble; the configured order decides', {status: answer.status, why: said.error?.message});
  return inOrder;
}
// What was not told is told again for a minute: the receipt outlives a restart of the sidecar.
async function feedback(outcome) {
  for (const wait of [0, 1000, 5000, 15000, 40000]) {
    await sleep(wait, null, {ref: false});
    try {
      const answer = await ask('/v1/feedback', outcome, 5000);
      if (answer.ok) return;
      if (answer.status < 500 && answer.status !== 429) return log('feedback refused', {why: await answer.text()});
    } catch { /* it is not there */ }
  }
  log('feedback lost', {outcome});
}

// Fields that only Sluice reads are no upstream's.
const ours = ['task', 'session', 'tags', 'exclude', 'features', 'previous', 'max_cost_usd'];
function forUpstream(body, model) {
  const metadata = Object.fromEntries(Object.entries(body.metadata ?? {}).filter(([name]) => !ours.includes(name)));
  const out = {...body, model: config.upstreams[model].model ?? model, metadata};
  if (Object.keys(metadata).length === 0) delete out.metadata;
  if (body.stream) out.stream_options = {...body.stream_options, include_usage: true};
  return out;
}
function cost(model, usage) {
  const {usd_per_mtok_in: input = 0, usd_per_mtok_out: output = 0} = config.upstreams[model];
  return usage ? ((usage.prompt_tokens ?? 0) * input + (usage.completion_tokens ?? 0) * output) / 1e6 : undefined;
}
// A watch over one call: it ends the call when the client goes or nothing comes for too long.
class Watch {
  constructor(response) {
    this.controller = new AbortController();
    this.gone = () => this.controller.abort(new Error('the client is gone'));
    this.response = response.on('close', this.gone);
    this.wait(answerMs);
  }
  wait(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.controller.abort(new Error(`nothing for ${ms} ms`)), ms);
  }
  end() {
    clearTimeout(this.timer);
    this.response.off('close', this.gone);
  }
}
// The events of a stream as they come, without their line ends.
async function* events(stream, watch) {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const piece of stream) {
    watch.wait(silenceMs);
    rest += decoder.decode(piece, {stream: true});
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    yield* parts;
  }
  if (rest.trim()) yield rest;
}
function drained(response) {
  return new Promise(resolve => {
    const go = () => resolve(response.off('drain', go).off('close', go));
    response.on('drain', go).on('close', go);
  });
}
const dataOf = event => event.split(/\r?\n/).filter(l => l.startsWith('data:')).map(l => l.slice(5).trimStart()).join('\n');

// Streams an answer through; returns its usage. Nothing is sent before the first event, so until
// then another upstream can be tried.
async function stream(upstream, body, response, headers, watch) {
  let usage, done = false;
  for await (const event of events(upstream.body, watch)) {
    const data = dataOf(event);
    if (data === '[DONE]') done = true;
    let chunk;
    try { chunk = JSON.parse(data); } catch { /* a comment, or the end */ }
    if (chunk?.error) throw new Error(`in the stream: ${chunk.error.message ?? data}`);
    usage = chunk?.usage ?? usage;
    // Who did not ask for the usage does not expect a chunk without choices.
    if (chunk?.usage && chunk.choices?.length === 0 && !body.stream_options?.include_usage) continue;
    if (!response.headersSent) response.writeHead(200, {'content-type': 'text/event-stream', 'cache-control': 'no-cache', ...headers});
    if (!response.write(event + '\n\n')) await drained(response);
  }
  if (!done) throw new Error('the stream ended before its end');
  return usage;
}
const tryNext = status => [401, 403, 404, 408, 429].includes(status) || status >= 500;

// One call: {failed, why, ...}. Where `sent`, the client has its answer, or what came of it.
async function call({agent, model}, body, response, headers) {
  const {url, key_env} = config.upstreams[model];
  const began = performance.now();
  const watch = new Watch(response);
  const report = {agent, failed: false};
  let status, retryAfter;
  try {
    const upstream = await fetch(`${url}/chat/completions`, {
      method: 'POST', headers: {'content-type': 'application/json', ...bearer(key_env)},
      body: JSON.stringify(forUpstream(body, model)), signal: watch.controller.signal,
    });
    ({status} = upstream);
    retryAfter = upstream.headers.get('retry-after');
    if (!upstream.ok && tryNext(status)) throw new Error(`HTTP ${status}: ${(await upstream.text()).slice(0, 200)}`);
    if (upstream.ok && body.stream) {
      report.cost_usd = cost(model, await stream(upstream, body, response, headers, watch));
      response.end();
    } else {
      const text = await upstream.text();
      if (upstream.ok) report.cost_usd = cost(model, JSON.parse(text).usage);
      response.writeHead(status, {'content-type': upstream.headers.get('content-type') ?? 'application/json', ...headers}).end(text);
    }
  } catch (error) {
    const gone = response.destroyed && !response.writableFinished;
    report.failed = !gone;
    report.why = String(error.cause?.message ?? error.message);
    if (response.headersSent && !gone) {
      response.write(`data: ${JSON.stringify({error: {message: `${model}: ${report.why}`, type: 'sluice_proxy', code: 'upstream_failed'}})}\n\n`);
      response.end();
    }
  }
  watch.end();
  report.latency_s = (performance.now() - began) / 1000;
  return {report, status, retryAfter, sent: response.headersSent || response.destroyed};
}

async function complete(request, response) {
  // A browser sends an Origin with it, and no page of anybody's may spend the keys.
  if (request.headers.origin) throw new Refusal(403, `a page of '${request.headers.origin}' may not ask`);
  if (!/^application\/json\b/i.test(request.headers['content-type'] ?? '')) throw new Refusal(415, 'Content-Type: allowed: application/json');
  const pieces = [];
  let bytes = 0;
  for await (const piece of request) {
    bytes += piece.length;
    if (bytes > mostBytes) throw new Refusal(413, `a body above ${mostBytes} bytes`);
    pieces.push(piece);
  }
  let body;
  try { body = JSON.parse(Buffer.concat(pieces)); } catch (error) { throw new Refusal(400, `the body is no JSON: ${error.message}`); }
  if (!Array.isArray(body?.messages)) throw new Refusal(400, 'messages: allowed: array');
  if (body.model !== 'auto' && !config.upstreams[body.model])
    throw new Refusal(404, `no model '${body.model}'; there are: auto, ${Object.keys(config.upstreams).join(', ')}`);

  const {id, receipt, calls} = await decide(body);
  const reports = [];
  let last = {status: 502};
  for (const next of calls) {
    last = await call(next, body, response, {'x-sluice-model': next.model, ...(id ? {'x-sluice-decision': id} : {})});
    reports.push(last.report);
    if (last.report.failed) log('a call failed', {model: next.model, why: last.report.why});
    if (last.sent) break;
  }
  // No quality: nobody has graded the answer yet.
  const sum = of => reports.reduce((all, r) => all + (r[of] ?? 0), 0);
  if (receipt) void feedback({receipt, cost_usd: sum('cost_usd'), latency_s: sum('latency_s'), agents: reports});
  if (last.sent) return;
  const why = reports.map((r, i) => `${calls[i].model}: ${r.why}`).join('; ');
  throw new Refusal(last.status === 429 ? 429 : 502, `no upstream answered: ${why || 'none is configured for what was chosen'}`, last.retryAfter);
}

const server = http.createServer(async (request, response) => {
  const route = `${request.method} ${new URL(request.url, 'http://proxy').pathname}`;
  try {
    if (route === 'POST /v1/chat/completions') return await complete(request, response);
    if (route !== 'GET /v1/models') throw new Refusal(404, `no page '${route}'; there are: POST /v1/chat/completions, GET /v1/models`);
    const data = ['auto', ...Object.keys(config.upstreams)].map(id => ({id, object: 'model', created: 0, owned_by: id === 'auto' ? 'sluice' : 'upstream'}));
    response.writeHead(200, {'content-type': 'application/json'}).end(JSON.stringify({object: 'list', data}));
  } catch (error) {
    if (!(error instanceof Refusal)) log('error', {why: String(error.stack)});
    refuse(response, error);
  }
});
server.listen(listen.port, listen.host, () => console.log(`listening on http://${listen.host}:${server.address().port}/v1`));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => server.close(() => process.exit(0)));
