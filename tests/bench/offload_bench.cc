// Experts that do not fit in memory: a decoder of 8 layers of 32 ReLU-gated experts, 4 a token,
// whose weights lie in a file that is read no faster than a given rate. Attention is computed, and
// is what reads can hide behind. Who is read when:
//
//   late       the experts are known after attention (their gate is the same: the bytes must be)
//   early      before it, as SmallThinker has it
//   predicted  one layer ahead, by the next layer's gate on the state of this one; a wrong guess is
//              corrected late
//   static     the experts most used in a warm-up are pinned for good, the others read late
//
// Popularity falls as Zipf's law has it. Every run must give the same bits. BM_ReluFfn is one
// expert by how many of its neurons fire.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/routers/builtin.h"
#include "sluice/routers/expert/common/relu_ffn.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/kernels/linear.h"
#include "sluice/runtime/weights/unit_cache.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kLayers = 8;
constexpr int64_t kExperts = 32;
constexpr int64_t kTop = 4;
constexpr int64_t kDim = 512;
constexpr int64_t kNeurons = 64;
constexpr int64_t kHeads = 8;
constexpr int64_t kKeys = 2048;
constexpr int64_t kFloats = 3 * kNeurons * kDim;  // of an expert
constexpr int64_t kUnitBytes = kFloats * static_cast<int64_t>(sizeof(float));
constexpr int kWarmUp = 32;
constexpr int kTokens = 64;

std::vector<float> Normal(int64_t n, uint64_t seed, double scale) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(scale * RandomNormal({seed, 0, 0, 0, i}));
  return x;
}

// Gates of all layers: the first coordinate of a state is always 1, so that its column is a bias,
// the logarithm of 1 / rank.
class Gates final : public WeightSource {
 public:
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    if (key == "smallthinker.block_count") return kLayers;
    return key == "smallthinker.expert_count" ? kExperts : kDim;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    const auto layer = static_cast<uint64_t>(name[4] - '0');  // blk.L.
    std::vector<float> w = Normal(kExperts * kDim, 100 + layer, 1 / std::sqrt(double{kDim}));
    for (int64_t e = 0; e < kExperts; ++e) {
      const int64_t rank = (e * 13 + static_cast<int64_t>(layer) * 5) % kExperts;
      w[e * kDim] = static_cast<float>(-std::log(static_cast<double>(rank + 1)));
    }
    return w;
  }
};

// The file, written once.
class Experts {
 public:
  Experts() {
    char name[] = "/tmp/offload_bench_XXXXXX";
    file_ = mkstemp(name);
    if (file_ < 0 || unlink(name) != 0) std::abort();
    for (int64_t u = 0; u < kLayers * kExperts; ++u) {
      const std::vector<float> w =
          Normal(kFloats, 1000 + static_cast<uint64_t>(u), 1 / std::sqrt(double{kDim}));
      if (pwrite(file_, w.data(), kUnitBytes, u * kUnitBytes) != kUnitBytes) std::abort();
    }
  }
  ~Experts() { close(file_); }
  // Takes what kUnitBytes take at this rate.
  absl::Status Read(int64_t layer, int32_t unit, absl::Span<std::byte> to, double bytes_a_second) {
    const auto begin = std::chrono::steady_clock::now();
    const int64_t at = (layer * kExperts + unit) * kUnitBytes;
    if (pread(file_, to.data(), to.size(), at) != kUnitBytes)
      return absl::DataLossError("the file of experts is short");
    const std::chrono::duration<double> takes(kUnitBytes / bytes_a_second);
    std::this_thread::sleep_until(
        begin + std::chrono::duration_cast<std::chrono::steady_clock::duration>(takes));
    return absl::OkStatus();
  }

 private:
  int file_;
};
Experts& File() {
  static Experts experts;
  return experts;
}

enum Policy : int64_t { kLate, kEarly, kPredicted, kStatic };

class Decoder {
 public:
  Decoder(Policy policy, int64_t slots, double bytes_a_second) : policy_(policy), slots_(slots) {
    const Gates gates;
    for (int64_t l = 0; l < kLayers; ++l) {
      routers_.push_back(*BuiltinRouters().routers.Create(
          absl::StrCat("expert/small_thinker:layer=", l, ",k=", kTop), &gates));
      plans_.push_back(*routers_[l]->MakePlan({.items = 1, .hidden = kDim}));
    }
    memory_.Resize(plans_[0]->info().workspace_bytes);
    cache_ = *UnitCache::Create(slots, kUnitBytes,
                                [bytes_a_second](int64_t l, int32_t u, absl::Span<std::byte> to) {
                                  return File().Read(l, u, to, bytes_a_second);
                                });
    for (uint64_t m = 0; m < 4; ++m)
      projections_.push_back(
          {kDim, kDim, Normal(kDim * kDim, 10 + m, 0.04), std::vector<float>(kDim)});
    keys_ = Normal(kKeys * kDim, 20, 1);
    values_ = Normal(kKeys * kDim, 21, 1);
  }

