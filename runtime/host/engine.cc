#include "sluice/runtime/host/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/host/engine_impl.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
Engine::Engine(const Model& model, const EngineOptions& options)
    : model_(model), options_(options), impl_(std::make_unique<Impl>()) {}
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
  Impl& s = *e->impl_;
  s.executor = MakeTbbExecutor(options.threads);
  s.capacity = options.max_tokens > 0 ? options.max_tokens : m.context;
  s.rows = std::min(options.chunk, s.capacity);
  SLUICE_ASSIGN_OR_RETURN(SparseWeights sparse,
                          SparseWeights::Create(model, options.sparse_weights));
  s.math.emplace(m, s.rows, s.capacity, s.executor.get(), std::move(sparse));
  const AttentionSessions::Limits limits = {s.rows, s.capacity, s.executor.get()};
  SLUICE_ASSIGN_OR_RETURN(s.attention,
                          AttentionSessions::Create(m, options.router, options.layers, limits));
  SLUICE_ASSIGN_OR_RETURN(s.routing,
                          UnitRouting::Create(m, options.layers, options.tokens, options.pruning,
                                              options.experts, s.attention, limits));
  if (options.experts.packed) {
    if (m.experts == 0) return PackedExperts::Create(model).status();  // which says why
    SLUICE_RETURN_IF_ERROR(s.routing.experts->Pack(model));
  }
  s.attention.ForEach([&](AttentionSession& session) {
    session.OnPlan([e = e.get()](int layer, const AttentionPlan& plan, const AttentionInputs& in,
                                 double seconds) { e->See(layer, plan, in, seconds); });
  });
  s.keep_pre = s.attention.read_pre_rope();
  e->MakeBuffers();
  e->modes_.assign(m.layers, LayerMode::kUndecided);
  e->layer_counters_.resize(m.layers);
  e->layer_attention_s_.resize(m.layers);
  e->token_counters_.resize(static_cast<size_t>(m.layers) * 2);
  e->block_counters_.resize(m.layers);
  return e;
}

void Engine::MakeBuffers() {
  const ModelShape& m = model_.shape;
  Impl& s = *impl_;
  for (int64_t layer = 0; layer < m.layers; ++layer)
    s.cache.emplace_back(m, options_.cache, s.capacity, s.keep_pre);

  const size_t n = static_cast<size_t>(s.rows);
  const size_t q_width = static_cast<size_t>(m.heads * m.head_dim);
  const size_t kv_width = static_cast<size_t>(m.kv_heads * m.head_dim);
  s.h.resize(n * static_cast<size_t>(m.width));
  s.qkv.resize(n * (q_width + 2 * kv_width));
  if (s.keep_pre) s.q_pre.resize(n * q_width);
  s.o.resize(n * q_width);
  s.logits.resize(n * static_cast<size_t>(m.vocab));
}

// What attention made of the queries just attended, where its errors are measured.
HeadsView<const float> Engine::Attended(const AttentionInputs& in) const {
  if (!options_.quality_errors) return {};
  const ModelShape& m = model_.shape;
  const int64_t width = m.heads * m.head_dim;
  return {impl_->o.data(), in.q.rows, m.heads, m.head_dim, width, m.head_dim};
}

// What observers and quality measuring take is not in the timing.
void Engine::See(int64_t layer, const AttentionPlan& plan, const AttentionInputs& in,
                 double seconds) {
  const auto mark = Clock::now();
  if (options_.on_plan) options_.on_plan(layer, plan, seconds);
  if (options_.quality_stride > 0 && in.q.rows > 1)
    quality_.Add(
        MeasurePlan(plan, in.q, in.k, in.v, in.scale, Attended(in), {options_.quality_stride, 64}));
  timing_.total_s -= Seconds(mark);
}

void Engine::Reset() {
  length_ = 0;
  timing_ = {};
  counters_ = {};
  quality_ = {};
  impl_->math->set_counters({});
  if (impl_->routing.experts) impl_->routing.experts->ResetCounters();
  std::fill(token_counters_.begin(), token_counters_.end(), TokenCounters{});
  std::fill(block_counters_.begin(), block_counters_.end(), TokenCounters{});
  std::fill(modes_.begin(), modes_.end(), LayerMode::kUndecided);
  std::fill(layer_counters_.begin(), layer_counters_.end(), AttentionCounters{});
  std::fill(layer_attention_s_.begin(), layer_attention_s_.end(), 0.0);
  Impl& s = *impl_;
  s.attention.ForEach([](AttentionSession& session) { session.Clear(); });
  for (KvCache& cache : s.cache) cache.Clear();
}

