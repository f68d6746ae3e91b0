/* What a Sluice plug-in and its host agree on: plain C11, and nothing else crosses a .so.
 *
 * Rules. Records that may grow begin with struct_size, are append-only and never reordered; a
 * reader touches a field only when struct_size reaches it. Who allocates frees, through the same
 * table. Outputs and scratch come from the host. No function throws. A plug-in starts no threads:
 * the host lends an executor. Major numbers must match; a host takes any plug-in whose
 * min_host_minor it has reached, and a plug-in is told the host's minor number. One symbol is
 * exported, sluice_plugin_entry_v1; one ELF section, .sluice_manifest, says what is inside before
 * any of it runs. */
#ifndef SLUICE_API_ABI_SLUICE_ABI_H_
#define SLUICE_API_ABI_SLUICE_ABI_H_
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_ABI_MAJOR 2
#define SLUICE_ABI_MINOR 0
#define SLUICE_PLUGIN_MAGIC 0x5043554Cu /* "LUCP" */
#define SLUICE_PLUGIN_ENTRY "sluice_plugin_entry_v1"
#define SLUICE_MANIFEST_SECTION ".sluice_manifest"

typedef int32_t sluice_code; /* absl::StatusCode; 0: OK */
typedef struct sluice_error {
  char* text; /* the host's; a function that fails writes a terminated text */
  size_t capacity;
} sluice_error;
typedef struct sluice_kv {
  const char* key;
  size_t key_len;
  const char* value;
  size_t value_len;
} sluice_kv;

/* [rows, heads, dim] with strides in elements; dtype: 0 f32, 1 bf16, 2 f16, 3 i8. data NULL:
 * absent, and the other fields mean nothing. */
typedef struct sluice_view {
  const void* data;
  int32_t dtype;
  int32_t reserved;
  int64_t rows, heads, dim, row_stride, head_stride;
} sluice_view;
typedef struct sluice_matrix {
  const float* data;
  int64_t rows, cols, row_stride;
} sluice_matrix;

typedef void (*sluice_body)(void* arg, int64_t begin, int64_t end, int32_t worker);
typedef struct sluice_executor {
  void* self;
  int32_t num_workers;
  int32_t reserved;
  void (*parallel_for)(void* self, int64_t n, int64_t grain, sluice_body body, void* arg);
} sluice_executor;
typedef struct sluice_run_context {
  size_t struct_size;
  void* workspace; /* aligned to 64 */
  size_t workspace_bytes;
  const sluice_executor* executor;
} sluice_run_context;

/* Trained weights, lent during create. Returned text and numbers are copied out by the caller's
 * buffers. */
typedef struct sluice_weights {
  size_t struct_size;
  const void* self;
  sluice_code (*get_int)(const void* self, const char* key, int64_t* out, sluice_error*);
  sluice_code (*read_f32)(const void* self, const char* name, const uint64_t* shape, size_t rank,
                          float* out, size_t count, sluice_error*);
} sluice_weights;

/* ---- Assignment routers: items -> units. What the fields and functions mean is in api/router.h
 * and api/assignment.h; enumerations have its numbers. ---- */
