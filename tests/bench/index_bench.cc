// Token scores in fp32, 8 and 4 bits, beside each other: on queries and keys of the bundled model
// over a text of it, and on random ones of other shapes. One thread; every figure is a median over
// rounds in which the three take turns, of CPU time.
//
//   pass   scores of all keys that a query sees (the indexer of dsa without weights: attention's
//          own queries and keys), rotation and rounding of the query included
//   together  the same of eight queries at once in fp32, which packs the keys once for them
//   plan   what the router does for a query, so the pass, the choice of the best and their list
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <memory>

#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using attention::Indexer;
using attention::IntKeys;
using attention::RouterPlan;
using attention::ScoreIn;

constexpr int64_t kQueries = 8;  // of one place in the text
constexpr int64_t kPlaces = 4;   // at the quarters of its second half
constexpr int64_t kKept = 2048;
constexpr int kRounds = 11;

// Queries and keys of one layer or of random numbers, for all positions.
struct Data {
  int64_t heads = 0, kv_heads = 0, dim = 0, keys = 0;
  std::vector<float> q, k;  // [keys, heads, dim], [keys, kv_heads, dim]
  int64_t index_heads = 0;  // > 0: of an indexer that all heads share

  AttentionShape Shape() const {
    AttentionShape s = {.max_queries = kQueries, .max_kv = keys};
    s.heads = s.kv_heads = 1;
    s.head_dim = s.value_dim = 16;
    if (index_heads > 0) {
      s.index_heads = static_cast<int>(index_heads);
      s.index_dim = static_cast<int>(dim);
      return s;
    }
    s.heads = static_cast<int>(heads);
    s.kv_heads = static_cast<int>(kv_heads);
    s.head_dim = s.value_dim = static_cast<int>(dim);
    return s;
  }
  // kQueries queries, the last of which sees `seen` keys.
  AttentionInputs At(int64_t seen) const {
    AttentionInputs in;
    const int64_t first = seen - kQueries;
    const HeadsView<const float> rows = {
        &q[first * heads * dim], kQueries, heads, dim, heads * dim, dim};
    const KvView all = {k.data(), DType::kF32, seen, kv_heads, dim, kv_heads * dim, dim};
    in.q_begin = first;
    in.scale = 1;
    if (index_heads > 0) {
      static const std::vector<float> none(kQueries * 16 + (1 << 18) * 16);
      static const std::vector<float> ones(kQueries * 64, 1.0f);
      in.q = {none.data(), kQueries, 1, 16, 16, 16};
      in.k = in.v = {none.data(), DType::kF32, seen, 1, 16, 16, 16};
      in.index.q = rows;
      in.index.weight = {ones.data(), kQueries, heads, heads};
      in.index.k = all;
      return in;
    }
    in.q = rows;
    in.k = in.v = all;
    return in;
  }
  int64_t Seen(int64_t place) const { return keys / 2 + (place + 1) * keys / 2 / kPlaces; }
};

// Every layer's, of the bundled model over the first tokens of its held-out text.
const std::vector<Data>& OfModel(int64_t tokens) {
  static std::map<int64_t, std::vector<Data>> all;
  std::vector<Data>& layers = all[tokens];
  if (!layers.empty()) return layers;
  const std::string folder = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";
  const host::Model model = *host::LoadModel(folder + "sluice-mini-q8_0.gguf");
  const std::vector<int32_t> text = *ReadTokens(folder + "sluice-mini-eval.u16", 0, tokens);
  const host::ModelShape& m = model.shape;
  InlineExecutor inline_executor;
  host::LayerMath math(m, 512, tokens, &inline_executor);
  layers.resize(m.layers);
  host::EngineOptions o;
  o.max_tokens = tokens;
  o.on_input = [&](int64_t layer, host::MatrixInput input, int64_t n, const float* x) {
    if (input != host::MatrixInput::kAttention) return;
    Data& to = layers[layer];
    to.heads = m.heads;
    to.kv_heads = m.kv_heads;
    to.dim = m.head_dim;
    const int64_t q_width = m.heads * m.head_dim;
    const int64_t kv_width = m.kv_heads * m.head_dim;
    std::vector<float> y(n * (q_width + kv_width));
    math.MatMul(x, model.layers[layer].qkv.data(), n, m.width, q_width + kv_width, y.data());
    for (int64_t i = 0; i < n; ++i, ++to.keys) {
      float* row = &y[i * (q_width + kv_width)];
      math.Rotate(row, m.heads + m.kv_heads, to.keys);
      to.q.insert(to.q.end(), row, row + q_width);
      to.k.insert(to.k.end(), row + q_width, row + q_width + kv_width);
    }
  };
  const auto engine = *host::Engine::Create(model, o);
  if (!engine->Feed(text, int64_t{1} << 30).ok()) layers.clear();
  return layers;
}

double Now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

