/* Attention routers over every record of a plan. */
#include "common.h"

__attribute__((section(SLUICE_MANIFEST_SECTION), used)) static const char manifest[] =
    "sluice-plugin 1\nname=frozen_attention\nversion=2.0.0\nabi=2.0\nmin_host_minor=0\n";

typedef struct router {
  double option;
  int64_t stride;
  float rank[8];
} router;
typedef struct plan {
  sluice_attention_shape shape;
} plan;

static void destroy(void* p) { free(p); }
static sluice_code create_with(const sluice_kv* kv, size_t n, const char* key, double value,
                               void** out, sluice_error* e) {
  const sluice_code code = read_option(kv, n, key, &value, e);
  router* r = NULL;
  if (code != 0) return code;
  r = calloc(1, sizeof *r);
  if (r == NULL) return fail(e, kNoMemory, "out of memory");
  r->option = value;
  *out = r;
  return 0;
}
static sluice_code new_plan(const sluice_attention_shape* s, void** out, sluice_error* e) {
  plan* p = calloc(1, sizeof *p);
  if (p == NULL) return fail(e, kNoMemory, "out of memory");
  p->shape = *s;
  *out = p;
  return 0;
}
static void begin(const sluice_attention_inputs* in, sluice_attention_plan* a) {
  a->q_begin = in->q_begin;
  a->q_count = in->q.rows;
  a->kv_len = in->k.rows;
  a->heads = (int32_t)in->q.heads;
  a->kv_heads = (int32_t)in->k.heads;
  a->num_tables = 0;
  a->merge = 0;
  a->has_perm = 0;
  a->has_key_bias = 0;
}