typedef struct sluice_route_traits {
  size_t struct_size;
  const char *name, *title, *arxiv;       /* name: "domain/method" */
  const char *full_budget, *small_budget; /* config texts; "": none */
  uint32_t
      domain; /* 1 layer, 2 token, 3 head, 4 attention, 5 expert, 6 adapter, 7 agent, 8 weight */
  uint32_t combine, decides;
  uint32_t flags; /* SLUICE_ROUTE_* */
  uint32_t reads, may_read;
} sluice_route_traits;
enum { SLUICE_ROUTE_LEARNED = 1, SLUICE_ROUTE_CAUSAL = 2, SLUICE_ROUTE_ITEMS_ALONE = 4 };
typedef struct sluice_route_shape {
  size_t struct_size;
  int64_t items, units, width, hidden, rows, heads, head_dim, conditions;
  int32_t workers, reserved;
} sluice_route_shape;
typedef struct sluice_route_info {
  size_t struct_size;
  size_t workspace_bytes, unit_workspace_bytes;
  int64_t units, max_entries, max_dropped, head_rows, tail_rows;
  size_t state_bytes; /* may be missing at the end; see run_with_state */
} sluice_route_info;
typedef struct sluice_route_inputs {
  size_t struct_size;
  int64_t items;
  sluice_matrix scores, features, hidden;
  sluice_view queries;   /* f32, before RoPE */
  const float* feedback; /* [num_feedback]; arrays that are absent are NULL and 0 */
  size_t num_feedback;
  const int64_t* positions;
  size_t num_positions;
  const int64_t* item_rows;
  size_t num_item_rows;
  const int64_t* lengths;
  size_t num_lengths;
  const float* conditions;
  size_t num_conditions;
  const float* unit_bias;
  size_t num_unit_bias;
  int64_t layer, step;
  uint64_t task;
} sluice_route_inputs;
typedef struct sluice_dropped_pair {
  int32_t item, unit;
} sluice_dropped_pair;
typedef struct sluice_assignment {
  size_t struct_size;
  int64_t* row_ptr;
  int64_t row_ptr_size;
  int32_t* unit;
  float* weight;
  float* score;        /* NULL: not wanted */
  int64_t entry_slots; /* of unit, weight and score */
  sluice_dropped_pair* dropped;
  int64_t dropped_slots;
  /* set by the router */
  int64_t items, units, num_dropped, nan_scores;
} sluice_assignment;
typedef struct sluice_unit {
  size_t struct_size;
  uint32_t kind;        /* 0 the host's, 1 skip, 2 the router's own */
  uint32_t concurrency; /* 0 alone, 1 beside other units, 2 rows in any pieces */
  double cost;
  int64_t max_rows; /* of one run_unit; 0: any number */
} sluice_unit;
typedef struct sluice_unit_rows {
  size_t struct_size;
  int64_t unit;
  sluice_matrix in;     /* packed */
  const int32_t* items; /* [in.rows], or NULL */
  float* out;           /* [in.rows, out_cols], packed */
  int64_t out_cols;
} sluice_unit_rows;
/* What a learned method reads: called once a number and once a tensor. */
typedef struct sluice_weight_sink {
  void* self;
  void (*add_int)(void* self, const char* key, int64_t value);
  void (*add_tensor)(void* self, const char* name, const int64_t* shape, size_t rank);
} sluice_weight_sink;
/* A router's memory of a sequence, the host's. Zero bytes mean empty. keys: of which the layer's
 * bytes speak; of routers of items: runs that succeeded. */
typedef struct sluice_attention_state {
  void* layer;
  void* sequence;
  int64_t keys;
} sluice_attention_state;
typedef struct sluice_router_v1 {
  size_t struct_size;
  const sluice_route_traits* traits;
  const char* config_help;
  sluice_code (*create)(const sluice_kv*, size_t num_kv, const sluice_weights*, void** router,
                        sluice_error*);
  void (*destroy)(void* router);
  /* NULL where the router is not learned. */
  sluice_code (*weights)(const sluice_kv*, size_t num_kv, const sluice_route_shape*,
                         const sluice_weight_sink*, sluice_error*);
  sluice_code (*make_plan)(const void* router, const sluice_route_shape*, void** plan,
                           sluice_route_info*, sluice_error*);
  void (*destroy_plan)(void* plan);
  sluice_code (*run)(const void* router, const void* plan, const sluice_route_inputs*,
                     const sluice_run_context*, sluice_assignment*, sluice_error*);
  /* NULL: every unit is the host's, of cost 1, alone. */
  sluice_code (*describe_unit)(const void* router, const void* plan, int64_t unit, sluice_unit*,
                               sluice_error*);
  /* NULL: the router has no unit of its own. */
  sluice_code (*run_unit)(const void* router, const void* plan, const sluice_unit_rows*,
                          const sluice_run_context*, sluice_error*);
  /* In place of run for plans with state_bytes; NULL: there are none. May be missing at the end. */
  sluice_code (*run_with_state)(const void* router, const void* plan, const sluice_route_inputs*,
                                sluice_attention_state*, const sluice_run_context*,
                                sluice_assignment*, sluice_error*);
} sluice_router_v1;

