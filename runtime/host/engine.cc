#include "sluice/runtime/host/engine.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "sluice/pruners/token/ftp/ftp.h"
#include "sluice/routers/attention/sink_window/sink_window.h"
#include "sluice/routers/layer/flux_attention/flux_attention.h"
#include "sluice/routers/token/informed_routing/informed_routing.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"
#include "sluice/runtime/kernels/rope/rope.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/session/attention_session.h"

extern "C" void openblas_set_num_threads(int);

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
using Clock = std::chrono::steady_clock;
double Seconds(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}
}  // namespace

struct Engine::Impl {
  struct Cache {
    std::vector<std::byte> k, v;
    std::vector<float> k_pre;
    std::vector<float> hidden;  // 0, or -inf for a key that later tokens must not see
    int64_t rows = 0;           // keys held
    int64_t missing = 0;        // keys evicted between the sinks and the window
  };
  std::unique_ptr<Executor> executor;
  // Attention of dense and of routed layers, of sparse layers' prompts and of their steps.
  std::unique_ptr<AttentionSession> dense, routed, sparse, sparse_decode;
  std::vector<FluxAttention> flux;  // one a layer
  int64_t sink = 0, window = 0;     // what a sparse layer's decode sees
  std::vector<Cache> cache;
  bool keep_pre = false;
  int64_t capacity = 0;
  std::vector<float> x, h, qkv, q_pre, o, ff, act, logits, cos, sin, route;
  std::vector<double> pool;
  std::vector<InformedRouting> informed;  // attention and FFN of every layer
  InformedRouting::Plan informed_plan;
  std::unique_ptr<Dispatch> dispatch;
  OwnedWorkspace route_ws, dispatch_ws;
  AssignmentBuffer assigned;
  std::vector<int32_t> positions;
  std::vector<float> mixed, key_bias;
  // Pruning: a pruner a block, the score of every token, and the tokens that the running block
  // computes.
  std::vector<std::unique_ptr<const Router>> pruners;
  std::vector<std::unique_ptr<const Router::Plan>> prune_plans;
  ftp::ReceivedAttention received;
  std::vector<float> score, block_score, tail_q, compact;
  std::vector<int32_t> order, kept;
};

// y [n, out] = x [n, in] W^T (+ y when accumulate).
void Engine::MatMul(const float* x, const float* w, int64_t n, int64_t in, int64_t out, float* y,
                    bool accumulate) {
  const float beta = accumulate ? 1.0f : 0.0f;
  linear_.macs += n * in * out;
  linear_.weight_bytes += in * out * static_cast<int64_t>(sizeof(float));
  if (n == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, static_cast<int>(out), static_cast<int>(in), 1, w,
                static_cast<int>(in), x, 1, beta, y, 1);
  } else {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(n), static_cast<int>(out),
                static_cast<int>(in), 1, x, static_cast<int>(in), w, static_cast<int>(in), beta, y,
                static_cast<int>(out));
  }
}

Engine::Engine(const Model& model, const EngineOptions& options)
    : model_(model), options_(options) {}
Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Model& model,
                                                       const EngineOptions& options) {
  const ModelShape& m = model.shape;
  if (options.chunk <= 0 || options.max_tokens < 0)
    return absl::InvalidArgumentError(absl::StrCat("chunk ", options.chunk, " and max_tokens ",
                                                   options.max_tokens, " must be positive"));
  if (options.dense_layers < 0 || options.dense_layers > m.layers)
    return absl::OutOfRangeError(
        absl::StrCat(options.dense_layers, " dense layers; allowed: 0 to the model's ", m.layers));
  std::unique_ptr<Engine> e(new Engine(model, options));
  e->impl_ = std::make_unique<Impl>();
  Impl& s = *e->impl_;
  s.executor = MakeTbbExecutor(options.threads);
  openblas_set_num_threads(s.executor->num_workers());
  s.capacity = options.max_tokens > 0 ? options.max_tokens : m.context;
  const LayerRouting& lr = options.layers;
  SLUICE_RETURN_IF_ERROR(e->MakeSessions());
  if (lr.on()) SLUICE_RETURN_IF_ERROR(e->PrepareLayerRouting());
  s.keep_pre = s.routed->router().traits().reads_pre_rope ||
               (lr.on() && s.sparse->router().traits().reads_pre_rope);
  if (lr.evict && s.keep_pre)
    return absl::InvalidArgumentError(
        "evicting keys needs routers that do not summarise keys before RoPE");
  const size_t kv = static_cast<size_t>(s.capacity * m.kv_heads * m.head_dim);
  s.cache.resize(m.layers);
  for (Impl::Cache& c : s.cache) {
    if (s.keep_pre) c.k_pre.resize(kv);
  }
  e->token_counters_.resize(static_cast<size_t>(m.layers) * 2);
  if (options.tokens.gate != TokenRouting::Gate::kOff)
    SLUICE_RETURN_IF_ERROR(e->PrepareTokenRouting());
  e->block_counters_.resize(m.layers);
  if (options.pruning.on()) SLUICE_RETURN_IF_ERROR(e->PreparePruning());
  e->modes_.assign(m.layers, LayerMode::kUndecided);
  e->layer_logits_.assign(static_cast<size_t>(m.layers) * 2, 0);
  e->layer_counters_.resize(m.layers);
  const size_t n = static_cast<size_t>(std::min(options.chunk, s.capacity)),
               qw = static_cast<size_t>(m.heads * m.head_dim),
               kw = static_cast<size_t>(m.kv_heads * m.head_dim);
  s.h.resize(n * static_cast<size_t>(m.width));
  s.qkv.resize(n * (qw + 2 * kw));
  if (s.keep_pre) s.q_pre.resize(n * qw);
  s.o.resize(n * qw);
  s.ff.resize(n * 2 * static_cast<size_t>(m.ffn));
  s.act.resize(n * static_cast<size_t>(m.ffn));
  s.logits.resize(n * static_cast<size_t>(m.vocab));
  s.cos.resize(s.capacity * m.head_dim / 2);
  s.sin.resize(s.cos.size());
  for (int64_t p = 0; p < s.capacity; ++p) {
    kernels::RopeAngles(static_cast<double>(p), m.rope_base, m.head_dim, &s.cos[p * m.head_dim / 2],
                        &s.sin[p * m.head_dim / 2]);
  }
  return e;
}