const LinearCounters& Engine::linear() const { return impl_->math->counters(); }
const SparseWeights::Held& Engine::sparse_weights() const { return impl_->math->sparse().held(); }
int64_t Engine::cache_rows(int64_t layer) const { return impl_->cache[layer].rows(); }
KvView Engine::keys(int64_t layer) const { return impl_->cache[layer].keys(); }
KvView Engine::values(int64_t layer) const { return impl_->cache[layer].values(); }
float Engine::layer_score(int64_t layer) const {
  return impl_->routing.layers ? impl_->routing.layers->score(layer) : 0;
}
int64_t Engine::router_calls() const {
  return impl_->routing.layers ? impl_->routing.layers->router_calls() : 0;
}

int64_t Engine::expert_rows(int64_t layer, int64_t expert) const {
  return impl_->routing.experts ? impl_->routing.experts->rows(layer, expert) : 0;
}

absl::Status Engine::CheckTokens(const std::vector<int32_t>& tokens) const {
  const int64_t all = length_ + static_cast<int64_t>(tokens.size());
  if (all > impl_->capacity)
    return absl::ResourceExhaustedError(
        absl::StrCat(all, " tokens, but the cache holds ", impl_->capacity));
  for (int32_t t : tokens) {
    if (t < 0 || t >= model_.shape.vocab)
      return absl::InvalidArgumentError(
          absl::StrCat("token ", t, " is outside [0, ", model_.shape.vocab, ")"));
  }
  return absl::OkStatus();
}

void Engine::Embed(const std::vector<int32_t>& tokens) {
  const size_t width = static_cast<size_t>(model_.shape.width);
  std::vector<float>& x = impl_->x;
  x.resize(std::max(x.size(), tokens.size() * width));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* row = &model_.embed[static_cast<size_t>(tokens[i]) * width];
    std::copy(row, row + width, &x[i * width]);
  }
}

absl::Status Engine::Feed(const std::vector<int32_t>& tokens, int64_t from,
                          const std::function<void(int64_t, const float*)>& visit,
                          const std::function<void(int64_t)>& progress) {
  SLUICE_RETURN_IF_ERROR(CheckTokens(tokens));
  const int64_t n = static_cast<int64_t>(tokens.size());
  if (n == 0) return absl::OkStatus();
  const auto start = Clock::now();
  const int64_t width = model_.shape.width;
  const int64_t layers = model_.shape.layers;
  Impl& s = *impl_;
  Embed(tokens);
  // Layer by layer, each over all chunks: a layer router sees the end of the prompt before the
  // layer's attention runs.
  const bool prompt = length_ == 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    KvCache& cache = s.cache[layer];
    if (prompt) cache.Begin();
    if (prompt && s.routing.layers) SLUICE_RETURN_IF_ERROR(Decide(layer, n));
    const bool evict = options_.layers.evict && modes_[layer] == LayerMode::kSparse;
    const auto shrink = [&] {
      const AttentionPlanInfo& reach = s.attention.sparse_decode->info();
      cache.Evict(reach.reach_first, reach.reach_last, options_.chunk);
    };
    if (s.routing.pruning) {
      SLUICE_RETURN_IF_ERROR(options_.pruning.after_attention ? RunPrunedFfn(layer, n)
                                                              : RunPruned(layer, n));
      if (progress) progress((layer + 1) * n / layers);
      continue;
    }
    for (int64_t at = 0; at < n; at += options_.chunk) {
      const int64_t count = std::min(options_.chunk, n - at);
      SLUICE_RETURN_IF_ERROR(RunLayer({layer, &s.x[at * width], length_ + at, count, length_ + n}));
      if (evict && !prompt) shrink();
      if (progress) progress((layer * n + at + count) / layers);
    }
    if (evict && prompt) shrink();
  }
  length_ += n;
  if (visit) VisitLogits(n, from, visit);
  timing_.total_s += Seconds(start);
  return absl::OkStatus();
}