/* ---- Attention routers: queries and keys -> plan. The host has checked inputs against the shape.
 * ----
 */
typedef struct sluice_attention_shape {
  size_t struct_size;
  int64_t max_queries, max_kv, width;
  int32_t heads, kv_heads, head_dim, value_dim, index_heads, index_dim, workers, layers;
} sluice_attention_shape;
/* Storage that one branch of a plan needs, from make_plan. */
typedef struct sluice_branch_layout {
  int64_t rows, entry_slots, token_slots, prefix_slots;
  int64_t order_slots; /* query order and tile borders, when tiles are not runs of queries */
  int32_t terms;       /* of static patterns */
  uint8_t bias, mask, reserved[2];
} sluice_branch_layout;
#define SLUICE_MAX_BRANCHES 8
#define SLUICE_MAX_TABLES 8
typedef struct sluice_attention_info {
  size_t struct_size;
  size_t workspace_bytes, state_bytes, sequence_bytes;
  int64_t weight_slots, perm_slots, bias_slots, max_tile;
  int32_t num_branches, reserved;
  sluice_branch_layout branches[SLUICE_MAX_BRANCHES];
} sluice_attention_info;
typedef struct sluice_attention_inputs {
  size_t struct_size;
  sluice_view q, k, v; /* q: f32 */
  int64_t q_begin;
  const int32_t* q_positions; /* [num_positions]; NULL: contiguous */
  size_t num_positions;
  int64_t prompt_end;
  int32_t layer; /* -1: unknown */
  float scale, rope_base;
  int32_t stage;
  sluice_view q_pre, k_pre, index_q, index_k;
  sluice_matrix index_weight;
  sluice_matrix hidden;       /* [queries, width] */
  sluice_matrix attended_lse; /* [queries, heads], from the second stage on */
} sluice_attention_inputs;
/* What the executor measured of a plan, for routers that ask for it. */
typedef struct sluice_attention_feedback {
  size_t struct_size;
  int64_t q_begin, q_count, kv_len;
  int32_t layer, heads, kv_heads, reserved;
  const float* key_mass;  /* [heads, kv_len]: sums of probability over the queries */
  const float* head_norm; /* [heads]: sums of |o| over queries and width */
  const float* row_max;   /* [queries, heads]: largest probability */
  const float* lse;       /* [queries, heads] */
} sluice_attention_feedback;
typedef struct sluice_plan_entry {
  uint32_t start, len;
  uint8_t state, mask, level, forced;
} sluice_plan_entry;
/* A set of keys in closed form; what the fields mean stands beside PatternKind in
 * api/attention_plan.h. */
typedef struct sluice_pattern_term {
  uint8_t kind, dims, reserved[6];
  int64_t a, b, c;
  double slope;
  int32_t extent[3], window[3], stride[3], dilation[3];
} sluice_pattern_term;
/* One of several side by side, so it never grows. Storage is the host's, sized by
 * sluice_branch_layout; the router fills it and the fields below. Row r owns the slots from
 * row_begin[r] on. Numbers of enumerations are those of api/attention_plan.h. */