absl::Status Engine::MakeSessions() {
  const ModelShape& m = model_.shape;
  Impl& s = *impl_;
  const auto make = [&](const std::string& policy, std::unique_ptr<AttentionSession>& session) {
    SessionOptions o;
    o.layers = static_cast<int>(m.layers);
    o.heads = static_cast<int>(m.heads);
    o.kv_heads = static_cast<int>(m.kv_heads);
    o.head_dim = static_cast<int>(m.head_dim);
    o.width = m.width;
    o.max_queries = std::min(options_.chunk, s.capacity);
    o.max_kv = s.capacity;
    o.policy = policy;
    o.methods = &InstalledMethods().registry;
    o.executor = s.executor.get();
    auto made = AttentionSession::Create(o);
    if (!made.ok()) return WithRefused(made.status());
    session = *std::move(made);
    session->OnPlan([this](int layer, const AttentionPlan& plan, const AttentionInputs& in,
                           double seconds) { See(layer, plan, in, seconds); });
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(make("dense", s.dense));
  SLUICE_RETURN_IF_ERROR(make(options_.router, s.routed));
  if (!options_.layers.on()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(make(options_.layers.sparse, s.sparse));
  return make(options_.layers.sparse_decode, s.sparse_decode);
}

// What observers and quality measuring take is not in the timing.
void Engine::See(int64_t layer, const AttentionPlan& plan, const AttentionInputs& in,
                 double seconds) {
  const auto mark = Clock::now();
  if (options_.on_plan) options_.on_plan(layer, plan, seconds);
  if (options_.quality_stride > 0 && in.q.rows > 1)
    quality_.Add(MeasurePlan(plan, in.q, in.k, in.v, in.scale, {}, {options_.quality_stride, 64}));
  timing_.total_s -= Seconds(mark);
}

void Engine::Reset() {
  length_ = 0;
  timing_ = {};
  counters_ = {};
  quality_ = {};
  linear_ = {};
  std::fill(token_counters_.begin(), token_counters_.end(), TokenCounters{});
  std::fill(block_counters_.begin(), block_counters_.end(), TokenCounters{});
  std::fill(modes_.begin(), modes_.end(), LayerMode::kUndecided);
  std::fill(layer_counters_.begin(), layer_counters_.end(), AttentionCounters{});
  for (const auto* session :
       {&impl_->dense, &impl_->routed, &impl_->sparse, &impl_->sparse_decode}) {
    if (*session != nullptr) (*session)->Clear();
  }
  for (Impl::Cache& c : impl_->cache) {
    c.rows = c.missing = 0;
    c.hidden.clear();
  }
}

absl::Status Engine::Feed(const std::vector<int32_t>& tokens, int64_t from,
                          const std::function<void(int64_t, const float*)>& visit,
                          const std::function<void(int64_t)>& progress) {
  const int64_t n = static_cast<int64_t>(tokens.size());
  if (length_ + n > impl_->capacity)
    return absl::ResourceExhaustedError(
        absl::StrCat(length_ + n, " tokens, but the cache holds ", impl_->capacity));
  for (int32_t t : tokens) {
    if (t < 0 || t >= model_.shape.vocab)
      return absl::InvalidArgumentError(
          absl::StrCat("token ", t, " is outside [0, ", model_.shape.vocab, ")"));
  }
  if (n == 0) return absl::OkStatus();
  const auto start = Clock::now();
  const int64_t width = model_.shape.width, layers = model_.shape.layers;
  Impl& s = *impl_;
  if (s.x.size() < static_cast<size_t>(n * width)) s.x.resize(n * width);
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(&s.x[i * width], &model_.embed[tokens[i] * width],
                static_cast<size_t>(width) * sizeof(float));
  // Layer by layer, each over all chunks: a layer router sees the end of the prompt before the
  // layer's attention runs.
  const bool decide = options_.layers.on() && length_ == 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (decide) SLUICE_RETURN_IF_ERROR(Decide(layer, n));
    Impl::Cache& cache = s.cache[layer];
    if (length_ == 0) {
      cache.k.resize(static_cast<size_t>(s.capacity) * CacheRowBytes());
      cache.v.resize(cache.k.size());
    }
    if (options_.pruning.on()) {
      SLUICE_RETURN_IF_ERROR(RunPruned(layer, n));
      if (progress) progress((layer + 1) * n / layers);
      continue;
    }
    for (int64_t at = 0; at < n; at += options_.chunk) {
      const int64_t count = std::min(options_.chunk, n - at);
      SLUICE_RETURN_IF_ERROR(RunLayer(layer, &s.x[at * width], length_ + at, count, length_ + n));
      if (options_.layers.evict && length_ > 0) Evict(layer);
      if (progress) progress((layer * n + at + count) / layers);
    }
    if (options_.layers.evict && length_ == 0) Evict(layer);
  }
  length_ += n;
  const LinearCounters counted = linear_;
  for (int64_t at = std::max<int64_t>(0, from - (length_ - n)); visit && at < n;
       at += options_.chunk) {
    const int64_t count = std::min(options_.chunk, n - at);
    Norm(model_.norm, &s.x[at * width], count);
    MatMul(s.h.data(), model_.head().data(), count, width, model_.shape.vocab, s.logits.data());
    for (int64_t i = 0; i < count; ++i)
      visit(length_ - n + at + i, &s.logits[i * model_.shape.vocab]);
  }
  linear_ = counted;
  timing_.total_s += Seconds(start);
  return absl::OkStatus();
}

absl::Status Engine::PrepareLayerRouting() {
  const LayerRouting& lr = options_.layers;
  Impl& s = *impl_;
  const int64_t layers = model_.shape.layers;
  if (!lr.fixed.empty() && static_cast<int64_t>(lr.fixed.size()) != layers)
    return absl::InvalidArgumentError(
        absl::StrCat(lr.fixed.size(), " fixed layer modes for ", layers, " layers"));
  for (int64_t layer = 0; lr.fixed.empty() && layer < layers; ++layer) {
    SLUICE_ASSIGN_OR_RETURN(FluxAttention r, FluxAttention::Create({layer}, *lr.weights));
    if (r.dim() != model_.shape.head_dim)
      return absl::InvalidArgumentError(absl::StrCat("layer routers for head width ", r.dim(),
                                                     ", the model has ", model_.shape.head_dim));
    s.flux.push_back(std::move(r));
  }
  SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(lr.sparse_decode));
  attention::SinkWindow::Config decode;
  if (spec.name != attention::SinkWindow::kTraits.name)
    return absl::InvalidArgumentError(
        absl::StrCat("sparse layers decode with sink_window, not '", spec.name, "'"));
  SLUICE_RETURN_IF_ERROR(ReadConfig(spec.options, decode));
  if (decode.last_dense > 0)
    return absl::InvalidArgumentError("last_dense is for prompts, not for decode");
  s.sink = decode.sink;
  s.window = decode.window;
  return absl::OkStatus();
}