absl::Status Engine::RunLayerAlone(int64_t layer, int64_t n, float* x) {
  const ModelShape& m = model_.shape;
  if (layer < 0 || layer >= m.layers || n < 0 || n > impl_->capacity)
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " of ", n,
                                                   " tokens; allowed: layers 0 to ", m.layers - 1,
                                                   ", up to ", impl_->capacity, " tokens"));
  if (decides_by_prompt())
    return absl::InvalidArgumentError("a layer alone, but the prompt decides what it leaves out");
  Reset();
  impl_->cache[layer].Begin();
  for (int64_t at = 0; at < n; at += options_.chunk) {
    const int64_t count = std::min(options_.chunk, n - at);
    SLUICE_RETURN_IF_ERROR(RunLayer({layer, x + at * m.width, at, count, n}));
  }
  return absl::OkStatus();
}

// Of the last n tokens, those at or after `from`.
void Engine::VisitLogits(int64_t n, int64_t from,
                         const std::function<void(int64_t, const float*)>& visit) {
  const ModelShape& m = model_.shape;
  const int64_t first = length_ - n;
  const LinearCounters counted = impl_->math->counters();
  for (int64_t at = std::max<int64_t>(0, from - first); at < n; at += options_.chunk) {
    const int64_t count = std::min(options_.chunk, n - at);
    Norm(model_.norm, &impl_->x[at * m.width], count);
    impl_->math->MatMul(impl_->h.data(), model_.head().data(), count, m.width, m.vocab,
                        impl_->logits.data());
    for (int64_t i = 0; i < count; ++i) visit(first + at + i, &impl_->logits[i * m.vocab]);
  }
  impl_->math->set_counters(counted);
}

// The layer's mode, from the queries of the prompt's tokens that its router asks for.
absl::Status Engine::Decide(int64_t layer, int64_t prompt) {
  const auto mark = Clock::now();
  const ModelShape& m = model_.shape;
  const Layer& w = model_.layers[layer];
  const int64_t q_width = m.heads * m.head_dim;
  const auto queries = [&](int64_t begin, int64_t count, float* q) {
    for (int64_t at = 0; at < count; at += options_.chunk) {
      const int64_t n = std::min(options_.chunk, count - at);
      Norm(w.attn_norm, &impl_->x[(begin + at) * m.width], n);
      // The query rows stand first.
      impl_->math->MatMul(impl_->h.data(), w.qkv.data(), n, m.width, q_width, q + at * q_width);
    }
  };
  SLUICE_ASSIGN_OR_RETURN(modes_[layer], impl_->routing.layers->Decide(layer, prompt, queries));
  timing_.route_s += Seconds(mark);
  return absl::OkStatus();
}

absl::Status Engine::RunLayer(const Pass& p) {
  const Layer& layer = model_.layers[p.layer];
  const int64_t floats = options_.observe ? p.n * model_.shape.width : 0;
  std::vector<float> h;
  std::vector<float> before;
  for (int64_t unit : {0, 1}) {
    Norm(unit == 0 ? layer.attn_norm : layer.ffn_norm, p.x, p.n);
    h.assign(impl_->h.begin(), impl_->h.begin() + floats);
    before.assign(p.x, p.x + floats);
    if (unit == 0) SLUICE_RETURN_IF_ERROR(DecideEarly(p));
    SLUICE_RETURN_IF_ERROR(unit == 0 ? RunAttention(p) : RunFfn(p));
    if (!options_.observe) continue;
    for (int64_t i = 0; i < floats; ++i) before[i] = p.x[i] - before[i];
    options_.observe(p.layer, unit, p.n, h.data(), before.data());
  }
  return absl::OkStatus();
}

// Experts that are chosen before attention, with s.h what attention is given.
absl::Status Engine::DecideEarly(const Pass& p) {
  Impl& s = *impl_;
  if (!model_.shape.early_gate()) return absl::OkStatus();
  const bool entering = model_.shape.gate_input == GateInput::kEntering;
  return s.routing.experts->Decide(p.layer, model_.layers[p.layer], p.begin, p.n,
                                   entering ? p.x : s.h.data(), *s.math);
}