/* ---- branches: a weighted sum of runs with biases and query masks, and of a pattern ---- */
enum { kBranchTile = 4 };
static sluice_code branches_create(const sluice_kv* kv, size_t n, const sluice_weights* w,
                                   void** out, sluice_error* e) {
  (void)w;
  return create_with(kv, n, "sink", 2, out, e);
}
static sluice_code branches_plan(const void* r, const sluice_attention_shape* s, void** out,
                                 sluice_attention_info* info, sluice_error* e) {
  (void)r;
  info->num_branches = 2;
  info->max_tile = kBranchTile;
  info->weight_slots = 2 * s->max_queries * s->heads;
  info->bias_slots = s->kv_heads * s->max_kv;
  info->branches[0].rows = s->kv_heads * divide_up(s->max_queries, kBranchTile);
  info->branches[0].entry_slots = 2;
  info->branches[0].bias = 1;
  info->branches[0].mask = 1;
  info->branches[1].rows = 1;
  info->branches[1].terms = 2;
  return new_plan(s, out, e);
}
static void branches_runs(const router* r, const sluice_attention_plan* a, sluice_plan_branch* b) {
  const uint32_t sink = (uint32_t)r->option;
  b->block = 1;
  b->tile = kBranchTile;
  b->num_tiles = divide_up(a->q_count, kBranchTile);
  b->window = 0;
  b->init_from = -1;
  b->stop_tau = 0;
  b->scope = 1;      /* KV heads */
  b->encoding = 1;   /* runs */
  b->token_mask = 1; /* causal */
  b->order = 0;
  b->stop = 0;
  b->has_bias = 1;
  b->has_mask = 1;
  b->has_order = 0;
  for (int64_t row = 0; row < a->kv_heads * b->num_tiles; ++row) {
    const int64_t first = a->q_begin + row % b->num_tiles * kBranchTile;
    const int64_t at = row * b->layout.entry_slots;
    int64_t last = first + kBranchTile - 1;
    int64_t from = first - row / b->num_tiles; /* the second KV head looks one key further back */
    if (last > a->q_begin + a->q_count - 1) last = a->q_begin + a->q_count - 1;
    if (from < (int64_t)sink) from = sink;
    b->row_begin[row] = at;
    b->row_count[row] = 2;
    b->entries[at] = (sluice_plan_entry){0, sink, 0, 1, 0, 1};
    b->entries[at + 1] =
        (sluice_plan_entry){(uint32_t)from, (uint32_t)(last + 1 - from), 0, 1, 0, 0};
    b->entry_bias[at] = 0.5f;
    b->entry_bias[at + 1] = -0.25f;
    b->row_mask[at] = 5; /* queries 0 and 2 of the tile */
    b->row_mask[at + 1] = 15;
  }
}
static void branches_pattern(sluice_plan_branch* b, int64_t queries) {
  const sluice_pattern_term band = {.kind = 1, .a = 3, .stride = {1, 1, 1}, .dilation = {1, 1, 1}};
  const sluice_pattern_term columns = {
      .kind = 2, .a = 5, .b = 1, .stride = {1, 1, 1}, .dilation = {1, 1, 1}};
  b->block = 1;
  b->tile = kBranchTile;
  b->num_tiles = divide_up(queries, kBranchTile);
  b->window = 0;
  b->init_from = -1;
  b->stop_tau = 0;
  b->scope = 2;    /* all heads */
  b->encoding = 4; /* a pattern */
  b->token_mask = 1;
  b->order = 0;
  b->stop = 0;
  b->has_bias = 0;
  b->has_mask = 0;
  b->has_order = 0;
  b->terms[0] = band;
  b->terms[1] = columns;
  b->term_begin[0] = 0;
  b->term_begin[1] = 2;
}
static sluice_code branches_run(const void* r, const void* p, const sluice_attention_inputs* in,
                                sluice_attention_state* state, const sluice_run_context* c,
                                sluice_attention_plan* a, sluice_error* e) {
  (void)p;
  (void)state;
  (void)c;
  (void)e;
  begin(in, a);
  a->merge = 1; /* a weighted sum */
  a->num_branches = 2;
  branches_runs(r, a, &a->branches[0]);
  branches_pattern(&a->branches[1], a->q_count);
  for (int64_t i = 0; i < a->q_count * a->heads; ++i) {
    a->branch_weight[i] = i % a->heads == 0 ? 0.25f : 0.5f;
    a->branch_weight[a->q_count * a->heads + i] = i % a->heads == 0 ? 0.75f : 0.5f;
  }
  a->has_key_bias = 1;
  for (int64_t i = 0; i < a->kv_heads * a->kv_len; ++i)
    a->key_bias[i] = -0.125f * (float)(i % a->kv_len % 3);
  return 0;
}