typedef struct sluice_plan_branch {
  size_t struct_size;
  sluice_branch_layout layout;
  int64_t* row_begin;
  uint32_t* row_count;
  sluice_plan_entry* entries;
  uint32_t* tokens;
  uint32_t* prefix;
  float* entry_bias;
  uint64_t* row_mask;
  int64_t* tile_begin; /* [lists, tiles + 1] */
  int32_t* q_order;    /* [lists, order_slots / lists] */
  sluice_pattern_term* terms;
  int32_t* term_begin; /* [lists + 1] */
  /* set by the router */
  int64_t block, tile, num_tiles, window;
  int32_t init_from;
  float stop_tau;
  uint8_t scope, encoding, token_mask, order, stop, has_bias, has_mask, has_order;
} sluice_plan_branch;
/* Summaries that entries refer to; they live in the router's state or workspace. */
typedef struct sluice_summary_table {
  sluice_view k, v;
  const float* log_count; /* [rows], or [kv_heads, rows] when per_head */
  const uint32_t *begin, *count;
  uint8_t per_head, reserved[7];
} sluice_summary_table;
typedef struct sluice_attention_plan {
  size_t struct_size;
  sluice_plan_branch* branches;
  float* branch_weight; /* [branches, queries, heads] */
  uint32_t* key_perm;   /* [lists of perm_scope, kv_len]: logical -> original key */
  float* key_bias;      /* [kv_heads, kv_len] */
  int64_t weight_slots, perm_slots, bias_slots;
  int32_t max_branches, max_tables;
  /* set by the router */
  int64_t q_begin, q_count, kv_len;
  int32_t heads, kv_heads, num_branches, num_tables;
  uint8_t merge, perm_scope, has_perm, has_key_bias, reserved[4];
  sluice_summary_table tables[SLUICE_MAX_TABLES];
} sluice_attention_plan;
enum {
  SLUICE_EXACT_AT_FULL_BUDGET = 1,
  SLUICE_TOKEN_CAUSAL = 2,
  SLUICE_CHUNK_INVARIANT = 4,
  SLUICE_SCATTERED_QUERIES = 8, /* takes q_positions */
  SLUICE_READS_PRE_ROPE = 16,
  SLUICE_READS_INDEX = 32,
  SLUICE_READS_VALUES = 64,
  SLUICE_READS_HIDDEN = 128,
  SLUICE_NEEDS_WEIGHTS = 256,
  SLUICE_BIDIRECTIONAL = 512
};
enum {
  SLUICE_FEEDBACK_KEY_MASS = 1,
  SLUICE_FEEDBACK_HEAD_NORM = 2,
  SLUICE_FEEDBACK_ROW_MAX = 4,
  SLUICE_FEEDBACK_LSE = 8
};
typedef struct sluice_attention_traits {
  size_t struct_size;
  const char *name, *title, *arxiv;
  const char *full_budget, *small_budget; /* config texts */
  uint64_t flags;
  uint32_t feedback;
  int32_t stages;
} sluice_attention_traits;
typedef struct sluice_attention_router_v2 {
  size_t struct_size;
  const sluice_attention_traits* traits;
  const char* config_help;
  sluice_code (*create)(const sluice_kv*, size_t num_kv, const sluice_weights*, void** router,
                        sluice_error*);
  void (*destroy)(void* router);
  /* NULL where the router is not learned. */
  sluice_code (*weights)(const sluice_kv*, size_t num_kv, const sluice_attention_shape*,
                         const sluice_weight_sink*, sluice_error*);
  sluice_code (*make_plan)(const void* router, const sluice_attention_shape*, void** plan,
                           sluice_attention_info*, sluice_error*);
  void (*destroy_plan)(void* plan);
  sluice_code (*run)(const void* router, const void* plan, const sluice_attention_inputs*,
                     sluice_attention_state*, const sluice_run_context*, sluice_attention_plan*,
                     sluice_error*);
  sluice_code (*observe)(const void* router, const void* plan, const sluice_attention_feedback*,
                         sluice_attention_state*, sluice_error*);
  void (*truncate)(const void* router, const void* plan, sluice_attention_state*, int64_t keys);
} sluice_attention_router_v2;

/* ---- Agent routers: a query -> one agent a stage. What the functions must do is in
 * api/agent_router.h; sums and state belong to the host, which keeps them. ---- */