absl::Status Engine::RunAttention(const Pass& p) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const Layer& layer = model_.layers[p.layer];
  const int64_t q_width = m.heads * m.head_dim;
  const int64_t kv_width = m.kv_heads * m.head_dim;
  KvCache& cache = s.cache[p.layer];
  SLUICE_ASSIGN_OR_RETURN(const bool approximate, RouteTokens(p, 0));
  if (!approximate) {
    const int64_t row = q_width + 2 * kv_width;
    s.math->MatMul(s.h.data(), layer.qkv.data(), p.n, m.width, row, s.qkv.data());
    for (int64_t i = 0; i < p.n; ++i) {
      float* q = &s.qkv[i * row];
      if (s.keep_pre) {
        std::copy(q, q + q_width, &s.q_pre[i * q_width]);
        cache.KeepBeforeRope(q + q_width, p.begin + i);
      }
      Rotate(p, p.begin + i, m.heads + m.kv_heads, q);
    }
    const float* k = s.qkv.data() + q_width;
    cache.Append(k, k + kv_width, row, p.begin, p.n);
    if (s.routing.pruning) s.routing.pruning->AddQueries(s.qkv.data(), row, p.n);
    if (options_.on_input) options_.on_input(p.layer, MatrixInput::kAttention, p.n, s.h.data());
    SLUICE_RETURN_IF_ERROR(Attend(p, s.qkv.data(), row, p.n, {}));
    if (options_.on_input) options_.on_input(p.layer, MatrixInput::kAttentionOut, p.n, s.o.data());
    s.math->MatMul(s.o.data(), layer.attn_out.data(), p.n, q_width, m.width, p.x, true);
    return absl::OkStatus();
  }
  // Keys and values of every token; queries, attention and output projection of the executed ones.
  s.math->MatMul(s.h.data(), layer.qkv.data() + q_width * m.width, p.n, m.width, 2 * kv_width,
                 s.qkv.data());
  for (int64_t i = 0; i < p.n; ++i) Rotate(p, p.begin + i, m.kv_heads, &s.qkv[i * 2 * kv_width]);
  cache.Append(s.qkv.data(), s.qkv.data() + kv_width, 2 * kv_width, p.begin, p.n);
  return RunTokens(p, 0, [&](const UnitRows& rows, const RunContext&) {
    const int64_t n = rows.in.rows;
    s.math->MatMul(rows.in.data, layer.qkv.data(), n, m.width, q_width, s.qkv.data());
    s.positions.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t token = p.begin + rows.items[i];
      Rotate(p, token, m.heads, &s.qkv[i * q_width]);
      s.positions[i] = static_cast<int32_t>(token - cache.missing());
    }
    SLUICE_RETURN_IF_ERROR(Attend(p, s.qkv.data(), q_width, n, s.positions));
    s.math->MatMul(s.o.data(), layer.attn_out.data(), n, q_width, m.width, rows.out.data);
    return absl::OkStatus();
  });
}

// x [n, width] += the layer's FFN of the normalised states h.
absl::Status Engine::Ffn(int64_t layer, int64_t begin, int64_t n, const float* h, float* x) {
  const Layer& w = model_.layers[layer];
  Impl& s = *impl_;
  if (s.routing.experts) {
    if (!model_.shape.early_gate())
      SLUICE_RETURN_IF_ERROR(s.routing.experts->Decide(layer, w, begin, n, h, *s.math));
    return s.routing.experts->Run(layer, w, n, h, x, *s.math);
  }
  s.math->Ffn(w, 0, h, n, x, true);
  return absl::OkStatus();
}

absl::Status Engine::RunFfn(const Pass& p) {
  SLUICE_ASSIGN_OR_RETURN(const bool approximate, RouteTokens(p, 1));
  if (!approximate) {
    SLUICE_RETURN_IF_ERROR(Ffn(p.layer, p.begin, p.n, impl_->h.data(), p.x));
    if (!options_.on_input || impl_->routing.experts) return absl::OkStatus();
    options_.on_input(p.layer, MatrixInput::kFfn, p.n, impl_->h.data());
    options_.on_input(p.layer, MatrixInput::kFfnDown, p.n, impl_->math->activations());
    return absl::OkStatus();
  }
  return RunTokens(p, 1, [&](const UnitRows& rows, const RunContext&) {
    std::fill_n(rows.out.data, rows.in.rows * model_.shape.width, 0.0f);
    return Ffn(p.layer, p.begin, rows.in.rows, rows.in.data, rows.out.data);
  });
}

