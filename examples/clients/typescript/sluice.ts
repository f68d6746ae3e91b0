// Client of `sluice serve` over HTTP: fetch and nothing else, for Node 18, Deno, Bun and Cloudflare's kind.
// Every call ends within its timeout, whatever the server does.

/** One of task, intent and text says what it is about, in this order of precedence; none: all tasks alike. */
export interface Query {
  task?: string;
  intent?: number[];
  text?: string;
  features?: number[];
  exclude?: string[];
  unit?: string;
  max_cost_usd?: number;
  tag?: string[];
  session?: string;
  /** Receipt of the session's call before. */
  previous?: string;
}
export interface Refusal {
  code: string;
  text: string;
  retry_after_s: number;
}
export interface Decision {
  id: string;
  /** One a stage. */
  agents: string[];
  propensity: number;
  policy: string;
  /** Give it back with the feedback. */
  receipt: string;
  /** One a stage: who could be called in its place, best first. */
  fallbacks: {agents: string[]}[];
  kept: boolean;
  /** Of this query alone, where there were many. */
  error?: Refusal;
}
/** The body of an OpenAI chat completion, as it is. */
export interface Chat {
  messages: {role: string; content?: unknown}[];
  user?: string;
  metadata?: {
    task?: string;
    session?: string;
    previous?: string;
    tags?: string | string[];
    exclude?: string | string[];
    max_cost_usd?: number | string;
    features?: string | number[];
    [other: string]: unknown;
  } | null;
  [other: string]: unknown;
}
export interface ChatDecision {
  decision_id: string;
  model: string;
  agents: string[];
  fallbacks: {agent: string; model: string}[];
  receipt: string;
  policy: string;
  propensity: number;
  kept: boolean;
  why: string;
}
export interface Outcome {
  receipt: string;
  /** In [0, 1]; left out: nobody has graded the answer yet, and a grade may follow. */
  quality?: number;
  accepted?: boolean;
  cost_usd?: number;
  latency_s?: number;
  agents?: {agent: string; failed?: boolean; latency_s?: number; cost_usd?: number; why?: string}[];
}
export interface Candidate {
  agent: string;
  tau: number;
  eta: number;
  p: number;
  /** Empty, or why it could not be chosen. */
  blocked: string;
  chosen: boolean;
  why: string;
  free_in_s: number;
}
export interface Explanation {
  decision_id: string;
  policy: string;
  spec: string;
  snapshot: string;
  intent: {task: string; weight: number}[];
  propensity: number;
  stages: {candidates: Candidate[]}[];
  unix_ms: string;
}
interface FeedbackResult {
  decision_id: string;
  status: 'REJECTED' | 'APPLIED' | 'DUPLICATE';
  reason: string;
}

/** What the server answered instead. `status` 0: nobody answered in time. */
export class SluiceError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly status: number,
    readonly retryAfterS: number,
  ) {
    super(`${code}: ${message}`);
    this.name = 'SluiceError';
  }
  /** Whether sending again later may help. */
  get retry(): boolean {
    return this.status === 0 || this.status === 429 || this.status === 503 || this.status === 504;
  }
}

export interface Options {
  /** http://127.0.0.1:8571 */
  url?: string;
  /** A bearer key, where the server has keys. */
  key?: string;
  /** 2000; of one call. */
  timeoutMs?: number;
}

export class Sluice {
  private readonly url: string;
  private readonly timeoutMs: number;
  private readonly headers: Record<string, string>;

  constructor({url = 'http://127.0.0.1:8571', key, timeoutMs = 2000}: Options = {}) {
    this.url = url.replace(/\/+$/, '');
    this.timeoutMs = timeoutMs;
    this.headers = {'content-type': 'application/json', ...(key ? {authorization: `Bearer ${key}`} : {})};
  }

  /** The agents of one query. */
  async route(query: Query = {}): Promise<Decision> {
    const {decisions} = await this.post<{decisions: Decision[]}>('/v1/route', query);
    return decisions[0]!;
  }
  /** One decision a query, in their order; each may have an `error`. */
  async routeMany(queries: Query[]): Promise<Decision[]> {
    return (await this.post<{decisions: Decision[]}>('/v1/route', {queries})).decisions;
  }
  /** The model of a chat completion. */
  decide(chat: Chat): Promise<ChatDecision> {
    return this.post<ChatDecision>('/v1/decide', chat);
  }
  /** Resolves once the outcome is durable: true when it was new, false when it was there already. Safe to repeat. */
  async feedback(outcome: Outcome): Promise<boolean> {
    const {results} = await this.post<{results: FeedbackResult[]}>('/v1/feedback', outcome);
    return results[0]!.status === 'APPLIED';
  }
  /** Why one of the latest decisions was made. */
  explain(decisionId: string): Promise<Explanation> {
    return this.post<Explanation>('/v1/explain', {decision_id: decisionId});
  }

  private async post<Answer>(path: string, body: unknown): Promise<Answer> {
    // The signal ends the reading of the body too.
    const signal = AbortSignal.timeout(this.timeoutMs);
    let status = 0;
    let text: string;
    try {
      const response = await fetch(this.url + path, {method: 'POST', headers: this.headers, body: JSON.stringify(body), signal});
      text = await response.text();
      status = response.status;
    } catch (error) {
      if (signal.aborted) throw new SluiceError('DEADLINE_EXCEEDED', `${this.url}: no answer in ${this.timeoutMs} ms`, 0, 0);
      const cause = (error as {cause?: {code?: string}}).cause?.code ?? String(error);
      throw new SluiceError('UNAVAILABLE', `${this.url}: ${cause}`, 0, 0);
    }
    let answer: unknown;
    try {
      answer = JSON.parse(text);
    } catch {
      throw new SluiceError('INTERNAL', `${this.url}: the answer is no JSON: ${text.slice(0, 100)}`, status, 0);
    }
    if (status === 200) return answer as Answer;
    const {error} = answer as {error?: {code?: string; message?: string; retry_after_s?: number}};
    throw new SluiceError(error?.code ?? 'INTERNAL', error?.message ?? text.slice(0, 100), status, error?.retry_after_s ?? 0);
  }
}