// The layer's mode, from the queries of the prompt's first and last tokens.
absl::Status Engine::Decide(int64_t layer, int64_t prompt) {
  Impl& s = *impl_;
  const auto mark = Clock::now();
  LayerMode& mode = modes_[layer];
  if (!options_.layers.fixed.empty()) {
    mode = options_.layers.fixed[layer];
    return absl::OkStatus();
  }
  const ModelShape& m = model_.shape;
  const FluxAttention& router = s.flux[layer];
  s.pool.resize(2 * m.head_dim);
  s.route.resize(static_cast<size_t>(m.head_dim) + router.scratch_floats());
  PrefixSuffixPool pool(prompt, router.pool(), m.head_dim, s.pool.data());
  const Layer& w = model_.layers[layer];
  const int64_t qw = m.heads * m.head_dim;
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += options_.chunk) {
      const int64_t n = std::min(options_.chunk, end - at);
      Norm(w.attn_norm, &s.x[at * m.width], n);
      MatMul(s.h.data(), w.qkv.data(), n, m.width, qw, s.o.data());  // the query rows stand first
      pool.Add({s.o.data(), n, m.heads, m.head_dim, qw, m.head_dim}, at);
    }
  };
  const int64_t head = std::min(router.pool(), prompt),
                tail = std::max(head, prompt - router.pool());
  add(0, head);
  add(tail, prompt);
  pool.Finish(m.heads, s.route.data());
  float* logits = &layer_logits_[2 * layer];
  router.Logits(s.route.data(), s.route.data() + m.head_dim, logits);
  mode =
      FluxAttention::Decide(logits) == FluxAttention::kFull ? LayerMode::kFull : LayerMode::kSparse;
  ++router_calls_;
  timing_.route_s += Seconds(mark);
  return absl::OkStatus();
}

size_t Engine::CacheRowBytes() const {
  return static_cast<size_t>(model_.shape.kv_heads * model_.shape.head_dim) *
         DTypeBytes(options_.cache);
}
int64_t Engine::cache_rows(int64_t layer) const { return impl_->cache[layer].rows; }

// Drops what a sparse layer's decode will never see, and after a prompt the memory too. It waits
// until a whole window can go, so that moving the rest costs about one row a token. Whole panels go
// and one key stays between sinks and window: then the executor cuts the same panels as without
// eviction, and the output keeps its bits.
void Engine::Evict(int64_t layer) {
  Impl::Cache& c = impl_->cache[layer];
  const Impl& s = *impl_;
  if (modes_[layer] != LayerMode::kSparse) return;
  constexpr int64_t kPanel = static_cast<int64_t>(kernels::kPanelKeys);
  const int64_t gone = (c.rows - s.sink - s.window - 1) / kPanel * kPanel;
  if (gone <= 0 || (gone < s.window && c.missing > 0)) return;
  const size_t row = CacheRowBytes(), sink = static_cast<size_t>(s.sink) * row,
               kept = static_cast<size_t>(c.rows - s.sink - gone) * row,
               room = sink + static_cast<size_t>(2 * s.window + 2 * kPanel + options_.chunk) * row;
  for (std::vector<std::byte>* x : {&c.k, &c.v}) {
    const std::byte* from = x->data() + sink + static_cast<size_t>(gone) * row;
    if (x->size() <= room) {
      std::memmove(x->data() + sink, from, kept);
    } else {
      std::vector<std::byte> small(room);
      std::memcpy(small.data(), x->data(), sink);
      std::memcpy(small.data() + sink, from, kept);
      x->swap(small);
    }
  }
  c.missing += gone;
  c.rows -= gone;
}