// Decides what s.h [n, width] of a unit may skip; false when every token executes.
absl::StatusOr<bool> Engine::RouteTokens(const Pass& p, int64_t unit) {
  Impl& s = *impl_;
  if (!s.routing.tokens) return false;
  const auto mark = Clock::now();
  SLUICE_ASSIGN_OR_RETURN(const int64_t left,
                          s.routing.tokens->Route(p.layer, unit, p.begin, p.n, s.h.data()));
  if (options_.tokens.mask_approximated && unit == 0) {
    for (int64_t i = 0; i < p.n; ++i)
      s.cache[p.layer].Hide(p.begin + i, !s.routing.tokens->executes(i));
  }
  TokenCounters& counted = token_counters_[2 * p.layer + unit];
  counted.executed += p.n - left;
  counted.approximated += left;
  timing_.route_s += Seconds(mark);
  return left > 0;
}

absl::Status Engine::RunTokens(const Pass& p, int64_t unit, const TokenRouter::Execute& execute) {
  const ModelShape& m = model_.shape;
  SLUICE_ASSIGN_OR_RETURN(
      const TokenRouter::OwnWork own,
      impl_->routing.tokens->Run(p.layer, unit, p.n, impl_->h.data(), p.x, execute));
  if (own.rows == 0) return absl::OkStatus();
  const int64_t attention = 2 * m.width * (m.heads + m.kv_heads) * m.head_dim;
  const int64_t experts = std::max<int64_t>(1, m.experts_used);
  const double weights = static_cast<double>(unit == 0 ? attention : 3 * m.width * m.ffn * experts);
  impl_->math->Count(std::llround(own.cost * weights),
                     std::llround(own.cost / static_cast<double>(own.rows) * weights));
  return absl::OkStatus();
}

// Plans and runs attention of some queries of a pass into s.o. Empty positions: all of them.
absl::Status Engine::Attend(const Pass& p, const float* q, int64_t q_stride, int64_t queries,
                            absl::Span<const int32_t> positions) {
  Impl& s = *impl_;
  const ModelShape& m = model_.shape;
  const int64_t d = m.head_dim;
  const int64_t q_width = m.heads * d;
  KvCache& cache = s.cache[p.layer];
  const AttentionSessions& a = s.attention;
  AttentionSession& session = m.slides(p.layer) ? *a.window
                              : modes_[p.layer] == LayerMode::kSparse
                                  ? (length_ == 0 ? *a.sparse : *a.sparse_decode)
                              : p.layer < options_.dense_layers ? *a.dense
                                                                : *a.routed;
  AttentionInputs in;
  in.q = {q, queries, m.heads, d, q_stride, d};
  in.k = cache.keys();
  in.v = cache.values();
  in.q_begin = p.begin - cache.missing();
  in.q_positions = positions;
  in.prompt_end = p.end - cache.missing();
  in.scale = 1.0f / std::sqrt(static_cast<float>(d));
  in.rope_base = m.rotates(p.layer) ? m.rope_base : 0;
  if (s.keep_pre) {
    in.q_pre = {s.q_pre.data(), p.n, m.heads, d, q_width, d};
    in.k_pre = cache.keys_before_rope();
  }
  if (positions.empty()) in.hidden = {s.h.data(), p.n, m.width, m.width};
  SessionOutputs out;
  out.o = {s.o.data(), queries, m.heads, d, q_width, d};
  if (options_.tokens.mask_approximated) {
    cache.WriteBias(s.key_bias);
    out.key_bias = s.key_bias;
  }

  const int layer = static_cast<int>(p.layer);
  const double planned = session.plan_seconds(layer);
  const double attended = session.attend_seconds(layer);
  const AttentionCounters before = session.counters(layer);
  SLUICE_RETURN_IF_ERROR(session.Run(layer, in, out));
  const double planning = session.plan_seconds(layer) - planned;
  const double attending = session.attend_seconds(layer) - attended;
  timing_.plan_s += planning;
  timing_.attend_s += attending;
  layer_attention_s_[layer] += planning + attending;
  const AttentionCounters counted = session.counters(layer).Since(before);
  counters_.Add(counted);
  layer_counters_[p.layer].Add(counted);
  return absl::OkStatus();
}

// s.h = normalised x.
void Engine::Norm(const std::vector<float>& weight, const float* x, int64_t n) {
  impl_->math->Norm(weight, x, n, impl_->h.data());
}

void Engine::Rotate(const Pass& p, int64_t place, int64_t heads, float* x) const {
  if (!model_.shape.rotates(p.layer)) return;
  impl_->math->Rotate(x, heads, p.positions.empty() ? place : p.positions[place]);
}
}  // namespace host
SLUICE_END_NAMESPACE
