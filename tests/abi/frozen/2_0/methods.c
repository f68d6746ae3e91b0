/* A learned router of tokens with units of its own, an agent router and a pruner of weights. */
#include "common.h"

__attribute__((section(SLUICE_MANIFEST_SECTION), used)) static const char manifest[] =
    "sluice-plugin 1\nname=frozen_methods\nversion=2.0.0\nabi=2.0\nmin_host_minor=0\n";

static void destroy(void* p) { free(p); }

/* ---- token/frozen_gate: run (the host's), skip, forecast (its own) ---- */
enum { kRun = 0, kSkip = 1, kForecast = 2, kUnits = 3, kWidth = 2 };
typedef struct gate {
  double threshold;
  int64_t capacity;
  float weight[kWidth];
} gate;
typedef struct gate_plan {
  sluice_route_shape shape;
} gate_plan;

static sluice_code gate_weights(const sluice_kv* kv, size_t n, const sluice_route_shape* s,
                                const sluice_weight_sink* sink, sluice_error* e) {
  const int64_t dims[] = {s->width};
  double none = 0;
  const sluice_code code = read_option(kv, n, "threshold", &none, e);
  if (code != 0) return code;
  sink->add_int(sink->self, "gate.capacity", 2);
  sink->add_tensor(sink->self, "gate.weight", dims, 1);
  return 0;
}
static sluice_code gate_create(const sluice_kv* kv, size_t n, const sluice_weights* w, void** out,
                               sluice_error* e) {
  const uint64_t dims[] = {kWidth};
  gate* g = calloc(1, sizeof *g);
  sluice_code code = 0;
  if (g == NULL) return fail(e, kNoMemory, "out of memory");
  code = read_option(kv, n, "threshold", &g->threshold, e);
  if (code == 0 && w == NULL) code = fail(e, kPrecondition, "needs trained weights");
  if (code == 0) code = w->get_int(w->self, "gate.capacity", &g->capacity, e);
  if (code == 0) code = w->read_f32(w->self, "gate.weight", dims, 1, g->weight, kWidth, e);
  if (code != 0) {
    free(g);
    return code;
  }
  *out = g;
  return 0;
}
static sluice_code gate_make_plan(const void* r, const sluice_route_shape* s, void** out,
                                  sluice_route_info* info, sluice_error* e) {
  gate_plan* p = calloc(1, sizeof *p);
  (void)r;
  if (p == NULL) return fail(e, kNoMemory, "out of memory");
  if (s->width != kWidth) {
    free(p);
    return fail(e, kInvalid, "wants features of width 2");
  }
  p->shape = *s;
  info->workspace_bytes = (size_t)s->items * sizeof(float);
  info->unit_workspace_bytes = sizeof(float);
  info->units = kUnits;
  info->max_entries = s->items * 2;
  info->max_dropped = s->items;
  info->head_rows = 1;
  info->tail_rows = 3;
  *out = p;
  return 0;
}
typedef struct gate_scores {
  const gate* g;
  const sluice_route_inputs* in;
  float* to;
} gate_scores;
static void gate_score(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const gate_scores* s = arg;
  (void)worker;
  for (int64_t i = begin; i < end; ++i) {
    const float* x = s->in->features.data + i * s->in->features.row_stride;
    s->to[i] = x[0] * s->g->weight[0] + x[1] * s->g->weight[1];
  }
}
/* Items above the threshold run, up to the capacity; all others skip, and every second is
 * forecast. */