  void Warm() {
    for (int t = 0; t < kWarmUp; ++t) Token();
    if (policy_ == kStatic) PinMostUsed();
    before_ = cache_->counters();
    waited_before_ = cache_->waited_seconds();
  }
  void Token() {
    h_ = Normal(kDim, 5000 + token_++, 1);
    h_[0] = 1;
    for (int64_t l = 0; l < kLayers; ++l) Layer(l);
    for (float x : h_) checksum_ += static_cast<double>(x);
  }

  double checksum() const { return checksum_; }
  double waited() const { return cache_->waited_seconds() - waited_before_; }
  double reads() const { return static_cast<double>(cache_->counters().loads - before_.loads); }
  double hit_rate() const {
    const auto& c = cache_->counters();
    return 1 - reads() / static_cast<double>(c.hits + c.misses - before_.hits - before_.misses);
  }

 private:
  const Assignment& Choose(int64_t layer, AssignmentBuffer& room) {
    room.Reserve(1, kTop);
    RouteInputs in;
    in.items = 1;
    in.hidden = {h_.data(), 1, kDim, kDim};
    const absl::Status s =
        routers_[layer]->Run(*plans_[layer], in, {memory_.workspace(), nullptr}, room.view());
    if (!s.ok()) std::abort();
    return room.view();
  }
  void Hint(int64_t layer, const Assignment& a) { cache_->Hint(layer, order_.Order(a, kTop)); }

  void Layer(int64_t layer) {
    const Assignment& chosen = Choose(layer, chosen_);
    if (policy_ == kEarly) Hint(layer, chosen);
    if (policy_ == kPredicted && layer + 1 < kLayers) Hint(layer + 1, Choose(layer + 1, guessed_));
    Attend();
    if (policy_ != kEarly) Hint(layer, chosen);

    std::vector<float> sum(kDim);
    std::vector<float> y(kDim);
    for (int64_t e = 0; e < chosen.entries(); ++e) {
      const int32_t u = chosen.unit[e];
      ++used_[{layer, u}];
      if (!cache_->Pin(layer, u).ok()) std::abort();
      const auto* w = reinterpret_cast<const float*>(cache_->Data(layer, u).data());
      const auto matrix = [&](int64_t m) -> MatrixView<const float> {
        return {w + m * kNeurons * kDim, kNeurons, kDim, kDim};
      };
      const expert::ReluFfn expert = {matrix(0), matrix(1), matrix(2)};
      expert.Run({h_.data(), 1, kDim, kDim}, {y.data(), 1, kDim, kDim});
      cache_->Unpin(layer, u);
      for (int64_t c = 0; c < kDim; ++c) sum[c] += chosen.weight[e] * y[c];
    }
    for (int64_t c = 1; c < kDim; ++c) h_[c] += 0.5f * sum[c];
  }

  // One query over kKeys keys, with its projections; a small part of it goes into the state.
  void Attend() {
    std::vector<float> q(kDim);
    std::vector<float> other(kDim);
    std::vector<float> out(kDim);
    std::vector<float> logits(kKeys);
    projections_[0].Apply(h_.data(), q.data());
    projections_[1].Apply(h_.data(), other.data());
    projections_[2].Apply(h_.data(), other.data());
    constexpr int64_t kWide = kDim / kHeads;
    for (int64_t head = 0; head < kHeads; ++head) {
      const int64_t at = head * kWide;
      float total = 0;
      for (int64_t t = 0; t < kKeys; ++t) {
        logits[t] =
            std::exp(0.1f * kernels::Dot(&q[at], &keys_[t * kDim + at], DType::kF32, kWide));
        total += logits[t];
      }
      for (int64_t t = 0; t < kKeys; ++t) {
        const float p = logits[t] / total;
        for (int64_t c = 0; c < kWide; ++c) out[at + c] += p * values_[t * kDim + at + c];
      }
    }
    projections_[3].Apply(out.data(), other.data());
    for (int64_t c = 1; c < kDim; ++c) h_[c] += other[c];
  }