/* ---- order: blocks of permuted keys by tiles in an order of their own, and summaries ---- */
enum { kOrderBlock = 4, kOrderTile = 3 };
static sluice_code order_create(const sluice_kv* kv, size_t n, const sluice_weights* w, void** out,
                                sluice_error* e) {
  (void)w;
  return create_with(kv, n, "every", 2, out, e);
}
static sluice_code order_plan(const void* r, const sluice_attention_shape* s, void** out,
                              sluice_attention_info* info, sluice_error* e) {
  (void)r;
  info->num_branches = 2;
  info->max_tile = kOrderTile;
  info->workspace_bytes = (size_t)(s->kv_heads * (s->head_dim + s->value_dim) + 4) * sizeof(float);
  info->perm_slots = s->max_kv;
  info->branches[0].rows = divide_up(s->max_queries, kOrderTile);
  info->branches[0].entry_slots = divide_up(s->max_kv, kOrderBlock);
  info->branches[0].order_slots = s->max_queries;
  info->branches[1].rows = s->max_queries;
  info->branches[1].entry_slots = 1;
  return new_plan(s, out, e);
}
/* The mean of the first four keys and values stands for them. */
static void order_table(const plan* p, const sluice_attention_inputs* in,
                        const sluice_run_context* c, sluice_attention_plan* a) {
  const int64_t heads = in->k.heads;
  const int64_t d = p->shape.head_dim;
  const int64_t dv = p->shape.value_dim;
  float* k = c->workspace;
  float* v = k + heads * d;
  float* log_count = v + heads * dv;
  uint32_t* begin_count = (uint32_t*)(log_count + 1);
  const float* keys = in->k.data;
  const float* values = in->v.data;
  sluice_summary_table* t = &a->tables[0];
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t x = 0; x < d; ++x) {
      k[h * d + x] = 0;
      for (int64_t i = 0; i < 4; ++i)
        k[h * d + x] += keys[i * in->k.row_stride + h * in->k.head_stride + x] / 4;
    }
    for (int64_t x = 0; x < dv; ++x) {
      v[h * dv + x] = 0;
      for (int64_t i = 0; i < 4; ++i)
        v[h * dv + x] += values[i * in->v.row_stride + h * in->v.head_stride + x] / 4;
    }
  }
  log_count[0] = 1.3862944f;
  begin_count[0] = 0;
  begin_count[1] = 4;
  memset(t, 0, sizeof *t);
  t->k = (sluice_view){k, 0, 0, 1, heads, d, heads * d, d};
  t->v = (sluice_view){v, 0, 0, 1, heads, dv, heads * dv, dv};
  t->log_count = log_count;
  t->begin = begin_count;
  t->count = begin_count + 1;
  a->num_tables = 1;
}
static void order_blocks(const router* r, sluice_attention_plan* a, sluice_plan_branch* b) {
  b->block = kOrderBlock;
  b->tile = kOrderTile;
  b->num_tiles = divide_up(a->q_count, kOrderTile);
  b->window = 0;
  b->init_from = -1;
  b->stop_tau = 0;
  b->scope = 2;
  b->encoding = 0; /* blocks */
  b->token_mask = 1;
  b->order = 0;
  b->stop = 0;
  b->has_bias = 0;
  b->has_mask = 0;
  b->has_order = 1;
  for (int64_t i = 0; i < a->q_count; ++i) b->q_order[i] = (int32_t)(a->q_count - 1 - i);
  for (int64_t t = 0; t <= b->num_tiles; ++t)
    b->tile_begin[t] = t * kOrderTile < a->q_count ? t * kOrderTile : a->q_count;
  for (int64_t t = 0; t < b->num_tiles; ++t) {
    const int64_t at = t * b->layout.entry_slots;
    uint32_t n = 0;
    /* Logical keys fall from the last key on: the first four are the last block. */
    for (int64_t x = 0; x < a->kv_len / kOrderBlock - 1; x += (int64_t)r->option)
      b->entries[at + n++] = (sluice_plan_entry){(uint32_t)x, 1, 0, 3, 0, 0};
    b->row_begin[t] = at;
    b->row_count[t] = n;
  }
}
static void order_summaries(const sluice_attention_plan* a, sluice_plan_branch* b) {
  b->block = 1;
  b->tile = 1;
  b->num_tiles = a->q_count;
  b->window = 0;
  b->init_from = -1;
  b->stop_tau = 0;
  b->scope = 2;
  b->encoding = 1;
  b->token_mask = 1;
  b->order = 0;
  b->stop = 0;
  b->has_bias = 0;
  b->has_mask = 0;
  b->has_order = 0;
  for (int64_t i = 0; i < a->q_count; ++i) {
    b->row_begin[i] = i;
    b->row_count[i] = a->q_begin + i >= 4 ? 1 : 0;
    b->entries[i] = (sluice_plan_entry){0, 1, 1, 1, 1, 0};
  }
}
static sluice_code order_run(const void* r, const void* p, const sluice_attention_inputs* in,
                             sluice_attention_state* state, const sluice_run_context* c,
                             sluice_attention_plan* a, sluice_error* e) {
  (void)state;
  if (in->k.dtype != 0 || in->v.dtype != 0) return fail(e, kInvalid, "wants keys in fp32");
  if (in->k.rows % kOrderBlock != 0) return fail(e, kInvalid, "wants whole blocks of keys");
  begin(in, a);
  a->num_branches = 2;
  a->has_perm = 1;
  a->perm_scope = 2;
  for (int64_t i = 0; i < a->kv_len; ++i) a->key_perm[i] = (uint32_t)(a->kv_len - 1 - i);
  order_table(p, in, c, a);
  order_blocks(r, a, &a->branches[0]);
  order_summaries(a, &a->branches[1]);
  return 0;
}