static sluice_code gate_run(const void* r, const void* p, const sluice_route_inputs* in,
                            const sluice_run_context* c, sluice_assignment* a, sluice_error* e) {
  const gate* g = r;
  float* score = c->workspace;
  gate_scores job = {g, in, score};
  int64_t at = 0;
  int64_t runs = 0;
  (void)p;
  (void)e;
  c->executor->parallel_for(c->executor->self, in->items, 2, gate_score, &job);
  a->items = in->items;
  a->units = kUnits;
  a->num_dropped = 0;
  a->nan_scores = 0;
  a->row_ptr[0] = 0;
  for (int64_t i = 0; i < in->items; ++i) {
    const float bias = in->num_unit_bias > 0 ? in->unit_bias[kRun] : 0;
    const int wanted = score[i] + bias > (float)g->threshold;
    const int runs_here = wanted && runs < g->capacity;
    if (isnan(score[i])) ++a->nan_scores;
    if (wanted && !runs_here) {
      a->dropped[a->num_dropped].item = (int32_t)i;
      a->dropped[a->num_dropped++].unit = kRun;
    }
    runs += runs_here;
    a->unit[at] = runs_here ? kRun : kSkip;
    a->weight[at] = 1;
    if (a->score != NULL) a->score[at] = isnan(score[i]) ? 0 : score[i];
    ++at;
    if (!runs_here && i % 2 == 1) {
      a->unit[at] = kForecast;
      a->weight[at] = 0.5f;
      if (a->score != NULL) a->score[at] = (float)(in->layer + in->step);
      ++at;
    }
    a->row_ptr[i + 1] = at;
  }
  return 0;
}
static sluice_code gate_describe(const void* r, const void* p, int64_t unit, sluice_unit* out,
                                 sluice_error* e) {
  const sluice_unit units[] = {
      {sizeof *out, 0, 0, 1, 0}, {sizeof *out, 1, 0, 0, 0}, {sizeof *out, 2, 2, 0.125, 3}};
  (void)r;
  (void)p;
  if (unit < 0 || unit >= kUnits) return fail(e, kInvalid, "no such unit");
  out->kind = units[unit].kind;
  out->concurrency = units[unit].concurrency;
  out->cost = units[unit].cost;
  out->max_rows = units[unit].max_rows;
  return 0;
}
static sluice_code gate_run_unit(const void* r, const void* p, const sluice_unit_rows* rows,
                                 const sluice_run_context* c, sluice_error* e) {
  (void)r;
  (void)p;
  if (rows->unit != kForecast || c->workspace_bytes < sizeof(float))
    return fail(e, kInvalid, "forecasts only");
  for (int64_t i = 0; i < rows->in.rows; ++i) {
    for (int64_t x = 0; x < rows->out_cols; ++x)
      rows->out[i * rows->out_cols + x] =
          2 * rows->in.data[i * rows->in.row_stride + x] + (float)rows->items[i];
  }
  return 0;
}
static const sluice_route_traits gate_traits = {sizeof(sluice_route_traits),
                                                "token/frozen_gate",
                                                "Frozen at 2.0",
                                                "2000.00002",
                                                "",
                                                "threshold=1",
                                                2,
                                                1,
                                                2,
                                                SLUICE_ROUTE_LEARNED | SLUICE_ROUTE_CAUSAL,
                                                2,
                                                256};
static const sluice_router_v1 gate_table = {sizeof(sluice_router_v1),
                                            &gate_traits,
                                            "threshold=0: scores above it run",
                                            gate_create,
                                            destroy,
                                            gate_weights,
                                            gate_make_plan,
                                            destroy,
                                            gate_run,
                                            gate_describe,
                                            gate_run_unit};