// s.h = normalised x.
void Engine::Norm(const std::vector<float>& weight, const float* x, int64_t n) {
  const size_t width = static_cast<size_t>(model_.shape.width);
  for (int64_t i = 0; i < n; ++i)
    kernels::RmsNorm(x + static_cast<size_t>(i) * width, weight.data(), width, model_.shape.eps,
                     &impl_->h[static_cast<size_t>(i) * width]);
}
// `place`: of the token in the sequence, or among those that a pruned block computes.
void Engine::Rotate(float* x, int64_t heads, int64_t place) const {
  const int64_t d = model_.shape.head_dim;
  const int64_t position = impl_->kept.empty() ? place : impl_->kept[place];
  const size_t at = static_cast<size_t>(position * d / 2);
  for (int64_t h = 0; h < heads; ++h)
    kernels::RopeRotate(x + h * d, d, &impl_->cos[at], &impl_->sin[at],
                        kernels::RopeLayout::kInterleaved);
}
// Rotated keys and values of tokens [begin, begin + n) go to the cache.
void Engine::AppendKeys(int64_t layer, const float* k, const float* v, int64_t stride,
                        int64_t begin, int64_t n) {
  Impl::Cache& cache = impl_->cache[layer];
  const size_t kw = static_cast<size_t>(model_.shape.kv_heads * model_.shape.head_dim),
               row = CacheRowBytes();
  for (int64_t i = 0; i < n; ++i) {
    const size_t slot = static_cast<size_t>(begin + i - cache.missing);
    kernels::ConvertFromF32(k + i * stride, kw, options_.cache, cache.k.data() + slot * row);
    kernels::ConvertFromF32(v + i * stride, kw, options_.cache, cache.v.data() + slot * row);
  }
  cache.rows = begin + n - cache.missing;
}

// Plans and runs attention of some queries of tokens [begin, begin + n) into s.o. Empty positions:
// all of them.
absl::Status Engine::Attention(int64_t li, const float* q, int64_t q_stride, int64_t queries,
                               absl::Span<const int32_t> positions, int64_t begin, int64_t n,
                               int64_t end) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const int64_t d = m.head_dim, qw = m.heads * d, kw = m.kv_heads * d;
  Impl::Cache& cache = s.cache[li];
  const bool sparse = modes_[li] == LayerMode::kSparse;
  AttentionSession& session = sparse ? (length_ == 0 ? *s.sparse : *s.sparse_decode)
                              : li < options_.dense_layers ? *s.dense
                                                           : *s.routed;
  AttentionInputs in;
  in.q = {q, queries, m.heads, d, q_stride, d};
  in.k = {cache.k.data(), options_.cache, cache.rows, m.kv_heads, d, kw, d};
  in.v = {cache.v.data(), options_.cache, cache.rows, m.kv_heads, d, kw, d};
  in.q_begin = begin - cache.missing;
  in.q_positions = positions;
  in.prompt_end = end - cache.missing;
  in.scale = 1.0f / std::sqrt(static_cast<float>(d));
  in.rope_base = m.rope_base;
  if (s.keep_pre) {
    in.q_pre = {s.q_pre.data(), n, m.heads, d, qw, d};
    in.k_pre = {cache.k_pre.data(), DType::kF32, cache.rows, m.kv_heads, d, kw, d};
  }
  if (positions.empty()) in.hidden = {s.h.data(), n, m.width, m.width};
  SessionOutputs out;
  out.o = {s.o.data(), queries, m.heads, d, qw, d};
  if (options_.tokens.mask_approximated) {
    s.key_bias.clear();
    for (int64_t h = 0; h < m.kv_heads; ++h)
      s.key_bias.insert(s.key_bias.end(), cache.hidden.begin(), cache.hidden.begin() + cache.rows);
    out.key_bias = s.key_bias;
  }
  const int layer = static_cast<int>(li);
  const double planned = session.plan_seconds(layer);
  const double attended = session.attend_seconds(layer);
  const AttentionCounters before = session.counters(layer);
  SLUICE_RETURN_IF_ERROR(session.Run(layer, in, out));
  timing_.plan_s += session.plan_seconds(layer) - planned;
  timing_.attend_s += session.attend_seconds(layer) - attended;
  const AttentionCounters counted = session.counters(layer).Since(before);
  counters_.Add(counted);
  layer_counters_[li].Add(counted);
  return absl::OkStatus();
}

// x += execute(h) for the rows that execute, the forecast for the others: gather, compute, scatter.
template <class Execute>
absl::Status Engine::RunTokens(int64_t layer, int64_t unit, float* x, int64_t n,
                               const Execute& execute) {
  Impl& s = *impl_;
  const int64_t width = model_.shape.width;
  const InformedRouting& r = s.informed[2 * layer + unit];
  SLUICE_RETURN_IF_ERROR(s.dispatch->Run(
      s.assigned.view(), Combine::kWeightedSum, {s.h.data(), n, width, width},
      {s.mixed.data(), n, width, width},
      {{s.dispatch_ws.data(), s.dispatch_ws.bytes()}, s.executor.get()},
      [](int64_t) { return UnitInfo(); },
      [&](const UnitRows& rows, const RunContext&) {
        if (rows.unit == InformedRouting::kExecute)
          return absl::Status(execute(rows.in, rows.items.data(), rows.out.data));
        r.forecaster().Apply(rows.in.data, rows.in.rows, rows.out.data, s.route.data());
        linear_.macs += rows.in.rows * r.forecast_macs();
        linear_.weight_bytes += r.forecast_macs() * static_cast<int64_t>(sizeof(float));
        return absl::OkStatus();
      }));
  for (int64_t i = 0; i < n * width; ++i) x[i] += s.mixed[i];
  return absl::OkStatus();
}