// One way to score, made ready for one layer.
class Scorer {
 public:
  Scorer(const Data& data, ScoreIn score, const std::string& policy)
      : data_(data), shape_(data.Shape()), plan_(shape_) {
    few_bits_ = IntKeys::AddTo(plan_, score, Indexer::Streams(shape_), Indexer::Width(shape_));
    scratch_.resize(Indexer::ScratchFloats(shape_, shape_.max_kv));
    scores_.resize(shape_.max_kv);
    router_ = *BuiltinRouters().attention.Create(policy);
    router_plan_ = *router_->MakePlan(shape_);
    storage_ = *PlanStorage::Create(router_plan_->info().layout);
    memory_.Resize(plan_.state_bytes);
    router_memory_.Resize(router_plan_->info().state_bytes);
    workspace_.Resize(std::max(plan_.workspace_bytes, router_plan_->info().workspace_bytes));
    state_.layer = memory_.data();
    router_state_.layer = router_memory_.data();
    IntKeys(state_, few_bits_)
        .Append(Indexer(shape_, data.At(data.keys), none_).Keys(), plan_, Context());
    // Keys are known afterwards.
    (void)router_->Run(*router_plan_, data.At(data.keys), router_state_, Context(), *storage_);
  }
  // Scores the queries of a place; returns the last one's.
  const float* Pass(int64_t seen) {
    const AttentionInputs in = data_.At(seen);
    const IntKeys few_bits(state_, few_bits_);
    const Indexer indexer(shape_, in, few_bits);
    for (int64_t i = 0; i < kQueries; ++i) {
      indexer.ScoreKeys(i, nullptr, in.q_begin + i + 1, scores_.data(), scratch_.data());
      benchmark::DoNotOptimize(scores_.data());
    }
    return scores_.data();
  }
  // What fp32 could do for a prompt at best: the queries of a place in one product a head group, so
  // that keys are packed once for all of them. One product over all keys, ReLU and weights in
  // loops.
  void PassTogether(int64_t seen) {
    const int64_t group = data_.heads / data_.kv_heads;
    const int64_t rows = kQueries * group;
    together_.resize(rows * (data_.dim + kBatch) + kernels::GemmScratchFloats(data_.dim));
    all_scores_.assign(kQueries * data_.keys, 0.0f);
    float* q = together_.data();
    float* products = q + rows * data_.dim;
    float* gemm = products + rows * kBatch;
    for (int64_t kv = 0; kv < data_.kv_heads; ++kv) {
      for (int64_t i = 0; i < kQueries; ++i)
        std::copy_n(&data_.q[((seen - kQueries + i) * data_.heads + kv * group) * data_.dim],
                    group * data_.dim, q + i * group * data_.dim);
      for (int64_t at = 0; at < seen; at += kBatch) {
        const int64_t n = std::min(kBatch, seen - at);
        kernels::GemmNT(q, data_.dim, &data_.k[(at * data_.kv_heads + kv) * data_.dim],
                        data_.kv_heads * data_.dim, rows, n, data_.dim, products, n, gemm);
        for (int64_t r = 0; r < rows; ++r) {
          float* to = &all_scores_[r / group * data_.keys + at];
          for (int64_t j = 0; j < n; ++j) to[j] += std::max(products[r * n + j], 0.0f);
        }
      }
    }
    benchmark::DoNotOptimize(all_scores_.data());
  }
  // Lists of the queries of a place.
  const AttentionBranch& Plan(int64_t seen) {
    router_state_.keys = seen - kQueries;  // they are appended
    if (!router_->Run(*router_plan_, data_.At(seen), router_state_, Context(), *storage_).ok())
      std::abort();
    return storage_->plan().branches[0];
  }

 private:
  RunContext Context() { return {workspace_.workspace(), &executor_}; }
  const Data& data_;
  AttentionShape shape_;
  RouterPlan plan_;
  IntKeys::Layout few_bits_;
  RouterState none_state_;
  IntKeys none_{none_state_, {}};
  RouterState state_, router_state_;
  OwnedWorkspace memory_, router_memory_, workspace_;
  static constexpr int64_t kBatch = 256;  // keys
  std::vector<float> scratch_, scores_, together_, all_scores_;
  std::unique_ptr<const AttentionRouter> router_;
  std::unique_ptr<const AttentionRouter::Plan> router_plan_;
  std::unique_ptr<PlanStorage> storage_;
  InlineExecutor executor_;
};

struct Way {
  const char* name;
  ScoreIn score;
  const char* more;  // of the policy
};
constexpr Way kWays[] = {{"f32", ScoreIn::kF32, ""},
                         {"int8", ScoreIn::kInt8, ",score=int8"},
                         {"int4", ScoreIn::kInt4, ",score=int4"},
                         {"int4_again", ScoreIn::kInt4, ",score=int4,rescore=0.25"}};
constexpr size_t kNumWays = std::size(kWays);