typedef struct sluice_agent {
  size_t struct_size;
  const char *id, *model, *role;
  const double* ability; /* [tasks], or NULL */
  double cost_usd, latency_s, weight;
} sluice_agent;
typedef struct sluice_agent_graph { /* lent during make_plan */
  size_t struct_size;
  const char* const* tasks;
  const sluice_agent* const* agents; /* stage after stage */
  const int32_t* stage_sizes;
  int32_t num_tasks, num_stages;
} sluice_agent_graph;
typedef struct sluice_agent_info {
  size_t struct_size;
  int64_t sums, state;
} sluice_agent_info;
typedef struct sluice_agent_live {
  double load, latency_s;
} sluice_agent_live;
typedef struct sluice_agent_request {
  size_t struct_size;
  uint64_t id;
  const double* intent; /* [tasks] */
  const float* features;
  size_t num_features;
  const uint8_t* blocked;        /* [agents], or NULL: nobody is; numbers of Block */
  const sluice_agent_live* live; /* [agents], or NULL */
  double explore;                /* AgentRequest's */
  const int32_t* follow;         /* [stages] agents whose path's probability is asked, or NULL */
} sluice_agent_request;
typedef struct sluice_agent_candidate {
  int32_t stage, agent;
  uint8_t block, chosen, reserved[2];
  float tau, eta, p;
} sluice_agent_candidate;
typedef struct sluice_agent_decision {
  size_t struct_size;
  int32_t* path;                 /* [stages] */
  sluice_agent_candidate* trace; /* [trace_capacity], or NULL: not wanted */
  int64_t trace_capacity;
  /* set by the router */
  int64_t trace_size;
  double propensity;
} sluice_agent_decision;
typedef struct sluice_agent_outcome {
  size_t struct_size;
  uint64_t id;
  const double* intent;
  const float* features;
  size_t num_features;
  const int32_t* path; /* [stages] */
  double propensity, quality, cost_usd, latency_s;
  int32_t accepted, reserved;
} sluice_agent_outcome;
typedef struct sluice_sum_delta {
  uint32_t cell, reserved;
  int64_t add;
} sluice_sum_delta;
typedef void (*sluice_add_sums)(void* to, const sluice_sum_delta*, size_t count);
typedef struct sluice_agent_router_v1 {
  size_t struct_size;
  const char* name;
  uint64_t flags; /* SLUICE_NEEDS_WEIGHTS */
  const char* config_help;
  sluice_code (*create)(const sluice_kv*, size_t num_kv, const sluice_weights*, void** router,
                        sluice_error*);
  void (*destroy)(void* router);
  sluice_code (*make_plan)(const void* router, const sluice_agent_graph*, void** plan,
                           sluice_agent_info*, sluice_error*);
  void (*destroy_plan)(void* plan);
  sluice_code (*initial_state)(const void* router, const void* plan, double* state, sluice_error*);
  sluice_code (*run)(const void* router, const void* plan, const double* state,
                     const sluice_agent_request*, sluice_agent_decision*, sluice_error*);
  sluice_code (*observe)(const void* router, const void* plan, const sluice_agent_outcome*,
                         sluice_add_sums, void* to, sluice_error*);
  sluice_code (*fold)(const void* router, const void* plan, const int64_t* sums, double* state,
                      sluice_error*);
} sluice_agent_router_v1;

/* ---- Pruners of weights. What the fields and functions mean is in api/weight_pruner.h. ---- */
typedef struct sluice_pruner_traits {
  size_t struct_size;
  const char *name, *title, *arxiv; /* name: "weight/method" */
  uint32_t reads, kinds, scopes, repairs;
} sluice_pruner_traits;
typedef struct sluice_prune_inputs {
  size_t struct_size;
  sluice_matrix weights; /* [rows, cols] */
  int64_t tokens;
  const float *mean, *sum_squares; /* [cols], or NULL */
  sluice_matrix gram;              /* data NULL: absent */
  uint32_t kind, scope;
  double ratio;
  int64_t n, m, count;
  double cost;
  const float* column_cost; /* [cols], or NULL: 1 each */
  int64_t block_rows, block_cols;
  const uint64_t* start; /* a mask, or NULL */
} sluice_prune_inputs;
typedef struct sluice_pruner_v1 {
  size_t struct_size;
  const sluice_pruner_traits* traits;
  const char* config_help;
  sluice_code (*create)(const sluice_kv*, size_t num_kv, const sluice_weights*, void** pruner,
                        sluice_error*);
  void (*destroy)(void* pruner);
  /* mask [rows, (cols + 63) / 64] words, 1: kept; all 0 when called. */
  sluice_code (*prune)(const void* pruner, const sluice_prune_inputs*, const sluice_run_context*,
                       uint64_t* mask, sluice_error*);
} sluice_pruner_v1;