/* ---- learned: two stages, feedback, a state; trained weights rank the blocks ---- */
enum { kLearnedBlock = 4, kLearnedBlocks = 8 };
static sluice_code learned_weights(const sluice_kv* kv, size_t n, const sluice_attention_shape* s,
                                   const sluice_weight_sink* sink, sluice_error* e) {
  const int64_t dims[] = {kLearnedBlocks};
  double none = 0;
  const sluice_code code = read_option(kv, n, "tokens", &none, e);
  (void)s;
  if (code != 0) return code;
  sink->add_int(sink->self, "frozen.stride", 3);
  sink->add_tensor(sink->self, "frozen.rank", dims, 1);
  return 0;
}
static sluice_code learned_create(const sluice_kv* kv, size_t n, const sluice_weights* w,
                                  void** out, sluice_error* e) {
  const uint64_t dims[] = {kLearnedBlocks};
  router* r = NULL;
  sluice_code code = create_with(kv, n, "tokens", 4, out, e);
  if (code != 0) return code;
  r = *out;
  if (w == NULL) code = fail(e, kPrecondition, "needs trained weights");
  if (code == 0) code = w->get_int(w->self, "frozen.stride", &r->stride, e);
  if (code == 0) code = w->read_f32(w->self, "frozen.rank", dims, 1, r->rank, kLearnedBlocks, e);
  if (code != 0) free(r);
  return code;
}
static sluice_code learned_plan(const void* r, const sluice_attention_shape* s, void** out,
                                sluice_attention_info* info, sluice_error* e) {
  (void)r;
  info->num_branches = 1;
  info->max_tile = 1;
  info->state_bytes = 2 * sizeof(int64_t);
  info->sequence_bytes = sizeof(int64_t);
  info->branches[0].rows = s->heads * s->max_queries;
  info->branches[0].token_slots = kLearnedBlocks;
  info->branches[0].prefix_slots = s->heads * s->max_queries;
  return new_plan(s, out, e);
}
/* Blocks by falling rank, the first of them (it holds the tokens of the first stage) left out. */
static uint32_t learned_ranking(const router* r, int64_t blocks, uint32_t* to) {
  uint32_t n = 0;
  for (int64_t x = 1; x < blocks && x < kLearnedBlocks; ++x) {
    uint32_t at = n++;
    for (; at > 0 && r->rank[to[at - 1]] < r->rank[x]; --at) to[at] = to[at - 1];
    to[at] = (uint32_t)x;
  }
  return n;
}
static sluice_code learned_run(const void* self, const void* p, const sluice_attention_inputs* in,
                               sluice_attention_state* state, const sluice_run_context* c,
                               sluice_attention_plan* a, sluice_error* e) {
  const router* r = self;
  sluice_plan_branch* b = &a->branches[0];
  int64_t* layer = state->layer;
  int64_t* sequence = state->sequence;
  const int first = in->stage == 0;
  (void)p;
  (void)c;
  (void)e;
  begin(in, a);
  a->num_branches = 1;
  b->block = first ? 1 : kLearnedBlock;
  b->tile = 1;
  b->num_tiles = a->q_count;
  b->window = 0;
  b->init_from = -1;
  b->stop_tau = 0;
  b->scope = first ? 0 : 1;
  b->encoding = first ? 2 : 3; /* tokens of query heads, then ranked blocks of KV heads */
  b->token_mask = 1;
  b->order = first ? 0 : 1;
  b->stop = 0;
  b->has_bias = 0;
  b->has_mask = 0;
  b->has_order = 0;
  for (int64_t row = 0; row < (first ? a->heads : a->kv_heads) * a->q_count; ++row) {
    uint32_t* to = b->tokens + row * b->layout.token_slots;
    b->row_begin[row] = row * b->layout.token_slots;
    if (first) {
      b->row_count[row] = 0;
      for (int64_t key = row / a->q_count % 2; key < (int64_t)r->option; key += r->stride)
        to[b->row_count[row]++] = (uint32_t)key;
    } else {
      b->row_count[row] = learned_ranking(r, a->kv_len / kLearnedBlock, to);
    }
  }
  for (int64_t h = 0; h < a->heads && !first; ++h) {
    for (int64_t i = 0; i < a->q_count; ++i) {
      const float lse = in->attended_lse.data[i * in->attended_lse.row_stride + h];
      const uint32_t most = b->row_count[h / (a->heads / a->kv_heads) * a->q_count + i];
      const uint32_t want = isfinite(lse) ? 1 + (uint32_t)(h % 2) : 0;
      b->prefix[h * a->q_count + i] = want < most ? want : most;
    }
  }
  if (first) {
    layer[0] += a->q_count;
    sequence[0] += 1;
  }
  return 0;
}
static sluice_code learned_observe(const void* r, const void* p, const sluice_attention_feedback* f,
                                   sluice_attention_state* state, sluice_error* e) {
  double mass = 0;
  (void)r;
  (void)p;
  if (f->key_mass == NULL || f->lse == NULL) return fail(e, kInvalid, "observes mass and lse");
  for (int64_t i = 0; i < f->heads * f->kv_len; ++i) mass += f->key_mass[i];
  ((int64_t*)state->layer)[1] += llround(mass);
  return 0;
}
static void learned_truncate(const void* r, const void* p, sluice_attention_state* state,
                             int64_t keys) {
  (void)r;
  (void)p;
  ((int64_t*)state->layer)[0] = keys;
}