/* ---- frozen_cheapest: the cheapest agent of every stage that is not blocked ---- */
typedef struct agent_plan {
  int32_t num_stages, num_agents, num_tasks;
  int32_t sizes[8];
  double cost[512];
} agent_plan;
static sluice_code agent_create(const sluice_kv* kv, size_t n, const sluice_weights* w, void** out,
                                sluice_error* e) {
  double* scale = malloc(sizeof *scale);
  sluice_code code = 0;
  (void)w;
  if (scale == NULL) return fail(e, kNoMemory, "out of memory");
  *scale = 1;
  code = read_option(kv, n, "scale", scale, e);
  if (code != 0) free(scale);
  if (code == 0) *out = scale;
  return code;
}
static sluice_code agent_make_plan(const void* r, const sluice_agent_graph* g, void** out,
                                   sluice_agent_info* info, sluice_error* e) {
  agent_plan* p = calloc(1, sizeof *p);
  (void)r;
  if (p == NULL) return fail(e, kNoMemory, "out of memory");
  p->num_stages = g->num_stages;
  p->num_tasks = g->num_tasks;
  for (int32_t s = 0; s < g->num_stages; ++s) {
    p->sizes[s] = g->stage_sizes[s];
    for (int32_t i = 0; i < g->stage_sizes[s]; ++i) {
      const sluice_agent* a = g->agents[p->num_agents];
      /* Able, quick and heavy ones are worth their cost. */
      p->cost[p->num_agents++] = a->cost_usd + a->latency_s / a->weight -
                                 (a->ability != NULL ? a->ability[0] : 0) -
                                 (a->id[0] == 'x' && a->role[0] == 0 && a->model[0] == 0 ? 9 : 0);
    }
  }
  info->sums = p->num_agents;
  info->state = p->num_agents;
  *out = p;
  return 0;
}
static sluice_code agent_initial_state(const void* r, const void* p, double* state,
                                       sluice_error* e) {
  const agent_plan* a = p;
  (void)r;
  (void)e;
  for (int32_t i = 0; i < a->num_agents; ++i) state[i] = 0.5;
  return 0;
}
static sluice_code agent_run(const void* r, const void* p, const double* state,
                             const sluice_agent_request* q, sluice_agent_decision* d,
                             sluice_error* e) {
  const agent_plan* plan = p;
  const double scale = *(const double*)r;
  int32_t agent = 0;
  d->trace_size = 0;
  for (int32_t s = 0; s < plan->num_stages; ++s) {
    const int32_t first = agent;
    int32_t best = -1;
    double least = 0;
    for (; agent < first + plan->sizes[s]; ++agent) {
      const double load = q->live != NULL ? q->live[agent].load + q->live[agent].latency_s : 0;
      const double features = q->num_features > 0 ? q->features[0] : 0;
      const double cost = scale * plan->cost[agent] * q->intent[0] - state[agent] + load + features;
      const uint8_t block = q->blocked != NULL ? q->blocked[agent] : 0;
      if (d->trace != NULL && d->trace_size < d->trace_capacity)
        d->trace[d->trace_size++] =
            (sluice_agent_candidate){s, agent, block, 0, {0, 0}, 1, (float)cost, 0};
      if (block != 0 || (best >= 0 && cost >= least)) continue;
      best = agent;
      least = cost;
    }
    if (best < 0) return fail(e, kPrecondition, "every agent of a stage is blocked");
    d->path[s] = best;
    if (d->trace != NULL) {
      d->trace[best].chosen = 1;
      d->trace[best].p = 1;
    }
  }
  d->propensity = 1;
  return 0;
}
static sluice_code agent_observe(const void* r, const void* p, const sluice_agent_outcome* o,
                                 sluice_add_sums add, void* to, sluice_error* e) {
  const agent_plan* plan = p;
  (void)r;
  (void)e;
  for (int32_t s = 0; s < plan->num_stages; ++s) {
    const double gain = o->quality + o->accepted - o->cost_usd - o->latency_s;
    const sluice_sum_delta d = {(uint32_t)o->path[s], 0, (int64_t)(gain * 1024 / o->propensity)};
    add(to, &d, 1);
  }
  return 0;
}
static sluice_code agent_fold(const void* r, const void* p, const int64_t* sums, double* state,
                              sluice_error* e) {
  const agent_plan* plan = p;
  (void)r;
  (void)e;
  for (int32_t i = 0; i < plan->num_agents; ++i) state[i] = state[i] / 2 + (double)sums[i] / 1024;
  return 0;
}
static const sluice_agent_router_v1 agent_table = {sizeof(sluice_agent_router_v1),
                                                   "frozen_cheapest",
                                                   0,
                                                   "scale=1: of costs",
                                                   agent_create,
                                                   destroy,
                                                   agent_make_plan,
                                                   destroy,
                                                   agent_initial_state,
                                                   agent_run,
                                                   agent_observe,
                                                   agent_fold};