void Compare(benchmark::State& state, const std::vector<Data>& layers) {
  const int64_t queries = std::ssize(layers) * kPlaces * kQueries;
  std::vector<std::array<std::unique_ptr<Scorer>, kNumWays>> all(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t w = 0; w < kNumWays; ++w)
      all[l][w] = std::make_unique<Scorer>(layers[l], kWays[w].score,
                                           absl::StrCat("dsa:k=", kKept, kWays[w].more));
  }
  std::vector<double> pass[kNumWays];
  std::vector<double> plan[kNumWays];
  std::vector<double> pass_gain[kNumWays];
  std::vector<double> plan_gain[kNumWays];
  std::vector<double> together;
  double recall[kNumWays] = {};
  double least[kNumWays] = {1, 1, 1, 1};
  for (auto _ : state) {
    for (int round = 0; round < kRounds; ++round) {
      const double start = Now();
      for (size_t l = 0; l < layers.size(); ++l) {
        for (int64_t p = 0; p < kPlaces; ++p) all[l][0]->PassTogether(layers[l].Seen(p));
      }
      together.push_back(1e6 * (Now() - start) / static_cast<double>(queries));
      for (size_t w = 0; w < kNumWays; ++w) {
        double begin = Now();
        for (size_t l = 0; l < layers.size(); ++l) {
          for (int64_t p = 0; p < kPlaces; ++p) all[l][w]->Pass(layers[l].Seen(p));
        }
        pass[w].push_back(1e6 * (Now() - begin) / static_cast<double>(queries));
        begin = Now();
        for (size_t l = 0; l < layers.size(); ++l) {
          for (int64_t p = 0; p < kPlaces; ++p) all[l][w]->Plan(layers[l].Seen(p));
        }
        plan[w].push_back(1e6 * (Now() - begin) / static_cast<double>(queries));
        pass_gain[w].push_back(pass[0].back() / pass[w].back());
        plan_gain[w].push_back(plan[0].back() / plan[w].back());
      }
    }
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    for (int64_t p = 0; p < kPlaces; ++p) {
      const AttentionBranch& exact = all[l][0]->Plan(layers[l].Seen(p));
      for (size_t w = 1; w < kNumWays; ++w) {
        const AttentionBranch& x = all[l][w]->Plan(layers[l].Seen(p));
        for (size_t i = 0; i < kQueries; ++i) {
          const auto want = exact.tokens.subspan(exact.rows.begin[i], exact.rows.count[i]);
          const auto got = x.tokens.subspan(x.rows.begin[i], x.rows.count[i]);
          std::vector<uint32_t> both;
          std::set_intersection(want.begin(), want.end(), got.begin(), got.end(),
                                std::back_inserter(both));
          const double share = static_cast<double>(both.size()) / static_cast<double>(want.size());
          recall[w] += share / static_cast<double>(queries);
          least[w] = std::min(least[w], share);
        }
      }
    }
  }
  state.counters["pass_us_f32_together"] = Median(together);
  for (size_t w = 0; w < kNumWays; ++w) {
    const std::string name = kWays[w].name;
    state.counters["pass_us_" + name] = Median(pass[w]);
    state.counters["plan_us_" + name] = Median(plan[w]);
    if (w == 0) continue;
    state.counters["pass_x_" + name] = Median(pass_gain[w]);
    state.counters["plan_x_" + name] = Median(plan_gain[w]);
    state.counters["recall_" + name] = recall[w];
    state.counters["least_" + name] = least[w];
  }
}

void BundledModel(benchmark::State& state) { Compare(state, OfModel(state.range(0))); }

// Random numbers: recall says what rounding does to data without structure.
void Random(benchmark::State& state) {
  Data d{.heads = state.range(0), .kv_heads = state.range(1), .dim = state.range(2)};
  d.keys = state.range(3);
  if (d.kv_heads == 1) d.index_heads = d.heads;
  const auto fill = [&](std::vector<float>& x, int64_t n, uint64_t unit) {
    x.resize(n);
    for (int64_t i = 0; i < n; ++i)
      x[i] = static_cast<float>(RandomNormal({3, 0, 0, unit, static_cast<uint64_t>(i)}));
  };
  fill(d.q, d.keys * d.heads * d.dim, 1);
  fill(d.k, d.keys * d.kv_heads * d.dim, 2);
  Compare(state, {d});
}
BENCHMARK(BundledModel)->Arg(8192)->Arg(16384)->Iterations(1)->Unit(benchmark::kSecond);
// DeepSeek's indexer; eight index heads of width 32; groups of four of an 8B model.
BENCHMARK(Random)
    ->Args({64, 1, 128, 16384})
    ->Args({8, 1, 32, 16384})
    ->Args({32, 8, 128, 16384})
    ->Args({32, 8, 128, 65536})
    ->Iterations(1)
    ->Unit(benchmark::kSecond);
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