typedef struct sluice_plugin_v1 {
  size_t struct_size;
  uint32_t magic, abi_major, abi_minor, min_host_minor;
  const char *name, *version;
  size_t num_routers;
  const sluice_router_v1* const* routers;
  size_t num_attention;
  const sluice_attention_router_v2* const* attention;
  /* may be missing at the end */
  size_t num_agents;
  const sluice_agent_router_v1* const* agents;
  size_t num_pruners;
  const sluice_pruner_v1* const* pruners;
} sluice_plugin_v1;
/* NULL: the plug-in does not want this host. */
typedef const sluice_plugin_v1* (*sluice_plugin_entry_v1_fn)(uint32_t host_major,
                                                             uint32_t host_minor);

#ifdef __cplusplus
}
#endif

/* Frozen at 2.0 (tests/abi/frozen/2_0). */
#ifdef __cplusplus
#define SLUICE_ABI_ASSERT(...) static_assert(__VA_ARGS__, #__VA_ARGS__)
#else
#define SLUICE_ABI_ASSERT(...) _Static_assert(__VA_ARGS__, #__VA_ARGS__)
#endif
SLUICE_ABI_ASSERT(sizeof(void*) == 8 && sizeof(size_t) == 8);
SLUICE_ABI_ASSERT(sizeof(sluice_plan_entry) == 12);
SLUICE_ABI_ASSERT(sizeof(sluice_view) == 56);
SLUICE_ABI_ASSERT(offsetof(sluice_plugin_v1, magic) == 8 &&
                  offsetof(sluice_plugin_v1, attention) == 64);
SLUICE_ABI_ASSERT(offsetof(sluice_router_v1, create) == 24 &&
                  offsetof(sluice_router_v1, run) == 64 &&
                  offsetof(sluice_router_v1, run_unit) == 80);
SLUICE_ABI_ASSERT(offsetof(sluice_attention_router_v2, create) == 24 &&
                  offsetof(sluice_attention_router_v2, run) == 64);
SLUICE_ABI_ASSERT(offsetof(sluice_attention_inputs, q_begin) == 176 &&
                  offsetof(sluice_attention_inputs, index_weight) == 448 &&
                  offsetof(sluice_attention_inputs, attended_lse) == 512);
SLUICE_ABI_ASSERT(sizeof(sluice_branch_layout) == 48 && sizeof(sluice_pattern_term) == 88);
SLUICE_ABI_ASSERT(offsetof(sluice_plan_branch, block) == 144 &&
                  offsetof(sluice_plan_branch, scope) == 184);
SLUICE_ABI_ASSERT(offsetof(sluice_attention_plan, q_begin) == 72 &&
                  offsetof(sluice_attention_plan, tables) == 120);
SLUICE_ABI_ASSERT(sizeof(sluice_dropped_pair) == 8 &&
                  offsetof(sluice_assignment, num_dropped) == 88);
SLUICE_ABI_ASSERT(offsetof(sluice_route_inputs, feedback) == 168 &&
                  offsetof(sluice_route_inputs, task) == 280);
/* Of agent routers. */
SLUICE_ABI_ASSERT(sizeof(sluice_agent_candidate) == 24 && sizeof(sluice_sum_delta) == 16);
SLUICE_ABI_ASSERT(offsetof(sluice_plugin_v1, agents) == 80 &&
                  offsetof(sluice_agent_router_v1, fold) == 88);
SLUICE_ABI_ASSERT(offsetof(sluice_agent, weight) == 56 &&
                  offsetof(sluice_agent_graph, num_stages) == 36);
SLUICE_ABI_ASSERT(offsetof(sluice_agent_request, live) == 48 &&
                  offsetof(sluice_agent_decision, propensity) == 40);
SLUICE_ABI_ASSERT(offsetof(sluice_agent_outcome, accepted) == 80);
#endif /* SLUICE_API_ABI_SLUICE_ABI_H_ */