absl::Status Engine::RunAttention(int64_t li, float* x, int64_t begin, int64_t n, int64_t end) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const int64_t d = m.head_dim, qw = m.heads * d, kw = m.kv_heads * d, row = qw + 2 * kw;
  const Layer& layer = model_.layers[li];
  Impl::Cache& cache = s.cache[li];
  SLUICE_ASSIGN_OR_RETURN(const bool approximate, RouteTokens(li, 0, begin, n));
  if (!approximate) {
    MatMul(s.h.data(), layer.qkv.data(), n, m.width, row, s.qkv.data());
    for (int64_t i = 0; i < n; ++i) {
      float* q = &s.qkv[i * row];
      if (s.keep_pre) {
        std::memcpy(&s.q_pre[i * qw], q, static_cast<size_t>(qw) * sizeof(float));
        std::memcpy(&cache.k_pre[(begin + i - cache.missing) * kw], q + qw,
                    static_cast<size_t>(kw) * sizeof(float));
      }
      Rotate(q, m.heads + m.kv_heads, begin + i);
    }
    AppendKeys(li, s.qkv.data() + qw, s.qkv.data() + qw + kw, row, begin, n);
    if (options_.pruning.on()) {  // the last queries vote on what the next blocks compute
      const int64_t keep = options_.pruning.causal ? n : std::min(n, ftp::kScoreQueries);
      for (int64_t i = n - keep; i < n; ++i)
        s.tail_q.insert(s.tail_q.end(), &s.qkv[i * row], &s.qkv[i * row] + qw);
    }
    SLUICE_RETURN_IF_ERROR(Attention(li, s.qkv.data(), row, n, {}, begin, n, end));
    MatMul(s.o.data(), layer.attn_out.data(), n, qw, m.width, x, true);
    return absl::OkStatus();
  }
  // Keys and values of every token; queries, attention and output projection of the executed ones.
  MatMul(s.h.data(), layer.qkv.data() + qw * m.width, n, m.width, 2 * kw, s.qkv.data());
  for (int64_t i = 0; i < n; ++i) Rotate(&s.qkv[i * 2 * kw], m.kv_heads, begin + i);
  AppendKeys(li, s.qkv.data(), s.qkv.data() + kw, 2 * kw, begin, n);
  return RunTokens(li, 0, x, n, [&](MatrixView<const float> h, const int32_t* items, float* y) {
    MatMul(h.data, layer.qkv.data(), h.rows, m.width, qw, s.qkv.data());
    s.positions.resize(h.rows);
    for (int64_t i = 0; i < h.rows; ++i) {
      Rotate(&s.qkv[i * qw], m.heads, begin + items[i]);
      s.positions[i] = static_cast<int32_t>(begin + items[i] - cache.missing);
    }
    SLUICE_RETURN_IF_ERROR(Attention(li, s.qkv.data(), qw, h.rows, s.positions, begin, n, end));
    MatMul(s.o.data(), layer.attn_out.data(), h.rows, qw, m.width, y);
    return absl::OkStatus();
  });
}

// y (+)= FFN(h).
void Engine::Ffn(int64_t li, const float* h, int64_t n, float* y, bool accumulate) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const Layer& layer = model_.layers[li];
  MatMul(h, layer.gate_up.data(), n, m.width, 2 * m.ffn, s.ff.data());
  s.executor->ParallelFor(n, 16, [&](int64_t b, int64_t e, int) {
    for (int64_t i = b; i < e; ++i) {
      const float* gate = &s.ff[i * 2 * m.ffn];
      float* act = &s.act[i * m.ffn];
      for (int64_t j = 0; j < m.ffn; ++j)
        act[j] = gate[j] / (1.0f + std::exp(-gate[j])) * gate[m.ffn + j];
    }
  });
  MatMul(s.act.data(), layer.down.data(), n, m.ffn, m.width, y, accumulate);
}
absl::Status Engine::RunFfn(int64_t li, float* x, int64_t begin, int64_t n) {
  SLUICE_ASSIGN_OR_RETURN(const bool approximate, RouteTokens(li, 1, begin, n));
  if (!approximate) {
    Ffn(li, impl_->h.data(), n, x, true);
    return absl::OkStatus();
  }
  return RunTokens(li, 1, x, n, [&](MatrixView<const float> h, const int32_t*, float* y) {
    Ffn(li, h.data, h.rows, y, false);
    return absl::OkStatus();
  });
}

absl::Status Engine::PrepareTokenRouting() {
  const TokenRouting& t = options_.tokens;
  Impl& s = *impl_;
  if (t.weights == nullptr)
    return absl::InvalidArgumentError("token routing needs weights: they hold the forecasters");
  if (!t.rates.empty() && static_cast<int64_t>(t.rates.size()) != 2 * model_.shape.layers)
    return absl::InvalidArgumentError(
        absl::StrCat(t.rates.size(), " token rates, wanted one a unit: ", 2 * model_.shape.layers));
  const int64_t n = std::min(options_.chunk, s.capacity);
  for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
    for (int64_t unit : {0, 1}) {
      SLUICE_ASSIGN_OR_RETURN(InformedRouting r,
                              InformedRouting::Create({layer, unit, t.offset}, *t.weights));
      if (r.dim() != model_.shape.width)
        return absl::InvalidArgumentError(absl::StrCat("token routers for width ", r.dim(),
                                                       ", the model has ", model_.shape.width));
      s.informed.push_back(std::move(r));
    }
  }
  SLUICE_ASSIGN_OR_RETURN(Dispatch dispatch, Dispatch::Create({.max_items = n,
                                                               .in_width = model_.shape.width,
                                                               .out_width = model_.shape.width,
                                                               .max_entries = n,
                                                               .max_units = 2}));
  s.dispatch = std::make_unique<Dispatch>(dispatch);
  // One file, one shape: the plan of one router serves all.
  SLUICE_ASSIGN_OR_RETURN(s.informed_plan,
                          s.informed[0].MakePlan({.items = n, .hidden = model_.shape.width}));
  s.route_ws.Resize(s.informed_plan.workspace_bytes);
  s.dispatch_ws.Resize(s.dispatch->workspace_bytes());
  s.route.resize(std::max(s.route.size(), s.informed[0].forecaster().scratch_floats(n)));
  s.mixed.resize(n * model_.shape.width);
  s.assigned.Reserve(n, n);
  return absl::OkStatus();
}