  void PinMostUsed() {
    std::vector<std::pair<int64_t, std::pair<int64_t, int32_t>>> by_use;
    for (const auto& [unit, n] : used_) by_use.push_back({-n, unit});
    std::sort(by_use.begin(), by_use.end());
    for (int64_t i = 0; i < std::min<int64_t>(slots_ - kTop, std::ssize(by_use)); ++i) {
      const auto [layer, unit] = by_use[i].second;
      if (!cache_->Pin(layer, unit).ok()) std::abort();
    }
  }

  Policy policy_;
  int64_t slots_;
  std::vector<std::unique_ptr<const Router>> routers_;
  std::vector<std::unique_ptr<const Router::Plan>> plans_;
  OwnedWorkspace memory_;
  AssignmentBuffer chosen_, guessed_;
  pipeline::RankMajor order_;
  std::unique_ptr<UnitCache> cache_;
  std::vector<Linear> projections_;
  std::vector<float> keys_, values_, h_;
  std::map<std::pair<int64_t, int32_t>, int64_t> used_;
  pipeline::ResidencyCounters before_;
  double waited_before_ = 0;
  double checksum_ = 0;
  uint64_t token_ = 0;
};

// Waiting that a late router shows, by slots and rate: what the others are held against.
std::map<std::pair<int64_t, int64_t>, double>& LateWaits() {
  static std::map<std::pair<int64_t, int64_t>, double> waits;
  return waits;
}

void BM_Offload(benchmark::State& state) {
  const auto policy = static_cast<Policy>(state.range(0));
  const int64_t slots = kLayers * kExperts * state.range(1) / 100;
  const int64_t rate = state.range(2);
  File();
  Decoder decoder(policy, slots, 1e6 * static_cast<double>(rate));
  decoder.Warm();
  for (auto _ : state) decoder.Token();

  static const double checksum = decoder.checksum();
  if (decoder.checksum() != checksum) return state.SkipWithError("other bits");
  if (policy == kLate) LateWaits()[{slots, rate}] = decoder.waited();
  const auto late = LateWaits().find({slots, rate});
  state.counters["tokens_a_second"] =
      benchmark::Counter(static_cast<double>(kTokens), benchmark::Counter::kIsRate);
  state.counters["hit_rate"] = decoder.hit_rate();
  state.counters["reads_a_token"] = decoder.reads() / kTokens;
  state.counters["waited_ms_a_token"] = 1e3 * decoder.waited() / kTokens;
  if (late != LateWaits().end() && late->second > 0)
    state.counters["hidden"] = 1 - decoder.waited() / late->second;
  constexpr const char* kNames[] = {"late", "early", "predicted", "static"};
  state.SetLabel(kNames[policy]);
}
BENCHMARK(BM_Offload)
    ->ArgsProduct({{kLate, kEarly, kPredicted, kStatic}, {25}, {500, 1000, 2000}})
    ->ArgsProduct({{kLate, kEarly, kPredicted, kStatic}, {5, 50, 100}, {1000}})
    ->ArgNames({"policy", "resident_percent", "mb_a_second"})
    ->Iterations(kTokens)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// One expert of width 2,048 and 768 neurons on one row; `silent` percent of them do not fire.
void BM_ReluFfn(benchmark::State& state) {
  constexpr int64_t kWidth = 2048;
  constexpr int64_t kWide = 768;
  std::vector<float> gate = Normal(kWide * kWidth, 31, 0.02);
  const std::vector<float> up = Normal(kWide * kWidth, 32, 0.02);
  const std::vector<float> down = Normal(kWide * kWidth, 33, 0.02);
  const std::vector<float> x(kWidth, 1.0f);
  for (int64_t j = 0; j < kWide; ++j) {
    const bool silent = j * 37 % 100 < state.range(0);
    for (int64_t c = 0; c < kWidth; ++c) {
      const float w = std::abs(gate[j * kWidth + c]);
      gate[j * kWidth + c] = silent ? -w : w;
    }
  }
  const auto view = [](const std::vector<float>& w) -> MatrixView<const float> {
    return {w.data(), kWide, kWidth, kWidth};
  };
  const expert::ReluFfn expert = {view(gate), view(up), view(down)};
  std::vector<float> y(kWidth);
  int64_t fired = 0;
  for (auto _ : state)
    fired = expert.Run({x.data(), 1, kWidth, kWidth}, {y.data(), 1, kWidth, kWidth});
  state.counters["fired"] = static_cast<double>(fired) / kWide;
}
BENCHMARK(BM_ReluFfn)->Arg(0)->Arg(50)->Arg(60)->Arg(80)->Arg(95)->ArgName("silent");
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