/* ---- weight/frozen_wanda: a share of every row goes, the least |w| sqrt(sum of squares) first.
 * ---- */
typedef struct prune_job {
  const sluice_prune_inputs* in;
  uint64_t* mask;
} prune_job;
static sluice_code pruner_create(const sluice_kv* kv, size_t n, const sluice_weights* w, void** out,
                                 sluice_error* e) {
  double none = 0;
  const sluice_code code = read_option(kv, n, "nothing", &none, e);
  (void)w;
  if (code != 0) return code;
  *out = malloc(1);
  return *out != NULL ? 0 : fail(e, kNoMemory, "out of memory");
}
static void prune_rows(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const prune_job* job = arg;
  const sluice_prune_inputs* in = job->in;
  const int64_t cols = in->weights.cols;
  const int64_t words = divide_up(cols, 64);
  (void)worker;
  for (int64_t r = begin; r < end; ++r) {
    const float* w = in->weights.data + r * in->weights.row_stride;
    uint64_t* mask = job->mask + r * words;
    int64_t gone = 0;
    for (int64_t c = 0; c < cols; ++c) mask[c / 64] |= UINT64_C(1) << (c % 64);
    for (int64_t c = 0; c < cols && in->start != NULL; ++c) {
      if (in->start[r * words + c / 64] >> (c % 64) & 1) continue;
      mask[c / 64] &= ~(UINT64_C(1) << (c % 64));
      ++gone;
    }
    for (; gone < (int64_t)(in->ratio * (double)cols); ++gone) {
      int64_t least = -1;
      float value = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const float x = fabsf(w[c]) * sqrtf(in->sum_squares[c]);
        if ((mask[c / 64] >> (c % 64) & 1) == 0 || (least >= 0 && x >= value)) continue;
        least = c;
        value = x;
      }
      mask[least / 64] &= ~(UINT64_C(1) << (least % 64));
    }
  }
}
static sluice_code prune(const void* p, const sluice_prune_inputs* in, const sluice_run_context* c,
                         uint64_t* mask, sluice_error* e) {
  prune_job job = {in, mask};
  (void)p;
  if (in->kind != 0 || in->scope != 0) return fail(e, kInvalid, "a share of every row only");
  if (in->tokens <= 0 || in->sum_squares == NULL) return fail(e, kInvalid, "wants statistics");
  c->executor->parallel_for(c->executor->self, in->weights.rows, 1, prune_rows, &job);
  return 0;
}
static const sluice_pruner_traits pruner_traits = {
    sizeof(sluice_pruner_traits), "weight/frozen_wanda", "Frozen at 2.0", "2000.00003", 2, 1, 1, 0};
static const sluice_pruner_v1 pruner_table = {
    sizeof(sluice_pruner_v1), &pruner_traits, "", pruner_create, destroy, prune};

static const sluice_router_v1* const routers[] = {&gate_table};
static const sluice_agent_router_v1* const agents[] = {&agent_table};
static const sluice_pruner_v1* const pruners[] = {&pruner_table};
static const sluice_plugin_v1 plugin = {sizeof(sluice_plugin_v1),
                                        SLUICE_PLUGIN_MAGIC,
                                        2,
                                        0,
                                        0,
                                        "frozen_methods",
                                        "2.0.0",
                                        1,
                                        routers,
                                        0,
                                        NULL,
                                        1,
                                        agents,
                                        1,
                                        pruners};
EXPORTED const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t major, uint32_t minor) {
  (void)minor;
  return major == 2 ? &plugin : NULL;
}