// Decides what s.h [n, width] of a unit may skip; false when every token executes.
absl::StatusOr<bool> Engine::RouteTokens(int64_t layer, int64_t unit, int64_t begin, int64_t n) {
  using Gate = TokenRouting::Gate;
  const TokenRouting& t = options_.tokens;
  if (t.gate == Gate::kOff) return false;
  Impl& s = *impl_;
  const auto mark = Clock::now();
  const size_t at = static_cast<size_t>(2 * layer + unit);
  s.assigned.Clear();
  Assignment& a = s.assigned.view();
  a.items = n;
  a.units = 2;
  if (t.gate == Gate::kLearned) {
    RouteInputs in;
    in.items = n;
    in.hidden = {s.h.data(), n, model_.shape.width, model_.shape.width};
    SLUICE_RETURN_IF_ERROR(s.informed[at].Run(
        s.informed_plan, in, {{s.route_ws.data(), s.route_ws.bytes()}, s.executor.get()}, a));
    linear_.macs += n * s.informed[at].router_macs();
    linear_.weight_bytes += s.informed[at].router_macs() * static_cast<int64_t>(sizeof(float));
  }
  const double rate = t.rates.empty() ? t.rate : t.rates[at];
  int64_t approximated = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t& u = a.unit[i];
    if (t.gate != Gate::kLearned) {
      const RngKey key = {t.seed, 0, static_cast<uint64_t>(layer), static_cast<uint64_t>(unit),
                          static_cast<uint64_t>(begin + i)};
      u = t.gate == Gate::kApproximate || (t.gate == Gate::kRandom && RandomUniform(key) < rate);
      a.row_ptr[i] = i;
      a.weight[i] = 1;
    }
    if (t.pin_first && begin + i == 0) u = InformedRouting::kExecute;
    approximated += u;
  }
  a.row_ptr[n] = n;
  a.row_ptr = a.row_ptr.first(static_cast<size_t>(n) + 1);
  if (t.mask_approximated && unit == 0) {
    std::vector<float>& hidden = s.cache[layer].hidden;
    hidden.resize(begin + n);
    for (int64_t i = 0; i < n; ++i) hidden[begin + i] = a.unit[i] != 0 ? -HUGE_VALF : 0.0f;
  }
  token_counters_[at].executed += n - approximated;
  token_counters_[at].approximated += approximated;
  timing_.route_s += Seconds(mark);
  return approximated > 0;
}
absl::Status Engine::PreparePruning() {
  using By = TokenPruning::By;
  const TokenPruning& p = options_.pruning;
  Impl& s = *impl_;
  if (options_.layers.on() || options_.tokens.gate != TokenRouting::Gate::kOff || s.keep_pre)
    return absl::InvalidArgumentError(
        "token pruning runs without layer routing, token routing and routers that summarise keys "
        "before RoPE");
  if (static_cast<int64_t>(p.sparsity.size()) != model_.shape.layers)
    return absl::InvalidArgumentError(absl::StrCat(
        p.sparsity.size(), " block sparsities, wanted one a block: ", model_.shape.layers));
  for (double x : p.sparsity) {
    if (!(x >= 0 && x <= 1))
      return absl::InvalidArgumentError(absl::StrCat("sparsity ", x, " is outside [0, 1]"));
  }
  if (p.by == By::kLearned && p.weights == nullptr)
    return absl::InvalidArgumentError("learned token pruning needs weights");
  size_t workspace = 0;
  for (double x : p.sparsity) {
    std::unique_ptr<const Router> made;
    if (p.by == By::kLearned) {
      SLUICE_ASSIGN_OR_RETURN(Ftp r,
                              Ftp::Create({x, p.topk ? 1 : 0, p.causal ? 1 : 0}, *p.weights));
      made = std::make_unique<const RouterOf<Ftp>>(std::move(r));
    } else {
      SLUICE_ASSIGN_OR_RETURN(FtpStatic r, FtpStatic::Create({x}));
      made = std::make_unique<const RouterOf<FtpStatic>>(std::move(r));
    }
    SLUICE_ASSIGN_OR_RETURN(auto plan, made->MakePlan({.items = s.capacity}));
    workspace = std::max(workspace, plan->info().workspace_bytes);
    s.pruners.push_back(std::move(made));
    s.prune_plans.push_back(std::move(plan));
  }
  s.route_ws.Resize(workspace);
  const size_t n = static_cast<size_t>(s.capacity);
  s.score.resize(n);
  s.order.resize(n);
  s.assigned.Reserve(s.capacity, s.capacity);
  return absl::OkStatus();
}

// s.kept = the tokens among the n fed that this block computes.
absl::Status Engine::ChooseTokens(int64_t layer, int64_t n) {
  using By = TokenPruning::By;
  const TokenPruning& p = options_.pruning;
  Impl& s = *impl_;
  const size_t at = static_cast<size_t>(layer);
  const int64_t all = length_ + n;
  s.kept.clear();
  const auto keep = [&](int64_t t) { s.kept.push_back(static_cast<int32_t>(t)); };
  // The first block fills the score table; after the prompt only single tokens skip, and only whole
  // blocks.
  const bool decoding = length_ > 0;
  if (layer == 0 || p.sparsity[at] == 0 || (decoding && (n > 1 || p.sparsity[at] <= p.decode))) {
    for (int64_t t = length_; t < all; ++t) keep(t);
    return absl::OkStatus();
  }
  const auto mark = Clock::now();
  s.assigned.Clear();
  Assignment& a = s.assigned.view();
  RouteInputs in;
  in.items = all;
  in.feedback = {s.score.data(), static_cast<size_t>(all)};
  const RunContext ctx = {{s.route_ws.data(), s.route_ws.bytes()}, s.executor.get()};
  if (p.by == By::kRandom) {
    ftp::AssignTop(all, ftp::Kept(p.sparsity[at], all), absl::MakeSpan(s.order), a, [&](int64_t i) {
      return RandomUniform({p.seed, 0, static_cast<uint64_t>(layer), 0, static_cast<uint64_t>(i)});
    });
  } else if (decoding && p.by == By::kStatic) {
    a.unit[length_] = ftp::kSkip;  // the schedule alone decides
  } else {
    SLUICE_RETURN_IF_ERROR(s.pruners[at]->Run(*s.prune_plans[at], in, ctx, a));
  }
  for (int64_t t = length_; t < all; ++t) {
    if (a.unit[t] == ftp::kCompute) keep(t);
  }
  timing_.route_s += Seconds(mark);
  return absl::OkStatus();
}