static const sluice_attention_traits branches_traits = {sizeof(sluice_attention_traits),
                                                        "frozen_branches",
                                                        "Frozen at 2.0",
                                                        "2000.00001",
                                                        "",
                                                        "sink=2",
                                                        SLUICE_CHUNK_INVARIANT,
                                                        0,
                                                        1};
static const sluice_attention_traits order_traits = {
    sizeof(sluice_attention_traits), "frozen_order", "", "", "every=1", "", 0, 0, 1};
static const sluice_attention_traits learned_traits = {
    sizeof(sluice_attention_traits),
    "frozen_learned",
    "",
    "",
    "",
    "tokens=4",
    SLUICE_TOKEN_CAUSAL | SLUICE_NEEDS_WEIGHTS,
    SLUICE_FEEDBACK_KEY_MASS | SLUICE_FEEDBACK_LSE,
    2};
static const sluice_attention_router_v2 tables[] = {
    {sizeof tables[0], &branches_traits, "sink=2: first keys", branches_create, destroy, NULL,
     branches_plan, destroy, branches_run, NULL, NULL},
    {sizeof tables[0], &order_traits, "every=2: of the blocks", order_create, destroy, NULL,
     order_plan, destroy, order_run, NULL, NULL},
    {sizeof tables[0], &learned_traits, "tokens=4: first keys", learned_create, destroy,
     learned_weights, learned_plan, destroy, learned_run, learned_observe, learned_truncate}};
static const sluice_attention_router_v2* const all[] = {&tables[0], &tables[1], &tables[2]};
static const sluice_plugin_v1 plugin = {sizeof(sluice_plugin_v1),
                                        SLUICE_PLUGIN_MAGIC,
                                        2,
                                        0,
                                        0,
                                        "frozen_attention",
                                        "2.0.0",
                                        0,
                                        NULL,
                                        3,
                                        all,
                                        0,
                                        NULL,
                                        0,
                                        NULL};
EXPORTED const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t major, uint32_t minor) {
  (void)minor;
  return major == 2 ? &plugin : NULL;
}