// The attention that the block's keys received becomes the score of the tokens it computed; others
// keep theirs.
void Engine::ScoreTokens(int64_t layer) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const int64_t d = m.head_dim, qw = m.heads * d, kw = m.kv_heads * d;
  const auto mark = Clock::now();
  const Impl::Cache& cache = s.cache[layer];
  const int64_t had = static_cast<int64_t>(s.tail_q.size()) / qw,
                votes = options_.pruning.causal ? had : std::min(had, ftp::kScoreQueries);
  s.block_score.resize(cache.rows);
  s.received.Run({s.tail_q.data() + (had - votes) * qw, votes, m.heads, d, qw, d},
                 {cache.k.data(), options_.cache, cache.rows, m.kv_heads, d, kw, d},
                 1.0f / std::sqrt(static_cast<float>(d)), options_.pruning.causal,
                 s.block_score.data());
  // The newest keys of the cache are those of s.kept.
  const int64_t kept = static_cast<int64_t>(s.kept.size()),
                from = options_.pruning.causal ? 0 : cache.rows - kept;
  for (int64_t i = 0; i < kept; ++i) s.score[s.kept[i]] = s.block_score[from + i];
  timing_.route_s += Seconds(mark);
}

// The n tokens fed, through one block: choose, gather, compute among the chosen, scatter.
absl::Status Engine::RunPruned(int64_t layer, int64_t n) {
  Impl& s = *impl_;
  const int64_t width = model_.shape.width;
  SLUICE_RETURN_IF_ERROR(ChooseTokens(layer, n));
  const int64_t kept = static_cast<int64_t>(s.kept.size());
  TokenCounters& counted = block_counters_[layer];
  counted.executed += kept;
  counted.approximated += n - kept;
  Impl::Cache& cache = s.cache[layer];
  const bool decoding = length_ > 0;
  if (kept > 0) {
    float* x = s.x.data();
    if (kept < n) {
      s.compact.resize(kept * width);
      for (int64_t i = 0; i < kept; ++i)
        std::memcpy(&s.compact[i * width], &s.x[(s.kept[i] - length_) * width],
                    static_cast<size_t>(width) * sizeof(float));
      x = s.compact.data();
    }
    s.tail_q.clear();
    // Prompts run in the coordinates of the kept tokens; later tokens stand behind the keys that
    // are missing.
    std::vector<int32_t> positions;
    if (decoding) positions.swap(s.kept);
    for (int64_t at = 0; at < kept; at += options_.chunk) {
      const int64_t count = std::min(options_.chunk, kept - at);
      SLUICE_RETURN_IF_ERROR(RunLayer(layer, x + at * width, length_ + at, count,
                                      decoding ? length_ + n : length_ + kept));
    }
    if (decoding) positions.swap(s.kept);
    for (int64_t i = 0; kept < n && i < kept; ++i)
      std::memcpy(&s.x[(s.kept[i] - length_) * width], &s.compact[i * width],
                  static_cast<size_t>(width) * sizeof(float));
    if (layer + 1 < model_.shape.layers && options_.pruning.by == TokenPruning::By::kLearned)
      ScoreTokens(layer);
  }
  cache.missing = length_ + n - cache.rows;
  s.kept.clear();
  return absl::OkStatus();
}

// Tokens [begin, begin + n) of a feed that ends at `end`, through one layer.
absl::Status Engine::RunLayer(int64_t li, float* x, int64_t begin, int64_t n, int64_t end) {
  const Layer& layer = model_.layers[li];
  std::vector<float> h, before;
  for (int64_t unit : {0, 1}) {
    Norm(unit == 0 ? layer.attn_norm : layer.ffn_norm, x, n);
    const int64_t floats = options_.observe ? n * model_.shape.width : 0;
    h.assign(impl_->h.begin(), impl_->h.begin() + floats);
    before.assign(x, x + floats);
    SLUICE_RETURN_IF_ERROR(unit == 0 ? RunAttention(li, x, begin, n, end)
                                     : RunFfn(li, x, begin, n));
    if (!options_.observe) continue;
    for (int64_t i = 0; i < floats; ++i) before[i] = x[i] - before[i];
    options_.observe(li, unit, n, h.data(), before.data());
  }
  return absl::OkStatus();
}

namespace {
int64_t ArgMax(const float* x, int64_t n) { return std::max_element(x, x + n) - x; }
}  // namespace

absl::StatusOr<double> Perplexity(Engine& engine, const std::vector<int32_t>& tokens,
                                  std::vector<float>* nll,
                                  const std::function<void(int64_t)>& progress) {
  if (tokens.size() < 2) return absl::InvalidArgumentError("perplexity needs at least two tokens");
  engine.Reset();
  double sum = 0;
  if (nll != nullptr) nll->assign(tokens.size() - 1, 0);
  const size_t vocab = static_cast<size_t>(engine.model().shape.vocab);
  SLUICE_RETURN_IF_ERROR(engine.Feed(
      tokens, 0,
      [&](int64_t p, const float* logits) {
        if (p + 1 >= static_cast<int64_t>(tokens.size())) return;
        const float x =
            kernels::LogSumExp(logits, vocab) - logits[tokens[static_cast<size_t>(p) + 1]];
        sum += x;
        if (nll != nullptr) (*nll)[p] = x;
      },
      progress));
  return std::exp(sum / static_cast<double>(tokens.size() - 1));
}

absl::StatusOr<Score> ScoreMarked(Engine& engine, const std::vector<int32_t>& tokens,
                                  const std::vector<uint8_t>& answer,
                                  const std::vector<uint8_t>& text,
                                  const std::function<void(int64_t)>& progress) {
  engine.Reset();
  Score score;
  const size_t vocab = static_cast<size_t>(engine.model().shape.vocab);
  const auto see = [&](int64_t p, const float* logits) {
    const size_t next = static_cast<size_t>(p) + 1;
    if (next >= tokens.size()) return;
    if (text[next] != 0) {
      score.nll += kernels::LogSumExp(logits, vocab) - logits[tokens[next]];
      ++score.counted;
    }
    if (answer[next] != 0) {
      ++score.asked;
      score.right += ArgMax(logits, static_cast<int64_t>(vocab)) == tokens[next];
    }
  };
  const auto first =
      engine.prunes() ? std::find(answer.begin(), answer.end(), 1) - answer.begin() : 0;
  if (first > 0)
    SLUICE_RETURN_IF_ERROR(
        engine.Feed({tokens.begin(), tokens.begin() + first}, first - 1, see, progress));
  SLUICE_RETURN_IF_ERROR(engine.Feed({tokens.begin() + first, tokens.end()}, first, see,
                                     first > 0 ? nullptr : progress));
  score.perplexity =
      score.counted > 0 ? std::exp(score.nll / static_cast<double>(score.counted)) : 0;
  score.accuracy =
      score.asked > 0 ? static_cast<double>(score.right) / static_cast<double>(score.asked) : 0;
  return score;
}

absl::StatusOr<std::vector<int32_t>> Generate(Engine& engine, const std::vector<int32_t>& prompt,
                                              int64_t count, const Sampling& sampling,
                                              const std::function<bool(int32_t)>& on_token) {
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature) || sampling.top_k < 0)
    return absl::InvalidArgumentError(absl::StrCat("temperature ", sampling.temperature,
                                                   " and top-k ", sampling.top_k,
                                                   "; allowed: finite numbers from 0"));
  const int64_t vocab = engine.model().shape.vocab;
  std::vector<float> last(vocab);
  const auto keep = [&](int64_t, const float* logits) {
    std::copy(logits, logits + vocab, last.begin());
  };
  SLUICE_RETURN_IF_ERROR(
      engine.Feed(prompt, engine.length() + static_cast<int64_t>(prompt.size()) - 1, keep));
  std::vector<int32_t> out;
  std::vector<int32_t> order(vocab);
  for (int64_t i = 0; i < count; ++i) {
    int32_t next = static_cast<int32_t>(ArgMax(last.data(), vocab));
    if (sampling.temperature > 0) {
      for (size_t j = 0; j < order.size(); ++j) order[j] = static_cast<int32_t>(j);
      const int64_t k = sampling.top_k > 0 ? std::min(sampling.top_k, vocab) : vocab;
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
        const float x = last[a], y = last[b];
        return x != y ? x > y : a < b;
      });
      std::vector<double> p(k);
      double total = 0;
      for (int64_t j = 0; j < k; ++j)
        total += p[j] = std::exp((last[order[j]] - last[order[0]]) / sampling.temperature);
      double u = RandomUniform({sampling.seed, static_cast<uint64_t>(i), 0, 0, 0}) * total;
      int64_t j = 0;
      while (j + 1 < k && u >= p[j]) u -= p[j++];
      next = order[j];
    }
    if (next == engine.model().tokenizer.eos()) break;
    out.push_back(next);
    if ((on_token && !on_token(next)) || i + 1 == count) break;
    SLUICE_RETURN_IF_ERROR(engine.Feed({next}, engine.length(), keep));
  }
  return out;
}

std::string FactQuestion(const std::string& name, const std::string& separator) {
  return absl::StrCat(separator, "Question: what is the code of the ", name, "? Answer:");
}

FactPrompt PlantFacts(const Tokenizer& tokenizer, const std::vector<int32_t>& text, int64_t length,
                      int64_t count, uint64_t seed, const std::string& separator) {
  static constexpr const char* kAdjectives[] = {
      "amber", "bright", "copper", "distant", "emerald", "golden", "hidden", "ivory",
      "lunar", "misty",  "noble",  "quiet",   "royal",   "silver", "velvet", "winter"};
  static constexpr const char* kNouns[] = {
      "anchor", "bridge", "castle", "compass", "dragon", "engine",  "falcon", "garden",
      "harbor", "island", "kettle", "lantern", "mirror", "orchard", "piano",  "violin"};
  FactPrompt f;
  std::vector<std::vector<int32_t>> said, asked, answered;
  int64_t extra = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t r = RandomBits({seed, 1, 0, 0, static_cast<uint64_t>(i)});
    const std::string name = absl::StrCat(kAdjectives[(r + static_cast<uint64_t>(i)) % 16], " ",
                                          kNouns[static_cast<uint64_t>(i) % 16]);
    const std::string code = absl::StrCat(10000 + (r >> 8) % 90000);
    f.facts.emplace_back(name, code);
    said.push_back(tokenizer.Encode(
        absl::StrCat(separator, "The code of the ", name, " is ", code, ".", separator)));
    asked.push_back(tokenizer.Encode(FactQuestion(name, separator)));
    answered.push_back(tokenizer.Encode(" " + code));
    extra +=
        static_cast<int64_t>(said.back().size() + asked.back().size() + answered.back().size());
  }
  const int64_t plain =
      std::max<int64_t>(0, std::min<int64_t>(length - extra, static_cast<int64_t>(text.size())));
  const auto push = [&](const std::vector<int32_t>& ids, bool is_answer, bool is_text) {
    for (int32_t id : ids) {
      f.tokens.push_back(id);
      f.answer.push_back(is_answer);
      f.text.push_back(is_text);
    }
  };
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t until =
        plain * (2 * i + 1) / (2 * count + 1);  // even depths, the last well before the end
    push({text.begin() + at, text.begin() + until}, false, true);
    at = until;
    push(said[i], false, false);
  }
  push({text.begin() + at, text.begin() + plain}, false, true);
  for (int64_t i = 0; i < count; ++i) {
    push(asked[i], false, false);
    push(answered[i], true, false);
  }
  return f;
}
}  // namespace host
SLUICE_END_NAMESPACE
